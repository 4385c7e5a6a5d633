"""The check before training: one illness at a time, planted in small folders."""

import json
import logging
import re

import numpy as np
import pytest
from PIL import Image
from small_data import CLASSES, write_folder

from hf_segtx.data import SegmentationDataset, load_data, read_mask
from hf_segtx.data.checks import check_data
from hf_segtx.data.diagnosis import diagnose, examine
from hf_segtx.data.folders import folder_records
from hf_segtx.data.labels import Labels


def test_bad_files_are_collected_in_one_error(tmp_path):
    write_folder(tmp_path, count=8)
    (tmp_path / "images/000.png").write_bytes(b"")
    good = (tmp_path / "images/001.png").read_bytes()
    (tmp_path / "images/001.png").write_bytes(good[: len(good) // 2])
    Image.new("L", (5, 6)).save(tmp_path / "masks/002.png")
    Image.new("L", (32, 24), 7).save(tmp_path / "masks/003.png")
    Image.new("RGB", (32, 24), (1, 2, 3)).save(tmp_path / "masks/004.png")
    with pytest.raises(ValueError) as raised:
        load_data(train_dir=str(tmp_path), validation_dir=str(tmp_path))
    lines = str(raised.value).splitlines()
    assert lines[0] == "5 of 8 checked training samples are bad:"
    for line, parts in zip(
        lines[1:],
        [
            ("images/000.png", "cannot be decoded", "replace it"),
            ("images/001.png", "cannot be decoded", "truncated"),
            ("masks/002.png", "the mask is 5x6 pixels", "images/002.png 32x24", "export it again"),
            ("masks/003.png", "768 of 768 pixels have value 7", "classes are 0 .. 2", "correct the mask"),
            ("masks/004.png", "(1, 2, 3)", "correct the colours in classes.json"),
        ],
        strict=True,
    ):
        assert all(part in line for part in parts), line


def test_at_most_ten_bad_files_are_listed(tmp_path):
    write_folder(tmp_path, count=13, ids=(5,))
    with pytest.raises(ValueError, match="13 of 13 checked") as raised:
        check_data(SegmentationDataset(folder_records(tmp_path), Labels.from_folder(tmp_path)))
    assert len(str(raised.value).splitlines()) == 12 and str(raised.value).endswith("... and 3 more")


def test_masks_of_0_and_255_are_explained(tmp_path, caplog):
    write_folder(tmp_path / "many", ids=(0, 255))
    with pytest.raises(ValueError, match="hold 0 and 255 only, but there are 3 classes"):
        load_data(train_dir=str(tmp_path / "many"))
    folder = write_folder(tmp_path / "one", ids=(0, 255), classes=[{"id": 0, "name": "crack"}])
    with pytest.raises(ValueError, match="only 'crack' could be learned"):
        load_data(train_dir=str(folder))
    for names in (["ground", "crack"], ["crack"]):
        folder = write_folder(tmp_path / str(len(names)), ids=(0, 255), classes=None)
        (folder / "id2label.json").write_text(json.dumps(names))
        with caplog.at_level(logging.INFO):
            train, _, labels = load_data(train_dir=str(folder))
        assert "255 is taken as the class 'crack'" in caplog.text
        assert np.array_equal(train[0]["label"], read_mask(train.records[train.indices[0]][1]) // 255)
        assert labels.map(np.array([[255]])).item() == 1
        caplog.clear()


def test_palettes_that_number_the_classes_anew_are_refused(tmp_path):
    """Coloured masks that Pillow makes indexed pictures of; a palette in the order of the ids, or of other colours, is
    none."""
    write_folder(tmp_path)
    by_id = {entry["id"]: entry["color"] for entry in CLASSES}
    for number in range(6):
        file = tmp_path / f"masks/{number:03}.png"
        ids = np.asarray(Image.open(file))
        colors = np.array([[by_id[value] for value in row] for row in ids.tolist()], np.uint8)
        Image.fromarray(colors).convert("P", palette=Image.Palette.ADAPTIVE, colors=4).save(file)
    folder = {"train_dir": str(tmp_path), "validation_dir": str(tmp_path)}
    with pytest.raises(ValueError, match=r"masks/000\.png: value \d is '[\w ]+', but its colour in the palette, \("):
        load_data(**folder)
    assert "its colour in the palette" in str(examine(load_data(**folder, check=False)[0], "training").samples[0].error)
    for palette in ([by_id.get(i, (1, 2, 3)) for i in range(10)], [(i, 2, 3) for i in range(10)]):
        for number in range(6):
            mask = Image.fromarray(np.random.default_rng(number).choice([0, 1, 2, 9], (24, 32)).astype(np.uint8))
            mask.putpalette(np.ravel(palette).tolist())
            mask.save(tmp_path / f"masks/{number:03}.png")
        train, _, _ = load_data(**folder)
        assert train[3]["label"].max() == 255 and train[3]["label"].min() == 0


@pytest.mark.parametrize("kind", ["colours", "greys", "same"])
def test_palettes_that_differ_from_mask_to_mask_are_refused(tmp_path, kind, caplog):
    """The classes have no colours, and each mask its own numbers, as in small files that programs write."""
    write_folder(tmp_path)
    (tmp_path / "classes.json").write_text(json.dumps(["sky", "road", "tree"]))
    palettes = {
        "colours": [[0, 0, 0, 255, 0, 0, 0, 255, 0], [0, 0, 0, 0, 255, 0, 255, 0, 0]],
        "greys": [[0, 0, 0, 5, 5, 5, 9, 9, 9], [0, 0, 0, 2, 2, 2, 9, 9, 9]],
        "same": [[0, 0, 0, 127, 127, 127, 255, 255, 255]] * 2,
    }[kind]
    for number in range(6):
        mask = Image.fromarray(np.random.default_rng(number).integers(0, 3, (24, 32)).astype(np.uint8))
        mask.putpalette(palettes[number % 2])
        mask.save(tmp_path / f"masks/{number:03}.png")
    folder = {"train_dir": str(tmp_path), "validation_dir": str(tmp_path)}
    message = {
        "colours": r"the colour \(0, 255, 0\) has the number 2 in one and 1",
        "greys": "number 1 is the grey 5 in",
    }
    report = examine(load_data(**folder, check=False)[0], "training")
    findings = [finding for finding in diagnose([report]) if finding.level == "error"]
    if kind == "same":
        load_data(**folder)
        assert "6 of 6 validation images are files of the training data, too" in caplog.text
        assert not findings
        return
    with pytest.raises(ValueError, match=message[kind]):
        load_data(**folder)
    assert any(re.search(message[kind], finding.text) for finding in findings)


@pytest.mark.parametrize("orientation, size, is_said", [(3, (24, 32), True), (6, (24, 24), True), (6, (24, 32), False)])
def test_images_that_exif_turns_and_masks_that_it_does_not(tmp_path, caplog, orientation, size, is_said):
    """Where the sizes agree anyhow, nobody knows whether the masks are of the turned images."""
    write_folder(tmp_path, size=size)
    for number in range(6):
        image = Image.open(tmp_path / f"images/{number:03}.png").convert("RGB")
        exif = image.getexif()
        exif[0x0112] = orientation
        image = image if size[0] == size[1] else image.rotate(90 * (orientation == 6), expand=True)
        image.save(tmp_path / f"images/{number:03}.png", exif=exif)
    load_data(train_dir=str(tmp_path), validation_dir=str(tmp_path))
    assert ("EXIF turns the images of 6 of all 6 training masks" in caplog.text) == is_said


def test_all_ignored_is_refused(tmp_path):
    write_folder(tmp_path, ids=(9,))
    with pytest.raises(ValueError, match="every pixel of all 6 training masks is ignored"):
        load_data(train_dir=str(tmp_path), validation_dir=str(tmp_path))


def test_absent_classes_are_named(tmp_path, caplog):
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "val", ids=(0, 2))
    load_data(train_dir=str(tmp_path / "train"), validation_dir=str(tmp_path / "val"))
    assert [record.getMessage() for record in caplog.records] == [
        "1 of 3 classes are in none of all 6 validation masks: car"
    ]
