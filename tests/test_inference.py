"""Prediction, evaluation, their scripts and the model card: against counting by hand and transformers' pipeline."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conformance.fake_hub import FakeHub
from huggingface_hub import ModelCard
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, pipeline

from hf_segtx import SegFormerConfig, SegFormerForSemanticSegmentation, SegFormerImageProcessor
from hf_segtx.hub import check_token, write_card
from hf_segtx.inference import as_json, evaluate, load_model, predict, protocol
from hf_segtx.scenes import SceneDataset


ROOT = Path(__file__).resolve().parent.parent
SIZES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(f"examples_{name}", ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkpoint(tmp_path):
    """A model with random weights and the classes of the scenes, saved with its processor."""
    labels = SceneDataset(1).labels
    config = SegFormerConfig(**SIZES, decoder_hidden_size=16, id2label=labels.id2label, label2id=labels.label2id)
    model = SegFormerForSemanticSegmentation(config).eval()
    model.decode_head.classifier.weight.data.mul_(50)  # so that several classes are predicted
    model.save_pretrained(tmp_path / "model")
    SegFormerImageProcessor(size={"shortest_edge": 64}).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


class MixedScenes(torch.utils.data.Dataset):
    """Five scenes of two sizes."""

    labels = SceneDataset(1).labels

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return SceneDataset(5, size=(64, 64) if index % 2 else (64, 96))[index]


def test_predict_matches_one_image_at_a_time(checkpoint):
    model, processor = load_model(checkpoint)
    images = [item["image"] for item in MixedScenes()]
    together = predict(model, processor, images)
    for image, label_map in zip(images, together, strict=True):
        assert label_map.shape == (image.height, image.width)
        alone = predict(model, processor, [image])[0]
        # batching changes rounding, which changes the class where two are equally likely
        assert (alone == label_map).float().mean() > 0.999


@pytest.mark.parametrize("batch_size", [1, 3])
def test_evaluate_matches_counting(checkpoint, batch_size):
    model, processor = load_model(checkpoint)
    dataset = MixedScenes()
    counts = np.zeros((8, 8))
    for item in dataset:
        label_map = predict(model, processor, [item["image"]])[0].numpy()
        valid = item["label"] != 255
        np.add.at(counts, (item["label"][valid], label_map[valid]), 1)
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    expected = np.mean(counts.diagonal()[union > 0] / union[union > 0])
    model.train()
    before = torch.get_rng_state()
    results = evaluate(model, processor, dataset, batch_size=batch_size, progress=False)
    assert results["mean_iou"] == pytest.approx(expected, abs=1e-3)  # see test_predict_matches_one_image_at_a_time
    assert model.training and torch.equal(before, torch.get_rng_state())  # training goes on as if nothing had been


def test_json_shows_absent_classes(checkpoint):
    model, processor = load_model(checkpoint)
    results = evaluate(model, processor, MixedScenes(), progress=False)
    results["per_category_iou"][3] = results["per_category_accuracy"][3] = float("nan")
    names = list(MixedScenes.labels.names)
    assert json.loads(json.dumps(as_json(results, names), allow_nan=False))["classes"][names[3]]["iou"] is None


def test_protocol_tells_how_images_are_resized():
    assert "at their own size" in protocol(SegFormerImageProcessor(do_resize=False))
    assert "squashed to 64x32" in protocol(SegFormerImageProcessor(size={"height": 64, "width": 32}))
    assert "512 pixels, longest at most 2048" in protocol(SegFormerImageProcessor())


def test_load_model_reads_transformers_segformer_as_ours(tmp_path):
    theirs = SegformerForSemanticSegmentation(SegformerConfig(**SIZES, decoder_hidden_size=16)).eval()
    theirs.save_pretrained(tmp_path)
    SegFormerImageProcessor().save_pretrained(tmp_path)
    ours, _ = load_model(tmp_path)
    assert isinstance(ours, SegFormerForSemanticSegmentation)
    pixel_values = torch.randn(1, 3, 64, 64)
    # the same operations in another order
    torch.testing.assert_close(ours(pixel_values).logits, theirs(pixel_values).logits, atol=1e-5, rtol=1e-4)


def test_load_model_refuses_missing_weights(tmp_path, checkpoint):
    model, processor = load_model(checkpoint)
    model.backbone.save_pretrained(tmp_path / "backbone")
    processor.save_pretrained(tmp_path / "backbone")
    with pytest.raises(ValueError, match="lacks .* weights, such as decode_head"):
        load_model(tmp_path / "backbone")
    with pytest.raises(ValueError, match="no config.json"):
        load_model(tmp_path)


def test_evaluate_script_refuses_other_class_names(tmp_path, checkpoint):
    for kind, picture in (("images", Image.new("RGB", (64, 64))), ("masks", Image.new("L", (64, 64)))):
        (tmp_path / "data" / kind).mkdir(parents=True)
        picture.save(tmp_path / "data" / kind / "0.png")
    (tmp_path / "data" / "id2label.json").write_text('{"0": "wall", "1": "door"}')
    script = load_script("evaluate")
    with pytest.raises(ValueError, match="class 0 is 'wall' in the data"):
        script.main(script.parse_arguments([str(checkpoint), "--validation_dir", str(tmp_path / "data")]))


def test_predict_script_matches_pipeline(tmp_path, checkpoint):
    pictures = tmp_path / "pictures"
    (pictures / "more").mkdir(parents=True)
    for number, file in enumerate(("a.png", "more/b.png")):
        MixedScenes()[number]["image"].save(pictures / file)
    (pictures / "broken.jpg").write_text("not a picture")
    script = load_script("predict")
    out = tmp_path / "out"
    failures = script.main(script.parse_arguments([str(checkpoint), str(pictures), "--output_dir", str(out)]))
    assert list(failures) == [pictures / "broken.jpg"] and "cannot be decoded" in failures[pictures / "broken.jpg"]
    segment = pipeline("image-segmentation", model=str(checkpoint))
    for name in ("a", "more/b"):
        label_map = Image.open(out / f"{name}_labels.png")
        assert label_map.mode == "P"
        expected = np.full((label_map.height, label_map.width), -1)
        for part in segment(str(pictures / f"{name}.png")):
            expected[np.asarray(part["mask"]) > 0] = segment.model.config.label2id[part["label"]]
        assert (np.asarray(label_map) == expected).all()
        assert Image.open(out / f"{name}_overlay.png").height > label_map.height  # the legend is below


def test_predict_script_finds_files_folders_and_patterns(tmp_path):
    script = load_script("predict")
    (tmp_path / "a/b").mkdir(parents=True)
    for file in ("a/1.png", "a/b/2.jpg", "a/b/note.txt"):
        (tmp_path / file).write_text("")
    one, two = tmp_path / "a/1.png", tmp_path / "a/b/2.jpg"
    assert script.find_images([str(tmp_path / "a")]) == {one: Path("1"), two: Path("b/2")}
    assert script.find_images([str(two)]) == {two: Path("2")}
    assert script.find_images([str(tmp_path / "a/**/*.jpg")]) == {two: Path("b/2")}
    with pytest.raises(ValueError, match="no pictures"):
        script.find_images([str(tmp_path / "*.webp")])
    (tmp_path / "a/1.jpg").write_text("")
    with pytest.raises(ValueError, match="rename one"):
        script.find_images([str(tmp_path / "a")])


def test_card_reads_back(tmp_path, checkpoint):
    model, processor = load_model(checkpoint)
    results = as_json(evaluate(model, processor, MixedScenes(), progress=False), MixedScenes.labels.names)
    results["protocol"] = protocol(processor)
    template = ROOT / "model_cards/segformer.md"
    write_card(tmp_path, template, results, name="me/my-model", data="scenes", training="900 steps")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.pipeline_tag == "image-segmentation"
    assert card.data.eval_results[0].metric_value == pytest.approx(results["mean_iou"], abs=1e-4)  # four digits
    assert f"{100 * results['mean_iou']:.2f} %" in card.text and "| sky |" in card.text and "900 steps" in card.text


def test_token_is_checked_before_anything_else():
    with pytest.raises(ValueError, match="Hub"):  # offline here; without a network it is the same message
        check_token("hf_no")


@pytest.mark.slow
def test_training_pushes_the_final_model_only(tmp_path):
    """Against a local stand-in of the Hub, in a process of its own: the address is read at import."""
    with FakeHub() as hub:
        environment = {**os.environ, **hub.env(tmp_path / "home"), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "0"}
        flags = ["--config_overrides", json.dumps({**SIZES, "decoder_hidden_size": 16}), "--max_train_steps", "1"]
        flags += ["--num_warmup_steps", "0", "--max_eval_samples", "2", "--per_device_train_batch_size", "2"]
        flags += ["--push_to_hub", "--hub_model_id", "me/scenes", "--output_dir", str(tmp_path / "out")]
        subprocess.run([sys.executable, str(ROOT / "examples/train.py"), *flags], check=True, env=environment)
        files = hub.repos["model", "me/scenes"]["commits"][-1][1]
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"} <= set(files)
    assert not [file for file in files if file.startswith(("step_", "best", "last"))]
