"""segtx evaluate against the library's own functions, called by hand; what it writes, repeats and refuses."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conformance.fake_hub import FakeHub
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from PIL import Image
from transformers.image_utils import SizeDict

from hf_segtx import SegFormerConfig, SegFormerForSemanticSegmentation, SegFormerImageProcessor
from hf_segtx.cli import main
from hf_segtx.data.scenes import SceneDataset
from hf_segtx.error_analysis import BoundaryIoU, ImageScores, SizeIoU, confusion_pairs
from hf_segtx.evaluation import ranked_picture
from hf_segtx.inference import evaluate, load_model


ROOT = Path(__file__).resolve().parent.parent
IMAGES = 4
SIZES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}


@pytest.fixture(scope="module")
def script():
    return importlib.import_module("hf_segtx.cli.evaluate")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model with random weights and the classes of the scenes, saved with its processor."""
    folder = tmp_path_factory.mktemp("model")
    labels = SceneDataset(1).labels
    config = SegFormerConfig(**SIZES, decoder_hidden_size=16, id2label=labels.id2label, label2id=labels.label2id)
    model = SegFormerForSemanticSegmentation(config).eval()
    model.decode_head.classifier.weight.data.mul_(50)  # so that several classes are predicted
    model.save_pretrained(folder)
    SegFormerImageProcessor(do_resize=False).save_pretrained(folder)
    return folder


def run(script, *words):
    """What the command measures of the first scenes."""
    return script.evaluate(*script.parse_arguments([*map(str, words), "--max_eval_samples", str(IMAGES)]))


def scenes():
    return SceneDataset(IMAGES, seed=2**31 - 1)  # those of load_data


def test_scores_match_the_library(script, checkpoint, tmp_path, capsys):
    output = tmp_path / "new" / "scores"
    run(script, checkpoint, "--output_dir", output, "--worst", 3)
    results, shown = json.loads((output / "evaluation.json").read_text()), capsys.readouterr().out
    model, processor = load_model(checkpoint)
    metrics = [metric(8) for metric in (BoundaryIoU, SizeIoU, ImageScores)]
    scores = evaluate(model, processor, scenes(), progress=False, extra_metrics=metrics)
    boundary, sizes, images = (metric.compute() for metric in metrics)
    assert results["mean_iou"] == scores["mean_iou"]
    assert results["mean_boundary_iou"] == boundary["mean_boundary_iou"]
    assert {size: value["mean_iou"] for size, value in results["sizes"].items()} == {
        size: None if np.isnan(value["mean_iou"]) else value["mean_iou"] for size, value in sizes.items()
    }
    assert tuple(results["mean_iou_interval"]) == images["mean_iou_interval"]
    assert results["confusions"] == confusion_pairs(scores["confusion_matrix"], scenes().labels.names)
    fingerprint = scores["data_fingerprint"]
    assert results["data_fingerprint"] == fingerprint
    iou = images["image_iou"]
    order = np.argsort(iou)[:3]
    worst = [{"name": f"scene_{i:06d}", "mean_iou": iou[i]} for i in order]
    assert results["worst_images"] == worst
    assert Image.open(output / "worst_images.png").height > 3 * 300  # three rows of square images and the legend
    for text in ("boundary IoU %", "95 % interval", " taken for ", worst[0]["name"], fingerprint, results["protocol"]):
        assert text in shown
    assert results["protocol"].startswith("single scale, whole images, padded to multiples of 32, no flip")
    assert results["precision"] == "fp32"


@pytest.mark.parametrize(
    "words, settings, views, said",
    [
        ("--scales 0.5 1 --flip", {}, {"scales": (0.5, 1), "flip": True}, "0.5, 1 of that, whole images, padded to"),
        ("--mode slide --window_size 64 96 --window_stride 32", {"window_size": [64, 96], "window_stride": 32}, {},
         "windows of 64x96 pixels every 32x32"),
        ("--image_size 64 96", {"do_resize": True, "size": SizeDict(shortest_edge=64, longest_edge=96)}, {}, "most 96"),
    ],
)  # fmt: skip
def test_protocol_flags_match_the_library(script, checkpoint, words, settings, views, said):
    results = run(script, checkpoint, *words.split(), "--classes_only")
    model, processor = load_model(checkpoint)
    for name, value in settings.items():
        setattr(processor, name, value)
    assert results["mean_iou"] == evaluate(model, processor, scenes(), progress=False, **views)["mean_iou"]
    assert said in results["protocol"]
    assert "mean_boundary_iou" not in results


def test_flags_overrule_the_saved_windows(script, checkpoint, tmp_path):
    model, processor = load_model(checkpoint)
    model.save_pretrained(tmp_path)
    processor.window_size, processor.window_stride = 64, 48
    processor.save_pretrained(tmp_path)
    for words, said in (
        ([], "windows of 64x64 pixels every 48x48"),
        (["--mode", "slide"], "windows of 64x64 pixels every 48x48"),
        (["--window_stride", "64"], "windows of 64x64 pixels every 64x64"),
        (["--window_size", "96"], "windows of 96x96 pixels every 96x96"),  # another window has another stride
        (["--mode", "whole"], "whole images"),
    ):
        assert said in run(script, tmp_path, *words, "--classes_only")["protocol"]


