"""examples/recipes: each is complete, does what its authors published, agrees with its own head, and trains.

`published_runs.json` has what the authors' files and papers say of 97 runs, frozen: of each family what most of its
runs have in common, of each run the rest. This file compares; `docs/recipes.md` is the result as a table:

    python tests/test_recipes.py > docs/recipes.md
"""

import json
import re
from collections import Counter
from dataclasses import fields, replace
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
from hf_segtx.training.arguments import Arguments
from hf_segtx.training.recipes import describe


RECIPES = sorted((ROOT / "examples/recipes").glob("*.args"))
PUBLISHED = [recipe for recipe in RECIPES if "camvid" not in recipe.name]
NUM_LABELS = {"ade20k": 150, "cityscapes": 19, "context_480": 60, "context60": 60, "context_520": 59, "coco": 171}
NUM_LABELS |= {"lip": 20, "camvid": 11}
TABLES = json.loads((Path(__file__).parent / "published_runs.json").read_text(encoding="utf-8"))
RUNS = {run["run"]: run for run in TABLES["runs"]}

# What no source decides: names, how often to evaluate, micro-batches (a batch is one), that nothing is automatic.
FREE = """
    automatic model_name_or_path architecture size backbone_weights config_overrides evaluation_steps
    per_device_train_batch_size
""".split()


def facts_of(run: dict, recipe: str) -> dict:
    """Everything that is known of a run; what it does not say itself is that of its family, or of another run."""
    known = dict(TABLES["common"].get(run.get("family"), {}))
    if rest := run.get("rest_of"):
        known = facts_of(RUNS[rest[recipe]], recipe)
        known.pop("published_ss", None), known.pop("published_ms", None)
        if "iterations" in run:
            known.pop("epochs", None)
    return {name: value for name, value in (known | run).items() if value is not None}


def facts_by_recipe() -> dict[str, dict]:
    facts = {}
    for run in RUNS.values():
        for recipe in [] if "missing" in run else run.get("recipes", [run["run"]]):
            assert recipe not in facts, f"{recipe} is two runs"
            facts[recipe] = facts_of(run, recipe)
    for recipe, ours in TABLES["ours"].items():
        rest = facts_of(RUNS[ours["rest_of"]], ours["rest_of"])
        facts[recipe] = {**rest, "published_ss": None, "published_ms": None, **ours}
    return facts


FACTS = facts_by_recipe()


