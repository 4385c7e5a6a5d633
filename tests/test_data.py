"""Reading, checks, augmentation and loaders, on small files that the tests write."""

import io
import json
import tarfile
from itertools import islice

import numpy as np
import pytest
from PIL import Image
from small_data import CLASSES, PROCESSOR, write_folder, write_sample

from hf_segtx.data import SegmentationDataset, load_data, loaders
from hf_segtx.data import shards as shards_module
from hf_segtx.data.augmentation import TrainingTransform
from hf_segtx.data.folders import folder_records
from hf_segtx.data.labels import Labels
from hf_segtx.data.loaders import ShuffledBatches, training_dataloader
from hf_segtx.data.tables import find_columns


# --- Reading ----------------------------------------------------------------------------------------------------------


def test_folder_items_match_what_was_written(tmp_path):
    write_folder(tmp_path)
    train, validation, labels = load_data(train_dir=str(tmp_path), validation_dir=str(tmp_path))
    item = validation[3]
    assert labels.names == ("road", "car", "tree") and len(train) == len(validation) == 6
    assert item["name"].endswith("masks/003.png")
    assert np.array_equal(item["image"], Image.open(tmp_path / "images/003.png"))
    raw = np.array(Image.open(tmp_path / "masks/003.png"))
    assert item["label"].dtype == np.uint8 and np.array_equal(item["label"], np.where(raw == 9, 255, raw))


def test_nested_folders_and_suffixes_match_by_stem(tmp_path):
    write_sample(tmp_path, "town/a", np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8), (".jpg", ".tif"))
    write_sample(tmp_path, "village/a", np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8), (".webp", ".bmp"))
    names = [[path.rsplit("/", 3)[1:] for path in pair] for pair in folder_records(tmp_path)]
    assert names == [
        [["images", "town", "a.jpg"], ["masks", "town", "a.tif"]],
        [["images", "village", "a.webp"], ["masks", "village", "a.bmp"]],
    ]


def test_official_data_sets_know_their_splits_and_classes(tmp_path):
    for split, count in (("training", 3), ("validation", 2)):
        folders = [tmp_path / kind / split for kind in ("images", "annotations")]
        for folder in folders:
            folder.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8)).save(folders[0] / f"ADE_{number}.jpg")
            Image.fromarray(np.full((8, 8), number, np.uint8)).save(folders[1] / f"ADE_{number}.png")
    train, validation, labels = load_data(train_dir=str(tmp_path))
    assert (len(train), len(validation), labels.num_labels) == (3, 2, 150)
    assert [int(item["label"][0, 0]) for item in train] == [255, 0, 1]
    train, validation, _ = load_data(validation_dir=str(tmp_path), train_split=None)
    assert train is None and len(validation) == 2
    with pytest.raises(ValueError, match="there is no split 'tests' here"):
        load_data(train_dir=str(tmp_path), train_split="tests")
    with pytest.raises(ValueError, match="ADE20K.* omit do_reduce_labels"):
        load_data(train_dir=str(tmp_path), do_reduce_labels=True)


def test_files_of_pairs(tmp_path):
    write_folder(tmp_path)
    lines = [f"images/{number:03}.png,masks/{number:03}.png" for number in range(4)]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,mask", *lines]))
    train, validation, labels = load_data(train_dir=str(tmp_path / "pairs.csv"), train_val_split=0.25)
    assert (len(train), len(validation), labels.names) == (3, 1, ("road", "car", "tree"))


def test_held_out_part_is_the_same_for_every_seed(tmp_path):
    write_folder(tmp_path, count=10)
    splits = [load_data(train_dir=str(tmp_path), train_val_split=0.3, seed=seed)[:2] for seed in (0, 1)]
    names = [[[item["name"] for item in part] for part in split] for split in splits]
    assert names[0] == names[1]
    assert [len(part) for part in names[0]] == [7, 3] and not set(names[0][0]) & set(names[0][1])


