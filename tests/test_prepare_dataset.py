"""segtx prepare against the folders that it reads, through the loader that training uses."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from conformance.fake_hub import FakeHub
from huggingface_hub import DatasetCard
from PIL import Image

from hf_segtx.cli import main
from hf_segtx.cli import prepare as prepare_command
from hf_segtx.data import load_data
from hf_segtx.data.labels import Labels
from hf_segtx.data.layouts import find_layout


SIZE = (12, 16)


@pytest.fixture
def prepare():
    """Runs the command in this process; returns the names of its files."""

    def run(source, output, *words):
        where = "--dataset_name" if "://" in str(source) or (Path(source) / "data").is_dir() else "--train_dir"
        where = "--dataset_name" if str(source).endswith(".tar") else where
        words = [where, str(source), "--output_dir", str(output), "--num_workers", "0", *words]
        assert prepare_command.run(words) == 0
        return sorted(path.name for path in (output / "data").iterdir())

    return run


def write_pair(image, mask, values, seed):
    random = np.random.default_rng(seed)
    for file, array in (
        (image, random.integers(0, 256, (*SIZE, 3))),
        (mask, random.choice(values, SIZE)),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array.astype(np.uint8)).save(file)


def loveda(root, train=5, validation=2):
    for split, count in (("Train", train), ("Val", validation)):
        for number in range(count):
            place = root / split / "Urban"
            write_pair(place / f"images_png/{number}.png", place / f"masks_png/{number}.png", range(8), number)
    return root


@pytest.mark.parametrize("streaming", [False, True])
def test_train_ids_come_back_as_the_reader_gives_them(tmp_path, prepare, streaming):
    source, output = loveda(tmp_path / "loveda"), tmp_path / "prepared"
    files = prepare(source, output, "--shard_size", "0.0015")
    assert sum(name.startswith("train-") for name in files) > 1 and not any("unfinished" in name for name in files)
    train, validation, labels = load_data(dataset_name=str(output), streaming=streaming, cache_dir=str(tmp_path / "c"))
    assert (labels.names, labels.palette) == (Labels.named("loveda").names, Labels.named("loveda").palette)
    for dataset, split, count in ((train, "train", 5), (validation, "validation", 2)):
        layout = find_layout(source)
        records, contract = layout.records(split), layout.labels
        assert len(dataset) == len(records) == count
        for index, (image, mask) in enumerate(records):
            expected = contract.map(np.asarray(Image.open(mask)))
            assert np.array_equal(dataset[index]["label"], expected)
            assert np.array_equal(dataset[index]["image"], Image.open(image))


def test_files_say_what_they_hold(tmp_path, prepare):
    source, output = loveda(tmp_path / "loveda"), tmp_path / "prepared"
    prepare(source, output)
    table = datasets.load_dataset(str(output), split="validation", cache_dir=str(tmp_path / "cache"))
    assert table.column_names == ["image", "label"] and table[0]["label"].mode == "L"
    file = pq.ParquetFile(output / "data/train-00000-of-00001.parquet")
    names = [entry["name"] for entry in json.loads(file.schema_arrow.metadata[b"classes.json"])["classes"]]
    assert names == list(Labels.named("loveda").names)
    row = file.read().to_pylist()[0]
    assert row["image"]["bytes"] == (source / "Train/Urban/images_png/0.png").read_bytes()  # not encoded again
    card = DatasetCard.load(output / "README.md")
    assert card.data.task_categories == ["image-segmentation"] and "| 4 | barren | #9f81b7 |" in card.text
    assert "5 images in `train`, 2 images in `validation`" in card.text


def test_a_stopped_run_goes_on_after_its_last_whole_file(tmp_path, prepare):
    source, output = loveda(tmp_path / "loveda"), tmp_path / "prepared"
    files = prepare(source, output, "--shard_size", "0.0015")
    before = {name: (output / "data" / name).read_bytes() for name in files}
    missing = output / "data" / files[1]
    missing.rename(missing.with_suffix(".unfinished"))
    missing.with_suffix(".unfinished").write_bytes(b"half")
    times = {name: (output / "data" / name).stat().st_mtime_ns for name in files if name != files[1]}
    assert prepare(source, output, "--shard_size", "0.0015") == files
    assert {name: (output / "data" / name).read_bytes() for name in files} == before
    assert {name: (output / "data" / name).stat().st_mtime_ns for name in times} == times
    with pytest.raises(ValueError, match="made with other settings"):
        prepare(source, output, "--shard_size", "9")


def own_folders(root, values=(0, 1)):
    for split in ("train", "val"):
        for number in range(3):
            image, mask = root / split / f"images/{number}.jpg", root / split / f"masks/{number}.png"
            write_pair(image, mask, values, number)
        (root / split / "id2label.json").write_text('{"0": "road", "1": "crack"}')
    return root


def test_own_folders_and_pairs(tmp_path, prepare):
    source = own_folders(tmp_path / "own")
    files = prepare(source, tmp_path / "prepared")
    assert files == ["train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"]
    (source / "train/pairs.csv").write_text("image,mask\nimages/0.jpg,masks/0.png\n")
    assert prepare(source / "train/pairs.csv", tmp_path / "pairs") == ["train-00000-of-00001.parquet"]
    (source / "val/id2label.json").write_text('{"0": "road", "1": "puddle"}')
    with pytest.raises(ValueError, match="class 1 is 'crack' .* but 'puddle' in"):
        prepare(source, tmp_path / "other")
    prepare(own_folders(tmp_path / "binary", (0, 255)), tmp_path / "prepared_binary")  # 255 is the crack
    train, _, labels = load_data(dataset_name=str(tmp_path / "prepared_binary"))
    assert labels.names == ("road", "crack") and {int(i) for item in train for i in np.unique(item["label"])} == {0, 1}


def test_annotations_become_masks_and_the_card_has_no_local_paths(tmp_path, prepare):
    for number in range(3):
        write_pair(tmp_path / f"own/photos/{number}.png", tmp_path / "unused.png", [0], number)
    polygon = [4, 2, 10, 2, 10, 8, 4, 8]
    content = {
        "images": [{"id": number, "file_name": f"{number}.png"} for number in range(3)],
        "annotations": [{"id": 1, "image_id": 2, "category_id": 5, "segmentation": [polygon]}],
        "categories": [{"id": 5, "name": "crack"}],
    }
    (tmp_path / "own/instances.json").write_text(json.dumps(content))
    prepare(tmp_path / "own", tmp_path / "prepared")
    card = (tmp_path / "prepared/README.md").read_text()
    assert "# own\n" in card and str(tmp_path / "own") not in card
    train, validation, labels = load_data(
        dataset_name=str(tmp_path / "prepared"), streaming=True, train_val_split=0.3, check=False
    )
    expected = np.zeros(SIZE, int)
    expected[2:8, 4:10] = 1
    assert labels.names == ("background", "crack")
    assert np.array_equal(sum(item["label"].astype(int) for part in (train, validation) for item in part), expected)


def test_bad_samples_stop_or_are_left_out_and_said(tmp_path, prepare, capsys):
    source = own_folders(tmp_path / "own")
    (source / "train/images/1.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"train/images/1\.jpg"):
        prepare(source, tmp_path / "prepared")
    prepare(source, tmp_path / "skipped", "--on_error", "skip")
    out = capsys.readouterr().out
    assert "left out of train: " in out and "images/1.jpg" in out and "2 samples in train" in out
    with pytest.raises(ValueError, match="no such folder or file"):
        prepare(tmp_path / "nothing", tmp_path / "x")


def test_folders_of_training_and_validation(tmp_path, prepare, capsys):
    """Each folder is its split, whatever it is called; of a folder alone all splits are written, or those named."""
    source = own_folders(tmp_path / "own")
    (source / "val").rename(tmp_path / "measured")
    words = ["--validation_dir", str(tmp_path / "measured")]
    files = ["train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"]
    assert prepare(source / "train", tmp_path / "both", *words) == files
    train, validation, _ = load_data(dataset_name=str(tmp_path / "both"), cache_dir=str(tmp_path / "cache"))
    assert np.array_equal(validation[1]["label"], np.asarray(Image.open(tmp_path / "measured/masks/1.png")))
    assert prepare(source / "train", tmp_path / "one", *words, "--splits", "validation") == files[1:]
    assert main(["prepare", *words, "--output_dir", str(tmp_path / "alone"), "--num_workers", "0"]) == 0
    assert [file.name for file in (tmp_path / "alone/data").iterdir()] == files[1:]
    for wrong, said in (
        (["--train_dir", str(source / "train"), "--splits", "test"], "there is no split 'test'; the splits are train"),
        ([], "give --train_dir, --validation_dir or --dataset_name"),
        (["--train_dir", "a", "--shard_size", "0"], "--shard_size is 0.0; it must lie in (0, 1e9]"),
        (["--train_dir", "a", "--dataset_name", "b"], "not both"),
        (["--train_dir", str(source / "train"), "--output_dir", str(source)], "is not empty; name another"),
    ):
        assert main(["prepare", *wrong]) == 2
        assert said in capsys.readouterr().err


def test_files_without_a_partner_are_said(tmp_path, prepare, capsys):
    source = own_folders(tmp_path / "own")
    (source / "train/masks/1.png").unlink()
    prepare(source, tmp_path / "prepared", "--on_error", "skip")
    out = capsys.readouterr().out
    assert "left out of train: " in out and "1.jpg" in out and "2 samples in train" in out


@pytest.mark.slow
def test_upload_to_a_stand_in_of_the_hub(tmp_path):
    """In a process of its own: huggingface_hub reads its address at import."""
    source, output = loveda(tmp_path / "loveda", 2, 1), tmp_path / "prepared"
    words = ["-m", "hf_segtx", "prepare", "--train_dir", str(source), "--output_dir", str(output)]
    words += ["--push_to_hub", "--hub_dataset_id", "me/loveda"]
    with FakeHub() as hub:
        environment = {**os.environ, **hub.env(str(tmp_path / "home")), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, *words, "--num_workers", "0"], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        repository = hub.repos["dataset", "me/loveda"]
    files = repository["commits"][-1][1]
    assert repository["private"] and "data/train-00000-of-00001.parquet" in files
    assert {"README.md", "classes.json", "id2label.json"} <= set(files) and "prepare.json" not in files


@pytest.mark.parametrize("kind", ["parquet", "tar", "address"])
def test_other_data_sets_come_back_as_they_were(tmp_path, prepare, kind):
    """From Parquet, WebDataset archives and an address, against the folder that they were made from."""
    source = own_folders(tmp_path / "own")
    if kind == "tar":
        place = tmp_path / "train.tar"
        with tarfile.open(place, "w") as archive:
            for number in range(3):
                archive.add(source / f"train/images/{number}.jpg", f"{number}.jpg")
                archive.add(source / f"train/masks/{number}.png", f"{number}.png")
    else:
        place = tmp_path / "first"
        prepare(source, place)
    (tmp_path / "id2label.json").write_text('["road", "crack"]')
    address = f"file://{place}" if kind == "address" else place
    files = prepare(address, tmp_path / "again", "--cache_dir", str(tmp_path / "cache"))
    assert len(files) == (1 if kind == "tar" else 2)
    train, _, labels = load_data(dataset_name=str(tmp_path / "again"), streaming=True, train_val_split=0.3)
    assert labels.names == ("road", "crack")
    for index, item in zip(train.indices, train, strict=True):
        assert np.array_equal(item["image"], Image.open(source / f"train/images/{index}.jpg"))
        assert np.array_equal(item["label"], Image.open(source / f"train/masks/{index}.png"))


def test_images_of_many_channels_stay_what_they_are(tmp_path, prepare):
    random = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "own" / kind).mkdir(parents=True)
    for number in range(4):
        np.save(tmp_path / f"own/images/{number}.npy", random.integers(0, 65536, (5, 6, 7)).astype(np.uint16))
        np.save(tmp_path / f"own/masks/{number}.npy", random.integers(0, 2, (6, 7)))
    (tmp_path / "own/id2label.json").write_text('["road", "crack"]')
    prepare(tmp_path / "own", tmp_path / "prepared", "--num_channels", "5")
    for streaming in (False, True):
        train, _, _ = load_data(
            dataset_name=str(tmp_path / "prepared"), num_channels=5, streaming=streaming, cache_dir=str(tmp_path / "c")
        )
        for index, item in zip(train.indices, train, strict=True):
            expected = np.load(tmp_path / f"own/images/{index}.npy") / np.float32(257)
            assert np.array_equal(item["image"], expected)
            assert np.array_equal(item["label"], np.load(tmp_path / f"own/masks/{index}.npy"))
