"""examples/recipes: each is complete, agrees with its own title, and trains (two steps of a tiny model)."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_train import ROOT
from tiny import CASES
from transformers import AutoConfig, AutoImageProcessor

from hf_segtx.architectures import ARCHITECTURES
from hf_segtx.cli.training_flags import parse_training
from hf_segtx.training import train


RECIPES = sorted((ROOT / "examples/recipes").glob("*.args"))
PUBLISHED = [recipe for recipe in RECIPES if "camvid" not in recipe.name]
NUM_LABELS = {"ade20k": 150, "cityscapes": 19, "pascal": 60, "coco": 171, "lip": 20, "camvid": 11}


def architecture(recipe: Path) -> str:
    return recipe.name.split("_")[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(number of classes) -> a folder of three pictures of 80x96 pixels with the first ids, void and the last id."""
    folders = {}

    def make(num_labels: int) -> Path:
        if num_labels not in folders:
            folder = folders[num_labels] = tmp_path_factory.mktemp(f"classes_{num_labels}")
            for kind in ("images", "masks"):
                (folder / kind).mkdir()
            random = np.random.default_rng(0)
            for number in range(3):
                Image.fromarray(random.integers(256, size=(80, 96, 3), dtype=np.uint8)).save(
                    folder / "images" / f"{number}.png"
                )
                mask = np.repeat(np.arange(96, dtype=np.uint8)[None] // 32, 80, axis=0)
                mask[:8], mask[8:16] = 255, num_labels - 1
                Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
            names = {number: f"class {number}" for number in range(num_labels)}
            (folder / "id2label.json").write_text(json.dumps(names))
        return folders[num_labels]

    return make


def num_labels(recipe: Path) -> int:
    return next(number for name, number in NUM_LABELS.items() if name in recipe.name)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_complete(recipe):
    arguments = parse_training(["--recipe", str(recipe)])
    if arguments.model_name_or_path is None:
        overrides = json.loads(arguments.config_overrides or "{}")
        ARCHITECTURES[arguments.architecture].config.from_size(arguments.size, **overrides)
    if arguments.class_weights:
        assert len(arguments.class_weights) == num_labels(recipe)
    comments = "\n".join(line for line in recipe.read_text().splitlines() if line.startswith("#"))
    for word in ("Source:", f"--recipe {recipe.stem} ", "mIoU"):
        assert word in comments
    if recipe in PUBLISHED:
        assert re.search(r"\d\d\.\d+ ?%", comments), "no expected mIoU"
        assert arguments.total_batch_size == arguments.per_device_train_batch_size
        window = re.search(r"windows of (\d+)x\d+ every (\d+)", comments)
        says = ([int(window[1])], [int(window[2])]) if window else ([], [])
        assert (arguments.window_size, arguments.window_stride) == says
        assert arguments.eval_mode == ("slide" if window else "whole")


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(recipe, marks=[] if number % 15 == 0 else pytest.mark.slow, id=recipe.stem)
        for number, recipe in enumerate(RECIPES)
    ],
)
def test_recipe_trains(recipe, data, tmp_path):
    """Two steps with everything that the recipe says but the size of the network, of the images and of the batch."""
    arguments = parse_training(["--recipe", str(recipe)])
    overrides = json.loads(arguments.config_overrides or "{}")
    tiny = CASES[architecture(recipe)].config  # its sizes; what the recipe says of patches and protocols stays
    overrides |= {name: value for name, value in tiny.items() if name not in ("image_size", "patch_size")}
    if "image_size" in overrides:
        overrides["image_size"] = 64
    flags = ["--recipe", str(recipe), "--config_overrides", json.dumps(overrides), "--output_dir", str(tmp_path)]
    # Its weights are on the Hub: the same architecture from nothing.
    unset = ["model_name_or_path"] if arguments.model_name_or_path else ["backbone_weights", "size"]
    folder = str(data(num_labels(recipe)))
    flags += ["--train_dir", folder, "--validation_dir", folder, "--max_train_steps", "2", "--num_warmup_steps", "0"]
    flags += ["--evaluation_steps", "2", "--total_batch_size", "2", "--crop_size", "64", "--image_size", "64", "128"]
    if arguments.window_size:
        flags += ["--window_size", "64", "--window_stride", str(max(1, 64 * arguments.window_stride[0] // 768))]
    arguments = replace(parse_training(flags), architecture=architecture(recipe), **dict.fromkeys(unset))
    results = train(arguments)
    assert results["step"] == 2 and results["skipped_steps"] == 0 and len(results["classes"]) == num_labels(recipe)
    assert AutoConfig.from_pretrained(tmp_path).num_labels == num_labels(recipe)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert bool(processor.window_size) == bool(arguments.window_size)