def test_sample_limits_spread_over_the_data(tmp_path):
    write_folder(tmp_path, count=9)
    train, validation, _ = load_data(
        train_dir=str(tmp_path), validation_dir=str(tmp_path), max_train_samples=3, max_eval_samples=50
    )
    assert [item["name"][-7:-4] for item in train] == ["000", "004", "008"] and len(validation) == 9


def test_evaluation_alone_needs_no_training_data(tmp_path):
    train, validation, _ = load_data(validation_dir=str(write_folder(tmp_path)))
    assert train is None and len(validation) == 6


def test_scenes_are_there_when_nothing_is_given():
    train, validation, labels = load_data(max_train_samples=3, seed=4)
    assert (len(train), len(validation)) == (3, 64)
    assert labels == validation.labels and labels.num_labels >= 6
    assert np.array_equal(load_data(seed=5)[1][0]["image"], validation[0]["image"])  # the same for every seed
    assert not np.array_equal(train[0]["image"], validation[0]["image"])


# --- Data sets of Hugging Face ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """One small data set as parquet with embedded files, as `save_to_disk` writes it, and as an image folder."""
    import datasets
    from datasets.table import embed_table_storage

    root = tmp_path_factory.mktemp("tables")
    source = write_folder(root / "imagefolder" / "train")
    (source / "classes.json").rename(root / "classes.json")
    records = folder_records(source)
    lines = [{"file_name": f"images/{i[-7:]}", "mask_file_name": f"masks/{m[-7:]}"} for i, m in records]
    (source / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    features = datasets.Features({"pixel_values": datasets.Image(), "ground_truth": datasets.Image()})
    table = datasets.Dataset.from_list(
        [{"pixel_values": image, "ground_truth": mask} for image, mask in records], features=features
    )
    table = table.with_format("arrow").map(embed_table_storage, batched=True).with_format(None)
    (root / "parquet").mkdir()
    table.to_parquet(root / "parquet" / "train.parquet")
    datasets.DatasetDict({"train": table, "validation": table}).save_to_disk(root / "saved")
    return root


@pytest.mark.parametrize("name", ["parquet", "parquet/train.parquet", "imagefolder", "saved"])
def test_tables_match_the_folder_they_were_made_from(tables, tmp_path, name):
    expected = SegmentationDataset(folder_records(tables / "imagefolder/train"), Labels.from_folder(tables))
    train, validation, labels = load_data(
        dataset_name=str(tables / name),
        classes_file=str(tables / "classes.json") if name.endswith(".parquet") else None,
        train_val_split=0.5,
        cache_dir=str(tmp_path),
    )
    assert labels == expected.labels
    assert len(train) + len(validation) == (12 if name == "saved" else 6)
    for dataset in (train, validation):
        for item, row in zip(dataset, dataset.indices, strict=True):
            assert np.array_equal(item["image"], expected[row]["image"])
            assert np.array_equal(item["label"], expected[row]["label"])


def test_wrong_tables_are_explained(tables, tmp_path):
    name, cache = str(tables / "saved"), {"cache_dir": str(tmp_path)}
    with pytest.raises(ValueError, match=r"no split 'test'; the splits are \['train', 'validation'\]"):
        load_data(dataset_name=name, validation_split="test", **cache)
    with pytest.raises(ValueError, match="no column 'mask'; the columns are pixel_values: Image; ground_truth: Image"):
        load_data(dataset_name=name, label_column_name="mask", **cache)
    with pytest.raises(ValueError, match="given as train_dir"):
        (tmp_path / "plain" / "images").mkdir(parents=True)
        load_data(dataset_name=str(tmp_path / "plain"), **cache)
    (tmp_path / "broken.parquet").write_bytes(b"not parquet")
    with pytest.raises(ValueError, match=r"broken\.parquet cannot be loaded"):
        load_data(dataset_name=str(tmp_path / "broken.parquet"), **cache)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"image": "RGB", "annotation": "L"}, ("image", "annotation")),
        ({"segmentation_mask": "RGB", "pixel_values": "RGB"}, ("pixel_values", "segmentation_mask")),
        ({"picture": "RGB", "classes": "P"}, ("picture", "classes")),
        ({"image": "RGB", "label": "L", "instance_mask": "I;16"}, ("image", "label")),
        ({"a": "RGB", "b": "RGB"}, None),
        ({"image": "RGB"}, None),
    ],
)
def test_columns_are_found_by_name_then_by_mode(columns, expected):
    import datasets

    row = {name: Image.new(mode, (4, 4)) for name, mode in columns.items()}
    features = datasets.Features({name: datasets.Image() for name in columns} | {"id": datasets.Value("int64")})
    table = datasets.Dataset.from_list([{**row, "id": 1}], features=features)
    if expected is not None:
        assert find_columns(table) == expected
    else:
        with pytest.raises(ValueError, match="mask column among .*id: Value; give image_column_name"):
            find_columns(table)