def expected_arguments(facts: dict) -> dict:
    """What the arguments of a run with these facts are, by their names."""
    base, kind = facts.get("base_size"), facts["base_size_is"]
    windows = "slide" in facts.get("eval_mode", "") and kind != "squash"  # what is squashed is as large as its window
    stride = facts.get("eval_stride")
    if isinstance(stride, str):  # a share of the window
        stride = [side * 2 // 3 for side in facts["eval_window"]]
    size = [] if kind == "own" else sorted(np.atleast_1d(base).tolist())
    shown = facts.get("eval_size", size)
    expected = {
        "optimizer": facts["optimizer"].split()[0].lower(),
        "learning_rate": facts["lr"],
        "head_lr_multiplier": facts["head_lr_multiplier"],
        "weight_decay": facts["weight_decay"],
        "norm_decay": facts["norm_decay"],
        "lr_scheduler_type": "polynomial",
        "poly_power": facts["power"],
        "min_learning_rate": facts["min_lr"],
        "num_warmup_steps": facts["warmup_steps"],
        "max_train_steps": facts.get("iterations"),
        "total_batch_size": facts["total_batch"],
        "sync_bn": facts.get("sync_bn", False),
        "crop_size": facts["crop_hw"],
        "scale_range": facts["scale_range"],
        "scale_step": facts.get("scale_step"),
        "aspect_range": facts.get("aspect_jitter", []),
        "max_class_share": facts.get("crop_rule_cat_max_ratio", 1),
        "flip_probability": facts["flip_prob"],
        "photometric": facts["colours"],
        "photometric_strength": 1,
        "crop_padding": facts.get("crop_padding", "mean"),
        # of other weights, as its head says
        "channel_order": facts.get("channel_order", "rgb").replace("other weights", "rgb"),
        "image_size": [] if shown == "own" else shown,
        "base_size": size if "eval_size" in facts else [],
        "resize_mode": kind if kind in ("long", "squash") else "keep",
        "stretch_divisor": facts.get("stretch_divisor"),
        "size_divisor": facts.get("size_divisor"),
        "small_images": facts.get("small_images", "pad"),
        "averaging": facts.get("averaging", "probabilities"),
        "eval_mode": "slide" if windows else "whole",
        "window_size": facts["eval_window"] if windows else [],
        "window_stride": stride if windows else [],
        "loss": facts.get("loss", "ce"),
        "loss_mean": facts["loss_mean"],
        "class_weights": facts.get("class_weights", []),
    }
    if "epochs" in facts:
        expected["num_train_epochs"] = facts["epochs"]
    if "warmup_ratio" in facts:
        expected["warmup_start_factor"] = facts["warmup_ratio"]
    if expected["optimizer"] == "sgd":
        expected |= {"momentum": facts["momentum"], "nesterov": facts["nesterov"]}
    else:
        expected |= dict(zip(("adam_beta1", "adam_beta2"), facts["betas"], strict=True))
    if ohem := facts.get("ohem"):
        kept = ohem.get("min_kept", ohem.get("min_kept_per_gpu_batch"))
        expected["loss"] = f"ohem(threshold={ohem['threshold']:g}, min_kept={kept})"
    return expected


def expected_configuration(facts: dict) -> dict:
    """What the configuration's fields are, as far as the source says so, by their names."""
    source, expected = facts.get("architecture", {}), {}
    names = {"embed_dim": "hidden_size", "d_model": "hidden_size", "depth": "num_hidden_layers", "patch": "patch_size"}
    names |= {"n_layers": "num_hidden_layers", "heads": "num_attention_heads", "n_heads": "num_attention_heads"}
    names |= {"img_size": "image_size", "mla_index": "feature_indices", "decoder_layers": "decoder_num_hidden_layers"}
    names |= {"distilled": "use_distillation_token", "mid_channels": "decoder_hidden_size", "head": "decode_head"}
    names |= {"key_channels": "decoder_key_size", "auxiliary_channels": "auxiliary_hidden_size"}
    expected = {names[name]: value for name, value in source.items() if name in names}
    if source.get("aux_in_index") and source.get("head_in_index"):  # naive, pup: of the heads, then the main one
        expected["feature_indices"] = sorted({*source["aux_in_index"], source["head_in_index"]})
    if "head_activation" in facts:
        expected["decoder_hidden_act"] = facts["head_activation"]
    if "drop_path" in facts:
        expected["drop_path_rate"] = facts["drop_path"]
    if "aux_weights" in facts:
        expected["auxiliary_loss_weight"] = facts["aux_weights"][0]
    return expected


def head_of(recipe: Path) -> str:
    """The comments, as one line."""
    return " ".join(line[1:].strip() for line in recipe.read_text().splitlines() if line.startswith("#"))


def architecture(recipe: Path) -> str:
    return recipe.name.split("_")[0]


def configuration(arguments: Arguments):
    overrides = json.loads(arguments.config_overrides or "{}")
    return ARCHITECTURES[arguments.architecture].config.from_size(arguments.size, **overrides)


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


def test_every_published_run_has_a_recipe_or_a_reason():
    assert len(RUNS) == 97 and {recipe.stem for recipe in PUBLISHED} == FACTS.keys()
    counts = Counter(re.match(r"\w+", status(run))[0] for run in RUNS.values())
    print(dict(counts))
    assert counts.pop("missing") == 2 and counts.total() == 95 and counts["equal"] == 69
    assert all(run["missing"] for run in RUNS.values() if "missing" in run)
    # The heads of recipes say where they differ, and the table says the same.
    for run in RUNS.values():
        if "missing" in run:
            continue
        text = " ".join(head_of(ROOT / f"examples/recipes/{name}.args") for name in run.get("recipes", [run["run"]]))
        assert [kind for kind in ("training", "evaluation") if f"Differs in {kind}:" in text] == run["differs_in"]
        assert ("Not published:" in text) == ("completed" in run)


@pytest.mark.parametrize("recipe", PUBLISHED, ids=lambda path: path.stem)
def test_every_flag_is_that_of_the_published_run(recipe):
    arguments, facts = parse_training(["--recipe", str(recipe)]), FACTS[recipe.stem]
    expected = expected_arguments(facts)
    found = {name: getattr(arguments, name) for name in expected}
    found["class_weights"] = [float(weight) for weight in found["class_weights"]]
    for name, value in expected.items():
        if name in ("crop_size", "window_size", "window_stride") and value:
            given = found[name] if isinstance(found[name], list) else [found[name]]
            found[name] = [given[0], given[-1]]
    assert found == expected
    defaults = {option.name: getattr(Arguments(), option.name) for option in fields(Arguments)}
    changed = {name for name, value in defaults.items() if getattr(arguments, name) != value}
    assert changed <= expected.keys() | {*FREE, "image_mean", "image_std", "num_train_epochs"}
    if arguments.size:
        config = configuration(arguments)
        wanted = expected_configuration(facts)
        if "random" in recipe.name:
            assert arguments.backbone_weights is None
        for name, value in wanted.items():
            got = getattr(config, name)
            assert (list(got) if isinstance(got, (list, tuple)) else got) == value, name
        row = ARCHITECTURES[arguments.architecture].processor
        mean, std = arguments.image_mean or row.image_mean, arguments.image_std or row.image_std
        known = facts["normalisation_mean"], facts["normalisation_std"]
        if max(known[0]) > 1 and known[1] == [1.0, 1.0, 1.0] or known[0][0] in (102.9801, 104.00698793):
            known = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # other weights, as its head says
        elif max(known[0]) > 1:
            known = [[round(value / 255, 3) for value in values] for values in known]
        assert ([*mean], [*std]) == (known[0], known[1])


@pytest.mark.parametrize("recipe", PUBLISHED, ids=lambda path: path.stem)
def test_scores_and_scales_of_the_head_are_the_published_ones(recipe):
    """Only of validation data, where a user can measure them, each with where it is stated."""
    head, facts = head_of(recipe), FACTS[recipe.stem]
    scores = re.findall(r"Published mIoU \(validation, ([^)]+)\): ([\d.]+) %\. Where: (\S[^.]+)", head)
    assert len(scores) == head.count("Published mIoU")
    shown = {("single" if "single scale" in protocol else "multi"): float(score) for protocol, score, _ in scores}
    if "val" in facts.get("published_set", ""):
        for kind, name in (("single", "published_ss"), ("multi", "published_ms")):
            if facts.get(name) is not None:
                assert shown[kind] == facts[name]
    elif "published_set" in facts:
        assert not scores
    assert scores or " mIoU: " in head
    window = re.search(r"windows of (\d+)x\d+ every (\d+)", head)
    arguments = parse_training(["--recipe", str(recipe)])
    if window:
        assert ([int(window[1])], [int(window[2])]) == (arguments.window_size, arguments.window_stride)
    scales = re.search(r"segtx evaluate --scales ([\d. ]+) --flip", head)
    assert ([float(scale) for scale in scales[1].split()] if scales else None) == (
        None if "lip" in recipe.name else facts.get("ms_scales")
    )
    _, score = describe(recipe.stem)
    assert score.startswith(scores[0][1] if scores else "none")


def status(run: dict) -> str:
    if "missing" in run:
        return "missing"
    if run["differs_in"]:
        return f"differs in {' and '.join(run['differs_in'])}"
    return f"completed: not published is {run['completed']}" if "completed" in run else "equal"


def as_table() -> str:
    """docs/recipes.md."""
    counts = Counter(re.match(r"\w+", status(run))[0] for run in RUNS.values())
    lines = [
        "# Published runs and their recipes",
        "",
        f"Of the {len(RUNS)} runs whose settings the authors of SETR, SegFormer, Segmenter and OCRNet published, "
        f"{counts['equal']} have a",
        f"recipe with the same settings, {counts['completed']} one with the same settings as far as there are any, "
        "completed from another",
        f"run, {counts['differs']} one that differs where its head says so (`segtx recipes NAME`), {counts['missing']} "
        "have none. A test holds every flag",
        "against the published values. OCRNet has three sources: HRNet-OCR, openseg, and openseg's branch of PyTorch",
        "1.7.",
        "",
        "What no setting says is not the authors': images are made smaller with antialiasing (theirs without), logits",
        "of whole images go to the size of the labels in one step, colours change in YIQ instead of HSV, small crops",
        "lie at the top left of their padding (openseg: anywhere), random numbers are others, as are the libraries.",
        "",
        "| published run | recipe | settings |",
        "|---|---|---|",
    ]
    for name, run in RUNS.items():
        recipes = ", ".join(f"`{recipe}`" for recipe in run.get("recipes", [name]))
        last = f"none: {run['missing']}" if "missing" in run else status(run)
        name = name.replace("*", "\\*")
        lines.append(f"| {name} | {'' if 'missing' in run else recipes} | {last} |")
    lines += ["", "Recipes beyond these runs: " + ", ".join(f"`{recipe}`" for recipe in TABLES["ours"]) + "."]
    return "\n".join(lines) + "\n"


def test_table_of_the_documentation_is_up_to_date():
    assert (ROOT / "docs/recipes.md").read_text(encoding="utf-8") == as_table()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_complete(recipe):
    arguments = parse_training(["--recipe", str(recipe)])
    if arguments.model_name_or_path is None:
        configuration(arguments)
    if arguments.class_weights:
        assert len(arguments.class_weights) == num_labels(recipe)
    comments = "\n".join(line for line in recipe.read_text().splitlines() if line.startswith("#"))
    for word in ("Source:", f"--recipe {recipe.stem} ", "mIoU"):
        assert word in comments
    if recipe in PUBLISHED:
        assert num_labels(recipe) == FACTS[recipe.stem]["num_classes"]
        assert arguments.total_batch_size == arguments.per_device_train_batch_size


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(recipe, marks=[] if number % 20 == 0 else pytest.mark.slow, id=recipe.stem)
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
    if arguments.image_size:
        flags += ["--image_size", "64", *["128"] * (arguments.resize_mode != "long")]
    folder = str(data(num_labels(recipe)))
    flags += ["--train_dir", folder, "--validation_dir", folder, "--max_train_steps", "2", "--num_warmup_steps", "0"]
    flags += ["--evaluation_steps", "2", "--total_batch_size", "2", "--crop_size", "64"]
    if arguments.window_size:
        stride = min(64, max(1, 64 * arguments.window_stride[0] // 768))
        flags += ["--window_size", "64", "--window_stride", str(stride)]
    arguments = replace(parse_training(flags), architecture=architecture(recipe), **dict.fromkeys(unset))
    results = train(arguments)
    assert results["step"] == 2 and results["skipped_steps"] == 0 and len(results["classes"]) == num_labels(recipe)
    assert AutoConfig.from_pretrained(tmp_path).num_labels == num_labels(recipe)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert bool(processor.window_size) == bool(arguments.window_size)
    if arguments.image_size:
        sizes = {"squash": (64, 128), "long": (64, 64), "keep": (64, 128)}[arguments.resize_mode]
        names = ("height", "width") if arguments.resize_mode == "squash" else ("shortest_edge", "longest_edge")
        assert processor.do_resize and tuple(processor.size[name] for name in names) == sizes


if __name__ == "__main__":
    print(as_table(), end="")