def test_what_was_written_can_be_repeated(script, checkpoint, tmp_path):
    flags = "--scales 0.5 1 --flip --mode slide --window_size 64 --window_stride 32".split()
    first = run(script, checkpoint, *flags, "--output_dir", tmp_path)
    words = [str(checkpoint), "--from_card", str(tmp_path / "evaluation.json"), "--classes_only"]
    again = script.evaluate(*script.parse_arguments(words))
    assert again["is_as_on_card"] and again["mean_iou"] == first["mean_iou"]
    assert again["protocol"] == first["protocol"] and again["images"] == IMAGES


def test_card_is_compared(script, checkpoint, tmp_path, capsys):
    """Exit status 0, 1 and 2, with all_results.json as train.py writes it, and with a model-index alone."""
    model, processor = load_model(checkpoint)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    arguments = ["--size b0", "--max_train_samples 8800", f"--max_eval_samples {IMAGES}", "--fused True"]
    command = [str(tmp_path), "--from_card", "--classes_only"]
    assert main(["evaluate", *command]) == 2
    assert "the card of" in capsys.readouterr().err

    true = evaluate(model, processor, scenes(), progress=False)["mean_iou"]
    card = {"mean_iou": true, "images": IMAGES, "arguments": arguments, "protocol": "by eye"}
    for changes, status, said in (
        ({}, 0, "the same (difference +0.000"),
        ({"mean_iou": true + 0.0004}, 0, "the same"),  # within what other hardware changes
        ({"mean_iou": true - 0.01}, 1, "NOT the same (difference +1.000"),
        ({"images": 5}, 2, "images is 4 here and 5 on the card"),
        ({"data_fingerprint": "0123456789abcdef"}, 2, "and 0123456789abcdef on the card; give the same data"),
        ({"arguments": ["--validation_dir 'my data/val'"]}, 2, "no such folder or file (data of the card"),
    ):
        (tmp_path / "all_results.json").write_text(json.dumps({**card, **changes}))
        assert main(["evaluate", *command]) == status
        captured = capsys.readouterr()
        assert said in captured.out + captured.err
    assert "protocol on the card: by eye" not in captured.out

    (tmp_path / "all_results.json").unlink()
    score = EvalResult("image-segmentation", "scenes", "scenes", "mean_iou", round(float(true), 4))
    data = ModelCardData(model_name="a model", eval_results=[score])
    ModelCard(f"---\n{data}\n---\n").save(tmp_path / "README.md")
    assert main(["evaluate", *command, "--max_eval_samples", str(IMAGES)]) == 0


def test_flags_of_the_card_come_before_those_given(script, checkpoint, tmp_path):
    lines = ["--validation_dir 'a b/val'", "--do_reduce_labels True", "--learning_rate 1", "--window_size 64"]
    file = tmp_path / "scores.json"
    for key, window_size in (("flags", [64]), ("arguments", [])):  # train.py's windows are in the saved processor
        file.write_text(json.dumps({"mean_iou": 0.5, key: lines}))
        _, arguments = script.parse_arguments(["model", "--from_card", str(file), "--validation_dir", "c"])
        assert arguments.validation_dir == "c" and arguments.do_reduce_labels
        assert arguments.window_size == window_size
        _, arguments = script.parse_arguments(["model", "--from_card", str(file), "--dataset_name", "c"])
        assert arguments.validation_dir is None  # other data instead
    file.write_text(json.dumps({"mean_iou": 0.5, "arguments": ["--dataset_name me/data"]}))
    _, arguments = script.parse_arguments(["model", "--from_card", str(file)])
    assert arguments.train_split == "train"  # of which train.py holds a part out if there is no validation split


def write_scenes(folder: Path, count: int) -> SceneDataset:
    items = SceneDataset(count)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for index in range(count):
        items[index]["image"].save(folder / "images" / f"{index}.png")
        Image.fromarray(items[index]["label"]).save(folder / "masks" / f"{index}.png")
    (folder / "id2label.json").write_text(json.dumps(items.labels.id2label))
    return items


def test_held_out_part_of_training_data_is_scored(script, checkpoint, tmp_path):
    write_scenes(tmp_path / "data", 8)
    words = [str(checkpoint), "--train_dir", str(tmp_path / "data"), "--train_val_split", "0.25"]
    assert script.evaluate(*script.parse_arguments(words))["images"] == 2


