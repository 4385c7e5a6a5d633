"""The data doctor: one illness at a time, planted in small folders; each finding by what it must say."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from hf_segtx.data import load_data
from hf_segtx.data.diagnosis import Report, _show_all, diagnose, examine, overlays, same_images, tables
from hf_segtx.data.scenes import SceneDataset


CLASSES = {"classes": [{"id": 0, "name": "road"}, {"id": 1, "name": "car"}, {"id": 2, "name": "tree"}]}
SIZE = (48, 64)


def scene(seed):
    """An image with large and small structure, as photographs have."""
    random = np.random.default_rng(seed)
    layers = [Image.fromarray(random.integers(0, 256, (*size, 3)).astype(np.uint8)) for size in ((4, 5), (12, 16))]
    layers = [np.asarray(layer.resize(SIZE[::-1], Image.Resampling.BICUBIC), float) for layer in layers]
    return Image.fromarray((0.7 * layers[0] + 0.3 * layers[1]).astype(np.uint8))


def write(folder, count=4, mask=lambda number: np.arange(48 * 64).reshape(SIZE) % 3, first_seed=0, classes=CLASSES):
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(count):
        scene(first_seed + number).save(folder / f"images/{number}.png")
        Image.fromarray(np.asarray(mask(number)).astype(np.uint8)).save(folder / f"masks/{number}.png")
    (folder / "classes.json").write_text(json.dumps(classes))
    return folder


def check(train, validation, **settings):
    datasets = load_data(train_dir=str(train), validation_dir=str(validation), check=False, **settings)[:2]
    reports = [examine(dataset, split, progress=False) for dataset, split in zip(datasets, ("training", "validation"))]
    return reports, diagnose(reports)


@pytest.fixture
def healthy(tmp_path):
    return write(tmp_path / "val", first_seed=100)


def test_healthy_data_and_their_numbers(tmp_path, healthy):
    reports, findings = check(write(tmp_path / "train"), healthy)
    assert findings == []
    assert reports[0].class_pixels.tolist() == [4096, 4096, 4096, 0]  # 4 masks of 3072 pixels in turn
    assert reports[0].class_images.tolist() == [4, 4, 4, 0]
    images = np.stack([np.asarray(Image.open(file)) for file in sorted((tmp_path / "train/images").iterdir())]) / 255
    assert np.allclose(reports[0].mean, images.mean((0, 1, 2)))
    assert np.allclose(reports[0].std, images.std((0, 1, 2)))
    assert "33.333%" in tables(reports) and "64x48" in tables(reports)


def smoothed(number):
    ids = np.zeros(SIZE, np.uint8)
    ids[10:30, 10:40] = 240
    return np.asarray(Image.fromarray(ids).resize((63, 47), Image.Resampling.BICUBIC).resize((64, 48)))


TWO = {"classes": [{"id": 0, "name": "road"}, {"id": 240, "name": "car"}]}
RGB = np.tile(np.array([[(255, 0, 0), (0, 255, 0)]], np.uint8), (48, 32, 1))


@pytest.mark.parametrize(
    ("mask", "classes", "message"),
    [
        (lambda _: 255 * (np.indices(SIZE).sum(0) % 2), CLASSES, "0 and 255 only, .*only 'road'"),
        (lambda _: RGB, CLASSES, "RGB pictures with 2 colours"),
        (lambda _: 1 + np.indices(SIZE).sum(0) % 3, CLASSES, "shifted by one: 0 .. 2 are expected and 3 occurs"),
        (smoothed, TWO, "smoothed edges or JPEG"),
        (lambda n: np.full(SIZE, 7 * (n == 2)), CLASSES, r"25\.00% of the pixels .*\(7; in .*masks/2\.png\): correct"),
        (lambda n: np.zeros((48 - n, 64)), CLASSES, r"3 of 4 training samples cannot be used: .*64x47 pixels"),
        (lambda _: np.full(SIZE, 255), CLASSES, "every pixel of training is ignored"),
    ],
    ids=["0 and 255", "RGB", "shifted", "smoothed", "outside", "size", "ignored"],
)
def test_errors_are_named_with_their_cause(tmp_path, healthy, mask, classes, message):
    if classes is TWO:
        healthy = write(tmp_path / "validation", mask=lambda _: np.full(SIZE, 240), classes=TWO, first_seed=50)
    folder = write(tmp_path / "train", mask=mask, classes=classes)
    if "shifted" in message:  # said only where ids are train ids, as id2label.json says
        for place in (folder, healthy):
            (place / "classes.json").unlink()
            (place / "id2label.json").write_text('{"0": "road", "1": "car", "2": "tree"}')
    _, findings = check(folder, healthy)
    assert findings[0].level == "error" and re.search(message, findings[0].text), findings


@pytest.mark.parametrize(
    ("void", "message"), [({}, "only 'road' could be learned"), ({"ignore_index": 0}, "every pixel of .* is ignored")]
)
def test_what_0_is_beside_ignored_255(tmp_path, void, message):
    classes = {**CLASSES, **void} if void else {"classes": CLASSES["classes"][:1]}
    folder = write(tmp_path / "data", mask=lambda _: 255 * (np.indices(SIZE).sum(0) % 2), classes=classes)
    (folder / "classes.json").write_text(json.dumps({**classes, "void_label": {"id": 255}}))
    _, findings = check(folder, folder)
    errors = [finding.text for finding in findings if finding.level == "error"]
    assert len(errors) == 2 and all(re.search(message, error) for error in errors)  # of both parts


def test_broken_files_are_errors_and_the_rest_is_read(tmp_path, healthy):
    folder = write(tmp_path / "train")
    (folder / "images/1.png").write_bytes(b"no picture")
    reports, findings = check(folder, healthy)
    assert findings[0].level == "error" and "images/1.png" in findings[0].text
    assert reports[0].class_pixels.sum() == 3 * 48 * 64


def test_255_in_some_masks_of_two_classes_is_said(tmp_path):
    """Two of four masks hold 0 and 255, the others 0 and 1; not if 255 is beside the second class."""
    classes = {"classes": CLASSES["classes"][:2]}
    checkers = np.indices(SIZE).sum(0) % 2
    odd = write(tmp_path / "odd", mask=lambda n: checkers * (255 if n < 2 else 1), classes=classes)
    void = write(tmp_path / "void", mask=lambda n: np.where(np.arange(64) < 9, 255, checkers), classes=classes)
    _, findings = check(odd, void)
    assert [f.text[:38] for f in findings if "0 and 255" in f.text] == ["2 of 4 training masks hold 0 and 255 o"]


def test_masks_of_two_kinds_are_said(tmp_path, healthy):
    folder = write(tmp_path / "train", mask=lambda number: RGB if number == 0 else np.zeros(SIZE))
    reports, findings = check(folder, healthy)
    assert any("1 of 4 training masks hold colours, the others ids" in finding.text for finding in findings)
    assert dict(reports[0].raw_pixels) == {0: 3 * 48 * 64}


def test_reduced_labels_that_should_not_be(tmp_path):
    """Ids 0 .. 2 read as if 0 were unlabelled: the last class, 3, never occurs."""
    for place in ("train", "val"):
        write(tmp_path / place, first_seed=len(place))
        (tmp_path / place / "classes.json").unlink()
        (tmp_path / place / "id2label.json").write_text('{"0": "road", "1": "car", "2": "tree"}')
    _, findings = check(tmp_path / "train", tmp_path / "val", do_reduce_labels=True)
    assert any(f.level == "warning" and "omit do_reduce_labels" in f.text for f in findings)


def test_absent_and_unlearned_classes(tmp_path, healthy):
    _, findings = check(write(tmp_path / "train", mask=lambda _: np.zeros(SIZE)), healthy)
    texts = [finding.text for finding in findings if finding.level == "warning"]
    assert any("2 of 3 classes are in no training mask: car, tree" in text for text in texts)
    assert any("validation has classes that training does not show: car, tree" in text for text in texts)


def test_the_same_picture_in_both_splits_is_found(tmp_path, healthy):
    """Once at half the size, once as JPEG; the other pictures are different ones."""
    folder = write(tmp_path / "train", count=12)
    large = Image.open(folder / "images/3.png")
    large.resize((32, 24)).resize((64, 48)).save(healthy / "images/0.png")
    (healthy / "images/2.png").unlink()
    Image.open(folder / "images/7.png").save(healthy / "images/2.jpg", quality=75)
    reports, findings = check(folder, healthy)
    pairs = same_images(reports[0].samples, reports[1].samples)
    names = [[report.samples[i].name[-5] for report, i in zip(reports, pair)] for pair in pairs]
    assert names == [["3", "0"], ["7", "2"]]
    assert any("2 of 4 validation images are in the training data" in finding.text for finding in findings)


def moved(mask, down, right):
    """255 where nothing comes from."""
    rows, columns = np.indices(mask.shape) - np.array([down, right])[:, None, None]
    inside = (rows >= 0) & (rows < mask.shape[0]) & (columns >= 0) & (columns < mask.shape[1])
    return np.where(inside, mask[rows % mask.shape[0], columns % mask.shape[1]], 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mask: mask, None),
        (lambda mask: moved(mask, 1, -2), None),  # borders that are drawn a little outside
        (lambda mask: moved(mask, 6, 0), "training masks look shifted .* by 6 pixels down and 0 to the"),
        (lambda mask: moved(mask, -5, 8), "training masks look shifted .* by 5 pixels up and 8 to the right"),
        (lambda mask: mask[:, ::-1], "training masks look mirrored left to right"),
        (lambda mask: mask[::-1], "training masks look upside down"),
        (lambda mask: mask[::-1, ::-1], "training masks look turned by 180 degrees"),
    ],
)
def test_masks_beside_what_they_show_are_found(tmp_path, change, message):
    scenes = SceneDataset(8, seed=0, size=(96, 128))
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for number in range(len(scenes)):
        item = scenes[number]
        item["image"].save(tmp_path / f"images/{number}.png")
        Image.fromarray(np.ascontiguousarray(change(item["label"]))).save(tmp_path / f"masks/{number}.png")
    (tmp_path / "id2label.json").write_text(json.dumps(scenes.labels.id2label))
    _, findings = check(tmp_path, tmp_path)
    errors = [finding.text for finding in findings if finding.level == "error"]
    assert not errors if message is None else re.search(message, errors[0])


def test_left_and_right_are_mentioned(tmp_path):
    classes = {"classes": [{"id": id, "name": name} for id, name in enumerate(("Left-arm", "Hat", "Right-arm"))]}
    folder = write(tmp_path / "data", classes=classes)
    _, findings = check(folder, folder)
    assert any("these change places: Left-arm and Right-arm" in finding.text for finding in findings)


def test_overlays_show_every_class(tmp_path, healthy):
    """The one mask in thirty with a class is among the sixteen."""
    folder = write(tmp_path / "train", count=30, mask=lambda number: np.full(SIZE, 2 if number == 17 else 0))
    dataset = load_data(train_dir=str(folder), validation_dir=str(healthy), check=False)[0]
    report = examine(dataset, "training", progress=False)
    chosen = _show_all(np.stack([sample.pixels[:-1] > 0 for sample in report.samples]), 16)
    assert len(set(chosen)) == 16 and 17 in chosen
    assert overlays(dataset, report).width > 1000
    assert overlays(dataset, Report("training", dataset.labels, [])) is None


def test_command_prints_a_verdict(tmp_path, healthy, capsys):
    from hf_segtx.cli import check

    words = f"--train_dir {write(tmp_path / 'train')} --validation_dir {healthy} --num_workers 0".split()
    words += ["--output_dir", str(tmp_path / "found")]
    assert check.run(words) == 0
    assert "verdict: ready (0 errors, 0 warnings)" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "found/check.json").read_text())
    assert numbers["splits"]["training"]["classes"][1] == {"id": 1, "name": "car", "pixels": 4096, "images": 4}
    assert Image.open(tmp_path / "found/overlays.png").width > 1000
    Image.fromarray(np.full(SIZE, 9, np.uint8)).save(tmp_path / "train/masks/0.png")
    assert check.run(words) == 1
    assert "do not train on these data yet (1 errors" in capsys.readouterr().out