def test_masks_as_lists_with_class_names_in_the_type():
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.List(datasets.List(datasets.ClassLabel(names=["sky", "sea"])))}
    )
    row = {"image": Image.new("RGB", (2, 1)), "label": [[0, 1]]}
    from hf_segtx.data.tables import TableRecords, _table_labels

    table = datasets.Dataset.from_list([row], features=features)
    labels = _table_labels("offline/no_such_data_set", table, "label", False, None, None)
    item = SegmentationDataset(TableRecords(table, *find_columns(table)), labels)[0]
    assert labels.names == ("sky", "sea") and item["label"].tolist() == [[0, 1]]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """3 shards of 40, 40 and 23 rows, in row groups of 10, whose labels hold the number of the row."""
    import datasets
    from datasets.table import embed_table_storage

    root = tmp_path_factory.mktemp("shards")
    for number in range(103):
        image, mask = np.full((4, 4, 3), number, np.uint8), np.full((4, 4), number % 100, np.uint8)
        write_sample(root / "files", f"{number:03}", image, mask)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    rows = [{"image": image, "label": mask} for image, mask in folder_records(root / "files")]
    (root / "data").mkdir()
    for shard, start in enumerate((0, 40, 80)):
        table = datasets.Dataset.from_list(rows[start : start + 40], features=features)
        table = table.with_format("arrow").map(embed_table_storage, batched=True).with_format(None)
        table.to_parquet(root / "data" / f"train-{shard:05}-of-00003.parquet", batch_size=10)
    (root / "id2label.json").write_text(json.dumps([f"class {number}" for number in range(100)]))
    return root


def streamed(root, **options):
    return load_data(dataset_name=str(root), streaming=True, train_val_split=0.2, check=False, **options)


def test_streamed_rows_match_the_files_they_were_made_from(shards, streams):
    expected = SegmentationDataset(folder_records(shards / "files"), Labels.from_folder(shards))
    train, validation, labels = streamed(streams)
    assert (len(train), len(validation), labels.num_labels) == (82, 21, 100)
    for dataset in (train, validation):
        for index in (0, 17, 5):
            item, other = dataset[index], expected[dataset.indices[index]]
            assert np.array_equal(item["image"], other["image"]) and np.array_equal(item["label"], other["label"])


def write_archives(shards, folder):
    """The rows of `shards` as three WebDataset archives with three files a sample."""
    folder.mkdir()
    for shard, start in enumerate((0, 40, 80)):
        with tarfile.open(folder / f"train-{shard:05}-of-00003.tar", "w") as archive:
            for number in range(start, min(start + 40, 103)):
                archive.add(shards / f"files/images/{number:03}.png", f"town.a/{number:03}.jpg")
                note = tarfile.TarInfo(f"town.a/{number:03}.json")
                note.size = 2
                archive.addfile(note, io.BytesIO(b"{}"))
                archive.add(shards / f"files/masks/{number:03}.png", f"town.a/{number:03}.png")
    (folder / "id2label.json").write_text((shards / "id2label.json").read_text())
    return folder