@pytest.mark.parametrize("batch_size", [1, 2])
def test_images_that_cannot_be_read(script, checkpoint, tmp_path, capsys, batch_size):
    """Oracle: the same folder without the torn image."""
    write_scenes(tmp_path / "data", 4)
    torn = tmp_path / "data" / "images" / "1.png"
    torn.write_bytes(torn.read_bytes()[:-2000])
    words = [str(checkpoint), "--validation_dir", str(tmp_path / "data"), "--batch_size", str(batch_size)]
    assert main(["evaluate", *words]) == 2
    assert str(torn) in capsys.readouterr().err
    results = script.evaluate(*script.parse_arguments([*words, "--on_error", "skip"]))
    shown = capsys.readouterr().out
    assert "left out, 1 in all" in shown and str(torn) in shown
    (tmp_path / "data" / "masks" / "1.png").unlink()
    torn.unlink()
    expected = script.evaluate(*script.parse_arguments(words))
    assert results["images"] == 3 and len(results["skipped"]) == 1 and not expected["skipped"]
    for key in ("mean_iou", "mean_boundary_iou", "sizes", "data_fingerprint", "worst_images"):
        assert results[key] == expected[key], key


def test_wrong_flags_are_named(script, checkpoint, tmp_path, capsys):
    for words, said in (
        ("--mode slide", "no window size"),
        ("--window_stride 8", "no window size"),
        ("--mode whole --window_size 64", "omit --window_size"),
        ("--window_size 64 64 64", "--window_size has 3 values"),
        ("--image_size 1 2 3", "--image_size has 3 values"),
        ("--scales 1 0", "--scales is 0.0; it must lie in [0.01, 100]"),
        ("--scales nan", "--scales is nan"),
        ("--batch_size 0", "--batch_size is 0; it must be at least 1"),
        ("--device cuda:99", "--device cuda:99 cannot be used"),
        ("--device nothing", "--device nothing cannot be used"),
        ("--model_revision x --from_card nowhere.json", "nowhere.json"),
        ("--validation_dir x --dataset_name y", "give either --dataset_name or --train_dir and --validation_dir"),
        ("--flop", "did you mean --flip?"),
        ("--train_dir nowhere", "no such folder"),
    ):
        assert main(["evaluate", str(checkpoint), *words.split()]) == 2
        assert said in capsys.readouterr().err


def test_a_model_of_other_classes_is_not_asked_for_the_scenes(script, checkpoint, tmp_path, capsys):
    """Which are what is scored if no data are given."""
    folder = shutil.copytree(checkpoint, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"]["0"] = "cell"
    config["label2id"] = {name: int(number) for number, name in config["id2label"].items()}
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["evaluate", str(folder), "--max_eval_samples", "1"]) == 2
    said = capsys.readouterr().err
    assert "'cell'" in said and "or give --validation_dir or --dataset_name: these are the drawn scenes" in said


@pytest.mark.slow
def test_two_processes_match_one(script, checkpoint, tmp_path):
    expected = run(script, checkpoint, "--flip", "--html", tmp_path / "one.html")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29517"]
    command += ["-m", "hf_segtx", "evaluate", str(checkpoint), "--flip", "--max_eval_samples", str(IMAGES)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command += ["--html", str(tmp_path / "two.html"), "--output_dir", str(tmp_path)]
    subprocess.run(command, check=True, env=environment)
    results = json.loads((tmp_path / "evaluation.json").read_text())
    for key in expected.keys() - {"seconds", "images_per_second", "calibration"}:
        assert results[key] == expected[key], key
    assert results["calibration"] == pytest.approx(expected["calibration"], rel=1e-6)  # sums in another order
    assert (tmp_path / "two.html").read_text() == (tmp_path / "one.html").read_text()


@pytest.mark.slow
def test_card_on_the_hub_is_repeated(script, checkpoint, tmp_path):
    """Against a local stand-in of the Hub, in processes of their own: the address is read at import."""
    folder = tmp_path / "scenes"
    shutil.copytree(checkpoint, folder)
    model, processor = load_model(folder)
    true = float(evaluate(model, processor, scenes(), progress=False)["mean_iou"])
    card = {"mean_iou": true, "images": IMAGES, "arguments": [f"--max_eval_samples {IMAGES}"]}
    (folder / "all_results.json").write_text(json.dumps(card))
    with FakeHub() as hub:
        environment = {**os.environ, **hub.env(tmp_path / "home"), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "0"}
        subprocess.run([sys.executable, "-m", "hf_segtx.hub", str(folder), "me/scenes"], check=True, env=environment)
        command = [sys.executable, str(ROOT / "examples/evaluate.py"), "me/scenes", "--from_card", "--classes_only"]
        done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    assert "the same (difference +0.000" in done.stdout


def test_card_that_is_no_measurement_is_refused(script, checkpoint, tmp_path, capsys):
    file = tmp_path / "card.json"
    for text, said in (("{", "is not JSON"), ("[]", "has no mean_iou"), ('{"mean_iou": "high"}', "has no mean_iou")):
        file.write_text(text)
        assert main(["evaluate", str(checkpoint), "--from_card", str(file)]) == 2
        assert f"{file} {said}" in capsys.readouterr().err


def test_worst_picture_of_two_classes():
    """A single class is drawn beside its background."""
    image, label = Image.new("RGB", (32, 24)), np.eye(24, 32, dtype=np.uint8)
    labels = type(scenes().labels)(names=("crack",))
    item = {"image": image, "label": label, "name": "a"}
    picture = ranked_picture([item], [label], [0.25], labels)
    assert picture.width > 3 * 300