@pytest.fixture(params=["parquet", "tar", "parquet in memory", "tar in memory"])
def streams(request, shards, tmp_path):
    """Name of a data set to stream: local, or at an address (of a file system that needs no network)."""
    import fsspec

    folder = shards if request.param.startswith("parquet") else write_archives(shards, tmp_path / "archives")
    if not request.param.endswith("memory"):
        yield folder
        return
    system = fsspec.filesystem("memory")
    for file in (*folder.glob("data/*.parquet"), *folder.glob("*.tar"), folder / "id2label.json"):
        system.pipe_file(f"/streams/{file.relative_to(folder)}", file.read_bytes())
    yield "memory://streams"
    system.rm("/streams", recursive=True)


def test_streaming_is_exact_and_resumes_anywhere(streams, monkeypatch):
    """Each row once an epoch; two processes and a resumed run see what one uninterrupted run sees."""
    for module in (loaders, shards_module):
        monkeypatch.setattr(module, "POOL_SIZE", 30)
    train, _, _ = streamed(streams)
    transform = TrainingTransform(PROCESSOR, (4, 4), (1, 1), flip_probability=0, photometric="none")

    def rows(batches, count):
        red = 255 * (PROCESSOR.image_std[0] * batches["pixel_values"][:, 0, 0, 0] + PROCESSOR.image_mean[0])
        return red.round().int().tolist()[:count]

    def stream(batch_size, count, **options):
        batches = islice(training_dataloader(train, transform, batch_size, **options), count)
        return [rows(batch, batch_size) for batch in batches]

    whole = stream(4, 41)  # two epochs
    flat = sum(whole, [])
    epochs = flat[:82], flat[82:]
    assert all(sorted(epoch) == sorted(train.indices) for epoch in epochs)
    assert epochs[0] != epochs[1] and sum(abs(a - b) > 10 for a, b in zip(flat, flat[1:], strict=False)) > 60
    assert stream(4, 11, start_step=30, num_workers=1) == whole[30:]
    parts = [stream(2, 41, process_index=process, num_processes=2) for process in range(2)]
    assert [first + second for first, second in zip(*parts, strict=True)] == whole


def test_a_stream_reads_each_row_group_once_an_epoch(shards, monkeypatch):
    import pyarrow.parquet

    groups = []
    read = pyarrow.parquet.ParquetFile.read_row_group
    for module in (loaders, shards_module):
        monkeypatch.setattr(module, "POOL_SIZE", 30)
    train, _, _ = streamed(shards)
    monkeypatch.setattr(
        pyarrow.parquet.ParquetFile,
        "read_row_group",
        lambda shard, group, **options: groups.append(group) or read(shard, group, **options),
    )
    batches = ShuffledBatches(len(train), 1, groups=train.records.groups[train.indices])
    for ((_, index),) in islice(batches, len(train)):
        train.files(index)
    assert len(groups) == 11 and train.records.cache_size <= 5


def test_archives_that_are_wrong_are_explained(shards, tmp_path):
    folder = write_archives(shards, tmp_path / "archives")
    with tarfile.open(folder / "train-00001-of-00003.tar", "a") as archive:
        archive.add(shards / "files/images/000.png", "town.a/lonely.jpg")
    with pytest.raises(ValueError, match=r"train-00001-of-00003\.tar: town\.a/lonely has no \.png; remove"):
        streamed(folder)
    file = folder / "train-00002-of-00003.tar"
    file.write_bytes(b"no archive" * 100)
    with pytest.raises(ValueError, match="train-00002-of-00003.tar: cannot be read as an uncompressed tar archive"):
        streamed(folder)
    with pytest.raises(ValueError, match=r"data set memory://nowhere cannot be loaded .* check the name"):
        load_data(dataset_name="memory://nowhere", streaming=True)
    with pytest.raises(ValueError, match=r"memory://nowhere: an address is read with streaming=True"):
        load_data(dataset_name="memory://nowhere")


def test_streaming_needs_parquet_or_archives(tables, shards):
    with pytest.raises(ValueError, match="streaming reads Parquet .* archives, these are of the kind 'imagefolder'"):
        load_data(dataset_name=str(tables / "imagefolder"), streaming=True)
    with pytest.raises(ValueError, match="streaming is for dataset_name"):
        load_data(train_dir=str(shards), streaming=True)


def test_webdataset_archives(shards, tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        for number in range(5):
            for kind, suffix in (("images", "image.png"), ("masks", "mask.png")):
                archive.add(shards / f"files/{kind}/{number:03}.png", f"{number:03}.{suffix}")
    (tmp_path / "id2label.json").write_text((shards / "id2label.json").read_text())
    name = str(tmp_path / "train.tar")
    train, validation, _ = load_data(dataset_name=name, train_val_split=0.2, cache_dir=str(tmp_path / "cache"))
    assert len(train) == 4
    assert {int(np.array(item["image"])[0, 0, 0]) for item in (*train, *validation)} == set(range(5))


# --- Bad input --------------------------------------------------------------------------------------------------------


def test_missing_partners_are_named(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "masks/002.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 6 files have no mask: .*images/002\.png; .*masks/000\.png"):
        folder_records(tmp_path)
    (tmp_path / "images/002.png").unlink()
    (tmp_path / "images/001.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 5 files have no image: .*masks/001\.png"):
        folder_records(tmp_path)


def test_missing_partners_can_be_skipped_and_are_listed(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "masks/002.png").unlink()
    train, validation, _ = load_data(train_dir=str(tmp_path), on_error="skip", train_val_split=0.4)
    assert (len(train), len(validation)) == (3, 2)
    (said,) = train.skipped
    assert said.endswith("images/002.png: there is no mask; add it, or remove the file")


def test_wrong_levels_name_the_right_one(tmp_path):
    folder = write_folder(tmp_path / "data")
    for wrong in (tmp_path, folder / "images"):
        with pytest.raises(ValueError, match=r"there is no folder images .* as .*/data does"):
            load_data(train_dir=str(wrong))
    with pytest.raises(ValueError, match=r"000\.png is a file; give a folder"):
        load_data(train_dir=str(folder / "images/000.png"))
    with pytest.raises(ValueError, match="max_train_samples is 0; it must"):
        load_data(train_dir=str(folder), max_train_samples=0)


def test_empty_parquet_files_are_explained(tmp_path):
    import datasets

    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.parquet: cannot be read as Parquet \(Parquet file size is 0 bytes\)"):
        load_data(dataset_name=str(tmp_path / "a.parquet"), streaming=True)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    datasets.Dataset.from_dict({"image": [], "label": []}, features).to_parquet(str(tmp_path / "a.parquet"))
    with pytest.raises(ValueError, match=r"a\.parquet: there are no rows in it; remove it"):
        load_data(dataset_name=str(tmp_path / "a.parquet"), streaming=True)


def test_wrong_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere: there is no such folder"):
        load_data(train_dir=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="there is no folder images"):
        folder_records(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(ValueError, match="images: no image files in it"):
        folder_records(tmp_path)
    write_sample(tmp_path, "a", np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8))
    Image.new("RGB", (4, 4)).save(tmp_path / "images/a.bmp")
    with pytest.raises(ValueError, match=r"a\.bmp and .*a\.png differ in the suffix only"):
        folder_records(tmp_path)
    with pytest.raises(ValueError, match=r"write one of them"):
        load_data(train_dir=str(tmp_path))


def test_folders_must_have_the_same_classes(tmp_path):
    write_folder(tmp_path / "a")
    write_folder(tmp_path / "b", classes=[*CLASSES[:2], {"id": 2, "name": "bush"}, CLASSES[3]])
    with pytest.raises(ValueError, match=r"class 2 is 'tree' in the data .* 'bush' in .*b.classes\.json"):
        load_data(train_dir=str(tmp_path / "a"), validation_dir=str(tmp_path / "b"))
