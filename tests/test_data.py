"""Reading, checks, augmentation and loaders, on small files that the tests write."""

import colorsys
import io
import json
import logging
import struct
import tarfile
import zlib
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from hf_segtx.data import SegmentationDataset, load_data, loaders, read_image, read_mask
from hf_segtx.data import tables as tables_module
from hf_segtx.data.augmentation import TrainingTransform, to_array
from hf_segtx.data.checks import check_data
from hf_segtx.data.decoding import read_image_part
from hf_segtx.data.folders import folder_records
from hf_segtx.data.labels import Labels, flip_permutation
from hf_segtx.data.loaders import BatchMemory, ShuffledBatches, evaluation_dataloader, training_dataloader
from hf_segtx.data.tables import find_columns
from hf_segtx.models.image_processing_segtx import SegFormerImageProcessor
from hf_segtx.visualization import overlay


CLASSES = [
    {"id": 0, "name": "road", "color": [10, 20, 30]},
    {"id": 1, "name": "car", "color": [200, 0, 0]},
    {"id": 2, "name": "tree", "color": [0, 200, 0]},
    {"id": 9, "name": "void", "color": [0, 0, 0], "ignore": True},
]
PROCESSOR = SimpleNamespace(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225], rescale_factor=1 / 255)


def write_sample(folder, stem, image, mask, suffixes=(".png", ".png")):
    """Writes arrays or PIL images as `folder`/images/`stem` and /masks/`stem`."""
    for kind, picture, suffix in zip(("images", "masks"), (image, mask), suffixes, strict=True):
        file = folder / kind / f"{stem}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file)


def write_folder(folder, count=6, size=(24, 32), classes=CLASSES, ids=(0, 1, 2, 9)):
    """A data folder with random images and masks of `ids`."""
    random = np.random.default_rng(0)
    for number in range(count):
        image = random.integers(0, 256, (*size, 3)).astype(np.uint8)
        write_sample(folder, f"{number:03}", image, random.choice(ids, size).astype(np.uint8))
    if classes:
        (folder / "classes.json").write_text(json.dumps({"classes": classes}))
    return folder


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


def palette_mask(ids):
    mask = Image.fromarray(ids.astype(np.uint8)).convert("P")
    mask.putdata(ids.ravel().tolist())
    mask.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    return mask


@pytest.mark.parametrize(
    ("encode", "suffix", "highest"),
    [
        (palette_mask, "png", 255),
        (lambda ids: Image.fromarray(ids.astype(np.uint8)), "bmp", 255),
        (lambda ids: Image.fromarray(ids.astype(bool)), "png", 1),
        (lambda ids: Image.fromarray(ids.astype(np.uint16)), "png", 65535),
        (lambda ids: Image.fromarray(ids.astype(np.uint16)), "tif", 65535),
        (lambda ids: Image.fromarray(ids.astype(np.int32)), "tif", 10**6),
        (lambda ids: Image.fromarray(ids.astype(np.float32)), "tif", 1000),
        (lambda ids: Image.fromarray(ids.astype(np.uint8)).convert("LA"), "png", 255),
    ],
    ids=["palette", "grey", "1-bit", "16-bit png", "16-bit tif", "32-bit", "whole floats", "grey with alpha"],
)
def test_masks_keep_the_ids_that_were_written(tmp_path, encode, suffix, highest):
    ids = np.random.default_rng(0).integers(0, highest + 1, (7, 9))
    encode(ids).save(tmp_path / f"mask.{suffix}")
    assert np.array_equal(read_mask(tmp_path / f"mask.{suffix}"), ids)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_masks_of_few_bits_keep_their_ids(tmp_path, bits):
    """PIL writes no such files, so this one is put together by hand (PNG specification, section 11.2)."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8 // bits, 1, bits, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes([0, 0b00011011])))
    (tmp_path / "mask.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b""))
    assert read_mask(tmp_path / "mask.png").tolist() == [[0, 1, 2, 3] if bits == 2 else [1, 11]]


def test_images_become_rgb(tmp_path):
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.stack([grey] * 3, axis=-1))
    assert np.array_equal(read_image(tmp_path / "grey.png", num_channels=1), grey)
    rotated = Image.fromarray(grey)
    exif = rotated.getexif()
    exif[0x0112] = 6  # "turn by 90 degrees to see it upright"
    rotated.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png", num_channels=1), np.rot90(grey, -1))


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "rgb.png", "rgb.tif", "rgb.npy", "first.npy"])
def test_16_bits_are_read_without_a_loss(tmp_path, name):
    """65535 becomes 255, and neighbouring values stay different."""
    values = np.random.default_rng(0).integers(0, 65536, (7, 9, 3)).astype(np.uint16)
    values[0, 0] = 65535
    file = tmp_path / name
    if name.startswith("grey"):
        Image.fromarray(values[..., 0]).save(file)
        values = values[..., :1].repeat(3, axis=-1)
    elif name == "rgb.png":
        file.write_bytes(png_16_bits(values))
    elif name == "rgb.tif":
        tifffile.imwrite(file, values, photometric="rgb")
    else:
        np.save(file, values.transpose(2, 0, 1) if name == "first.npy" else values)
    image = read_image(file)
    assert image.dtype == torch.float32 and image.shape == (3, 7, 9) and image.max() == 255
    assert np.array_equal((image.permute(1, 2, 0).numpy() * 257).round(), values)


def png_16_bits(values):
    """PIL writes no such files, so this one is put together by hand (PNG specification, section 11.2)."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("name", ["bands.tif", "pages.tif", "last.npy", "float.npy", "bytes"])
def test_any_number_of_channels(tmp_path, name):
    values = np.random.default_rng(0).integers(0, 256, (6, 7, 9)).astype(np.uint8)
    file = tmp_path / name
    if name == "bands.tif":
        tifffile.imwrite(file, values.transpose(1, 2, 0), photometric="minisblack", planarconfig="contig")
    elif name == "pages.tif":
        tifffile.imwrite(file, values, photometric="minisblack")
    elif name == "float.npy":
        values = values.astype(np.float64) - 1000.5
        np.save(file, values)
    else:
        np.save(tmp_path / "last.npy", values.transpose(1, 2, 0))
    if name == "bytes":
        file = {"bytes": (tmp_path / "last.npy").read_bytes(), "path": None}
    image = read_image(file, num_channels=6)
    assert image.dtype == (torch.float32 if name == "float.npy" else torch.uint8)
    assert np.array_equal(image, values)


def test_wrong_numbers_of_channels_are_explained(tmp_path):
    np.save(tmp_path / "five.npy", np.zeros((7, 9, 5), np.uint8))
    with pytest.raises(ValueError, match=r"five\.npy: uint8 of shape \(7, 9, 5\) has no axis of 6 channels; set"):
        read_image(tmp_path / "five.npy", str(tmp_path / "five.npy"), num_channels=6)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="PNG holds 1, 3 or 4 channels, the model expects 6; use TIFF or .npy"):
        read_image(tmp_path / "a.png", num_channels=6)
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match="cannot be decoded"):
        read_image(tmp_path / "broken.npy", num_channels=6)


def test_many_channels_go_through_training_and_evaluation(tmp_path):
    """Batches of 16-bit images of five channels are what the image processor makes of them."""
    random = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for number in range(4):
        np.save(tmp_path / f"images/{number}.npy", random.integers(0, 65536, (24, 32, 5)).astype(np.uint16))
        np.save(tmp_path / f"masks/{number}.npy", random.integers(0, 2, (24, 32)).astype(np.uint8))
    (tmp_path / "id2label.json").write_text(json.dumps(["field", "water"]))
    folder = str(tmp_path)
    train, validation, _ = load_data(train_dir=folder, validation_dir=folder, num_channels=5)
    processor = SegFormerImageProcessor(image_mean=[0.1] * 5, image_std=[0.2, 0.3, 0.4, 0.5, 0.6], do_resize=False)
    transform = TrainingTransform(processor, (24, 32), (1, 1), flip_probability=0, photometric_distortion=False)
    batch = next(iter(training_dataloader(train, transform, 4)))
    (evaluation,) = evaluation_dataloader(validation, 4)
    expected = processor(evaluation["images"], return_tensors="pt")["pixel_values"]
    order = [int((expected == image).flatten(1).all(1).nonzero()) for image in batch["pixel_values"]]
    assert sorted(order) == [0, 1, 2, 3]
    assert torch.equal(batch["labels"], torch.stack([evaluation["labels"][index].long() for index in order]))
    picture = overlay(validation[0]["image"], np.zeros((24, 32), np.uint8), [(255, 0, 0)], alpha=0)
    shown, written = np.asarray(picture).astype(float), np.load(tmp_path / "images/0.npy")[..., :3]
    low, high = written.min(), written.max()
    assert np.abs(shown - (written - low.astype(float)) / (high - low) * 255).max() <= 0.51  # rounding


def test_rgb_masks_go_through_the_colors(tmp_path):
    write_folder(tmp_path, count=2)
    by_id = {entry["id"]: entry["color"] for entry in CLASSES}
    ids = np.random.default_rng(1).choice(list(by_id), (24, 32))
    colors = np.array([[by_id[value] for value in row] for row in ids.tolist()], np.uint8)
    Image.fromarray(colors).save(tmp_path / "masks/000.png")
    train, _, _ = load_data(train_dir=str(tmp_path), validation_dir=str(tmp_path))
    assert np.array_equal(train[0]["label"], np.where(ids == 9, 255, ids))


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
    with pytest.raises(ValueError, match="ADE20K.* leave --do_reduce_labels away"):
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
    with pytest.raises(ValueError, match="given with --train_dir"):
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
        with pytest.raises(ValueError, match="mask column among .*id: Value; give --image_column_name"):
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
    for module in (loaders, tables_module):
        monkeypatch.setattr(module, "POOL_SIZE", 30)
    train, _, _ = streamed(streams)
    transform = TrainingTransform(PROCESSOR, (4, 4), (1, 1), flip_probability=0, photometric_distortion=False)

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
    for module in (loaders, tables_module):
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
    with pytest.raises(ValueError, match=r"train-00001-of-00003\.tar: town\.a/lonely has no \.png; a sample is"):
        streamed(folder)
    file = folder / "train-00002-of-00003.tar"
    file.write_bytes(b"no archive" * 100)
    with pytest.raises(ValueError, match="train-00002-of-00003.tar: cannot be read as an uncompressed tar archive"):
        streamed(folder)
    with pytest.raises(ValueError, match=r"data set memory://nowhere cannot be loaded .* check the name"):
        load_data(dataset_name="memory://nowhere", streaming=True)
    with pytest.raises(ValueError, match=r"memory://nowhere: an address is read with --streaming"):
        load_data(dataset_name="memory://nowhere")


def test_streaming_needs_parquet_or_archives(tables, shards):
    with pytest.raises(ValueError, match="streaming reads Parquet .* archives, these are of the kind 'imagefolder'"):
        load_data(dataset_name=str(tables / "imagefolder"), streaming=True)
    with pytest.raises(ValueError, match="--streaming is for --dataset_name"):
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


def test_bad_files_can_be_skipped_and_are_listed(tmp_path, caplog):
    """In training others take their places, the same ones in every run; in evaluation they are left out."""
    write_folder(tmp_path, count=6)
    (tmp_path / "images/002.png").write_bytes(b"")
    Image.new("L", (32, 24), 7).save(tmp_path / "masks/004.png")
    folder = {"train_dir": str(tmp_path), "validation_dir": str(tmp_path), "on_error": "skip"}
    train, validation, _ = load_data(**folder)
    assert [error.split(": ")[0][-14:] for error in train.skipped] == ["images/002.png", "/masks/004.png"]
    assert caplog.text.count("Skipped a sample") == 4
    train, validation, labels = load_data(**folder, check=False)
    uninterrupted = list(islice(loader(train), 9))
    assert len(train.skipped) == 2 and not validation.skipped
    assert_equal_batches(islice(loader(train, start_step=4, num_workers=1), 5), uninterrupted[4:])
    assert_equal_batches(islice(loader(train, cache_bytes=0), 9), uninterrupted)  # fails after the crop is drawn
    for num_workers in (0, 1):
        batches = evaluation_dataloader(validation, num_workers=num_workers)
        names = [name for batch in batches for name in batch["names"]]
        assert [name[-7:-4] for name in names] == ["000", "001", "003", "005"] and len(validation.skipped) == 2
    only_bad = SegmentationDataset([train.records[2]], labels, on_error="skip")
    with pytest.raises(ValueError, match="1 of 1 checked training samples are bad"):
        check_data(only_bad)
    with pytest.raises(ValueError, match="ten training samples in a row are bad; the last one: .*002.png: cannot be"):
        next(iter(loader(only_bad)))
    with pytest.raises(ValueError, match="on_error 'ignore' is neither 'raise' nor 'skip'"):
        load_data(**{**folder, "on_error": "ignore"})


def test_at_most_ten_bad_files_are_listed(tmp_path):
    write_folder(tmp_path, count=13, ids=(5,))
    with pytest.raises(ValueError, match="13 of 13 checked") as raised:
        check_data(SegmentationDataset(folder_records(tmp_path), Labels.from_folder(tmp_path)))
    assert len(str(raised.value).splitlines()) == 12 and str(raised.value).endswith("... and 3 more")


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


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "the file is empty"), (b"hello", "no known picture format: it begins with b'hello'")]
)
def test_files_that_are_no_pictures_say_so(tmp_path, content, message):
    write_folder(tmp_path)
    (tmp_path / "images/002.png").write_bytes(content)
    with pytest.raises(ValueError, match=rf"images/002\.png: cannot be decoded \({message}\); replace it"):
        load_data(train_dir=str(tmp_path), validation_dir=str(tmp_path))


def test_wrong_levels_name_the_right_one(tmp_path):
    folder = write_folder(tmp_path / "data")
    for wrong in (tmp_path, folder / "images"):
        with pytest.raises(ValueError, match=r"there is no folder images .* as .*/data does"):
            load_data(train_dir=str(wrong))
    with pytest.raises(ValueError, match=r"000\.png is a file; give a folder"):
        load_data(train_dir=str(folder / "images/000.png"))
    with pytest.raises(ValueError, match="max_train_samples 0 is less than 1"):
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


def test_masks_of_0_and_255_are_explained(tmp_path, caplog):
    write_folder(tmp_path / "many", ids=(0, 255))
    with pytest.raises(ValueError, match="hold 0 and 255 only, but there are 3 classes"):
        load_data(train_dir=str(tmp_path / "many"))
    for names in (["ground", "crack"], ["crack"]):
        folder = write_folder(tmp_path / str(len(names)), ids=(0, 255), classes=None)
        (folder / "id2label.json").write_text(json.dumps(names))
        with caplog.at_level(logging.INFO):
            train, _, labels = load_data(train_dir=str(folder))
        assert "255 is taken as the class 'crack'" in caplog.text
        assert np.array_equal(train[0]["label"], read_mask(train.records[train.indices[0]][1]) // 255)
        assert labels.map(np.array([[255]])).item() == 1
        caplog.clear()


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


# --- Augmentation -----------------------------------------------------------------------------------------------------


def blocks(height=96, width=128, side=16):
    """An image (H, W, 3) of coloured blocks and the label map that says which: red 255 and 0 for labels 1 and 0."""
    rows, columns = np.indices((height, width)) // side
    label = ((rows * 7 + columns * 3) % 5 % 2).astype(np.uint8)
    return np.repeat(label[..., None] * 255, 3, axis=-1), label


def augmented(transform, image, label, seed=0):
    """Pixels (C, h, w) before normalization and labels (h, w) of one sample."""
    batch = transform.collate([transform.crop(image, label, np.random.default_rng(seed))])
    return batch["pixel_values"][0].permute(2, 0, 1), batch["labels"][0]


@pytest.mark.parametrize("seed", range(8))
def test_image_and_mask_stay_aligned(seed):
    transform = TrainingTransform(PROCESSOR, (60, 80), (0.4, 2.0), photometric_distortion=False)
    batch = transform.collate([transform.crop(*blocks(), np.random.default_rng(seed))])
    pixels, labels = batch["pixel_values"][0].permute(2, 0, 1), batch["labels"][0]
    valid = labels != 255
    assert pixels.shape == (3, 60, 80) and labels.shape == (60, 80)

    def wrong(shift, axis):
        return ((pixels[0] > 127).roll(shift, axis) != labels)[valid].float().mean()

    # Where blocks meet, bilinear and nearest round differently; still, every shift by a pixel must fit much worse.
    shifted = min(wrong(shift, axis) for shift in (-1, 1) for axis in (0, 1))
    assert wrong(0, 0) < 0.6 * shifted
    assert (transform.finish(batch)["pixel_values"][0][:, ~valid] == 0).all()  # padding


@pytest.mark.parametrize("as_pil", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_scaled_crop_matches_resizing_the_whole_image(dtype, as_pil):
    """torchvision's slow way: resize all of it, then crop, then flip."""
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 48, 64)).astype(np.uint8))
    image = F.gaussian_blur(image, [5, 5])
    mask = torch.arange(48 * 64).view(48, 64).remainder(200).numpy().astype(dtype)
    array = image.permute(1, 2, 0).contiguous().numpy()
    array = Image.fromarray(array) if as_pil else array
    whole = F.resize(image, [96, 128], antialias=True)
    doubled = torch.from_numpy(mask).repeat_interleave(2, 0).repeat_interleave(2, 1)
    flips = set()
    for seed in range(6):
        transform = TrainingTransform(PROCESSOR, (40, 40), (2, 2), photometric_distortion=False)
        random = np.random.default_rng(seed)
        (top, left, bottom, right), size = transform.draw(mask, random)
        assert size == [40, 40] and bottom - top == right - left == 20
        flip = random.random() < 0.5
        pixels, labels = augmented(transform, array, mask, seed)
        rows, columns = slice(2 * top, 2 * top + 40), slice(2 * left, 2 * left + 40)
        expected_pixels, expected = whole[:, rows, columns], doubled[rows, columns]
        if flip:
            expected_pixels, expected = expected_pixels.flip(-1), expected.flip(-1)
        difference = (pixels.int() - expected_pixels.int()).abs()
        assert difference[:, 1:-1, 1:-1].max() <= 1  # rounding; the rim has no neighbours outside of the crop
        assert torch.equal(labels, expected)
        flips.add(flip)
    assert flips == {False, True}


def test_left_and_right_change_places_in_flipped_images():
    """Against a slow loop over the pixels; half of the seeds flip."""
    names = ["Background", "Left-arm", "Face", "Right-arm", "Left-shoe", "Right-shoe"]
    permutation = flip_permutation(dict(enumerate(names)))
    random = np.random.default_rng(0)
    label = random.choice([0, 1, 2, 3, 4, 5, 255], (12, 17)).astype(np.uint8)
    image = random.integers(0, 256, (12, 17, 3)).astype(np.uint8)
    flips = 0
    for seed in range(20):
        transform = TrainingTransform(PROCESSOR, (12, 17), (1, 1), flip_permutation=permutation)
        pixels, labels = augmented(transform, image, label.copy(), seed)
        if is_flipped := not np.array_equal(pixels.permute(1, 2, 0), image):
            assert np.array_equal(pixels.permute(1, 2, 0), image[:, ::-1])
        for row, column in np.ndindex(12, 17):
            value = int(label[row, 16 - column if is_flipped else column])
            if is_flipped and value != 255 and names[value][:4] == "Left":
                value = names.index(names[value].replace("Left", "Right"))
            elif is_flipped and value != 255 and names[value][:5] == "Right":
                value = names.index(names[value].replace("Right", "Left"))
            assert labels[row, column] == value
        flips += is_flipped
    assert 5 < flips < 15


def test_labels_are_resized_as_torch_does_it_exactly():
    """NEAREST_EXACT, at all sorts of factors."""
    label = np.random.default_rng(0).integers(0, 200, (37, 53)).astype(np.uint8)
    image = np.zeros((37, 53, 3), np.uint8)
    for seed in range(20):
        transform = TrainingTransform(PROCESSOR, (90, 90), (0.3, 2.0), flip_probability=0)
        (top, left, bottom, right), size = transform.draw(label, np.random.default_rng(seed))
        _, labels = augmented(transform, image, label, seed)
        crop = torch.from_numpy(label)[None, top:bottom, left:right]
        expected = F.resize(crop, size, interpolation=F.InterpolationMode.NEAREST_EXACT)[0]
        assert torch.equal(labels[: size[0], : size[1]], expected)
        assert (labels[size[0] :] == 255).all() and (labels[:, size[1] :] == 255).all()


def test_crop_of_a_small_image_takes_all_of_it():
    transform = TrainingTransform(PROCESSOR, (40, 40), scale_range=(0.5, 0.5))
    box, size = transform.draw(np.zeros((30, 100), np.uint8), np.random.default_rng(0))
    assert size == [15, 40] and (box[2] - box[0], box[3] - box[1]) == (30, 80)


def test_base_size_keeps_the_ratio():
    transform = TrainingTransform(PROCESSOR, (1000, 1000), scale_range=(1, 1), base_size=(512, 2048))
    for size, expected in (((100, 200), [512, 1000]), ((300, 150), [1000, 512]), ((100, 1000), [205, 1000])):
        assert transform.draw(np.zeros(size, np.uint8), np.random.default_rng(0))[1] == expected


def test_no_class_fills_more_than_three_quarters_of_a_crop():
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 1
    mask[:8] = 255
    image = np.zeros((64, 64, 3), np.uint8)

    def shares(max_share):
        transform = TrainingTransform(PROCESSOR, (24, 24), (1, 1), max_share=max_share)
        for seed in range(200):
            _, labels = augmented(transform, image, mask, seed)
            yield float(torch.bincount(labels[labels != 255], minlength=2).max() / (labels != 255).sum())

    # 28 of 41 positions break the rule, so that all ten tries do in 2 % of the cases: 4 of 200.
    assert sum(share > 0.75 for share in shares(1.0)) > 100
    assert sum(share > 0.75 for share in shares(0.75)) < 10


def drawn(seed):
    """Brightness, contrast, saturation and hue in [-1, 1] that `TrainingTransform.colors` draws."""
    chances, values = np.random.default_rng(seed).random((2, 4))
    return [2 * value - 1 if chance < 0.5 else 0 for chance, value in zip(chances, values, strict=True)]


def test_colors_match_colorsys():
    """Against the standard library's YIQ, pixel by pixel, with the drawn numbers."""
    image = np.random.default_rng(0).integers(60, 190, (4, 5, 3))
    transform = TrainingTransform(PROCESSOR, (4, 5))
    for seed in range(20):
        matrix = transform.colors(np.random.default_rng(seed), 3)
        out = image @ matrix[:, :3].T + matrix[:, 3]
        brightness, contrast, saturation, hue = drawn(seed)
        turn = np.exp(1j * np.radians(36 * hue)) * (1 + 0.5 * saturation)
        for row, column in np.ndindex(4, 5):
            luma, i, q = colorsys.rgb_to_yiq(*image[row, column].tolist())
            chroma = complex(i, q) * turn
            expected = np.array(yiq_to_rgb(luma, chroma.real, chroma.imag)) + 32 * brightness
            expected = expected * (1 + 0.5 * contrast)
            # colorsys rounds its YIQ coefficients to two digits, 255 * 0.02 = 5 at most
            assert np.abs(out[row, column] - expected).max() < 5


def yiq_to_rgb(luma, i, q):
    """colorsys.yiq_to_rgb without its limits to [0, 1]."""
    inverse = np.linalg.inv(np.array([colorsys.rgb_to_yiq(*unit) for unit in np.eye(3)]).T)
    return inverse @ [luma, i, q]


def test_colors_are_applied_and_clipped_before_normalization():
    """Against a loop over the samples of a batch; rounding of float32 products up to 255 allows for 1e-4."""
    transform = TrainingTransform(PROCESSOR, (6, 7), (1, 1), flip_probability=0)
    images = np.random.default_rng(0).integers(0, 256, (12, 6, 7, 3)).astype(np.uint8)
    label = np.zeros((6, 7), np.uint8)
    batch = transform.collate(
        [transform.crop(image, label, np.random.default_rng(seed)) for seed, image in enumerate(images)]
    )
    mean, std = (255 * np.array(values) for values in (PROCESSOR.image_mean, PROCESSOR.image_std))
    for image, colors, result in zip(images, batch["colors"], transform.finish(batch)["pixel_values"], strict=True):
        colors = colors.double().numpy()
        expected = (np.clip(image @ colors[:, :3].T + colors[:, 3], 0, 255) - mean) / std
        assert np.abs(result.permute(1, 2, 0).numpy() - expected).max() < 1e-4


def test_colors_leave_greys_grey():
    levels = set()
    for seed in range(30):
        for channels in (1, 3, 5):
            transform = TrainingTransform(PROCESSOR, (4, 4))
            matrix = transform.colors(np.random.default_rng(seed), channels)
            values = matrix[:, :-1] @ np.full(channels, 100.0) + matrix[:, -1]
            assert np.abs(values - values[0]).max() < 0.01  # NTSC's coefficients have four digits
            levels.add(round(float(values[0])))
    assert len(levels) > 10 and 34 <= min(levels) and max(levels) <= 198  # (100 -+ 32) * (1 -+ 0.5)


@pytest.mark.parametrize("num_channels", [1, 3, 4, 6])
def test_normalization_equals_the_processors(num_channels):
    mean, std = ([value + 0.05 * channel for channel in range(num_channels)] for value in (0.4, 0.2))
    processor = SegFormerImageProcessor(image_mean=mean, image_std=std, do_resize=False)
    image = torch.randint(0, 256, (num_channels, 10, 12), dtype=torch.uint8)
    sample = image.permute(1, 2, 0).numpy(), np.zeros((10, 12), np.uint8), np.random.default_rng(0)
    transform = TrainingTransform(processor, (10, 12), (1, 1), flip_probability=0, photometric_distortion=False)
    expected = processor(image, input_data_format="channels_first", return_tensors="pt")["pixel_values"][0]
    result = transform.finish(transform.collate([transform.crop(*sample)]))
    assert torch.equal(result["pixel_values"][0], expected)
    assert result["labels"].dtype == torch.int64
    transform = TrainingTransform(processor, (10, 12))
    transform.finish(transform.collate([transform.crop(*sample)]))  # every channel count goes through the colours, too


def test_jpegs_far_larger_than_needed_are_decoded_smaller(tmp_path):
    """And look like those that were decoded in full, then resized."""
    smooth = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(smooth).resize((333, 251), Image.Resampling.BICUBIC))
    write_sample(tmp_path, "a", smooth, np.zeros((251, 333), np.uint8), (".jpg", ".png"))
    dataset = SegmentationDataset(folder_records(tmp_path), Labels(names=("a", "b")))
    for base, decoded_height in (((100, 133), 126), ((200, 266), 251)):
        transform = TrainingTransform(PROCESSOR, (50, 50), (0.3, 1.0), base_size=base, photometric_distortion=False)
        read_image, label = dataset.open(0, largest_scale=transform.largest_scale)
        image = read_image()
        assert image.height == decoded_height and label.shape == (251, 333)
        for seed in range(5):
            pixels, labels = augmented(transform, image, label, seed)
            expected, expected_labels = augmented(transform, dataset[0]["image"], dataset[0]["label"], seed)
            assert torch.equal(labels, expected_labels)
            # the edges of the crop are rounded to even pixels of the file, a shift by up to one pixel of 6 levels
            assert (pixels.float() - expected.float())[:, labels != 255].abs().mean() < 3


EXIF_WITH_A_FRAME = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0\xff\xd8\xff\xc0\0\x11\x08\0\x10\0\x10"
ENCODINGS = {
    "jpeg": {"format": "JPEG", "quality": 90},
    "4:4:4": {"format": "JPEG", "quality": 60, "subsampling": 0},
    "4:2:2": {"format": "JPEG", "subsampling": 1},
    "4:2:0": {"format": "JPEG", "subsampling": 2},
    "progressive": {"format": "JPEG", "progressive": True},
    "restarts": {"format": "JPEG", "restart_marker_rows": 1},
    "thumbnail": {"format": "JPEG", "exif": EXIF_WITH_A_FRAME},
    "png": {"format": "PNG"},
    "palette": {"format": "PNG", "mode": "P"},
    "16 bits": {"format": "PNG", "mode": "I;16"},
    "animation": {"format": "PNG", "save_all": True, "append_images": [Image.new("RGB", (53, 67))]},
    "tiff": {"format": "TIFF"},
}


def encoded(encoding):
    """67 rows of 53 colours, and the bytes of their file."""
    options = dict(ENCODINGS[encoding])
    colors = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    image = Image.fromarray(colors).resize((53, 67), Image.Resampling.BICUBIC)
    if (mode := options.pop("mode", "RGB")) != "RGB":
        image = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("num_channels", [1, 3])
def test_decoding_some_rows_gives_exactly_those_of_the_image(encoding, num_channels):
    file = {"bytes": encoded(encoding)}
    whole, size = read_image_part(file, "", num_channels)
    assert size == (67, 53)
    for num_rows in range(1, 68):
        rows, size = read_image_part(file, "", num_channels, num_rows=num_rows)
        assert size == (67, 53)
        assert np.array_equal(to_array(rows)[:num_rows], to_array(whole)[:num_rows])
        if encoding not in ("tiff", "animation"):
            assert len(to_array(rows)) <= num_rows + 2


def test_images_that_are_upside_down_or_interlaced_are_decoded_as_a_whole():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (31, 23, 3)).astype(np.uint8))
    exif = image.getexif()
    exif[0x0112] = 3
    for suffix in ("JPEG", "PNG"):
        file = io.BytesIO()
        image.save(file, suffix, exif=exif)
        rows, size = read_image_part({"bytes": file.getvalue()}, "", 3, num_rows=5)
        assert size == (31, 23) and np.array_equal(rows, read_image({"bytes": file.getvalue()}))
    # PIL writes no interlaced files: each pixel of this one is alone in its row of a pass (PNG specification, 8)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 0, 0, 0, 1))
    data = chunk(b"IDAT", zlib.compress(bytes([0, 10, 0, 20, 0, 30, 40])))
    content = b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")
    rows, size = read_image_part({"bytes": content}, "", 1, num_rows=1)
    assert size == (2, 2) and np.asarray(rows).tolist() == [[10, 20], [30, 40]]


# --- Loading ----------------------------------------------------------------------------------------------------------


def loader(dataset, **options):
    return training_dataloader(dataset, TrainingTransform(PROCESSOR, (16, 16)), 2, **{"seed": 3, **options})


@pytest.fixture
def dataset(tmp_path):
    write_folder(tmp_path, count=5)
    return SegmentationDataset(folder_records(tmp_path), Labels.from_folder(tmp_path))


def assert_equal_batches(batches, expected):
    for batch, other in zip(batches, expected, strict=True):
        assert all(torch.equal(batch[key], other[key]) for key in ("pixel_values", "labels"))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_batches_equal_uninterrupted_ones(dataset, num_workers):
    uninterrupted = list(islice(loader(dataset), 7))
    torch.manual_seed(123)  # the state of the process plays no part
    assert_equal_batches(islice(loader(dataset, start_step=3, num_workers=num_workers), 4), uninterrupted[3:])


@pytest.mark.parametrize(("cache_bytes", "num_workers"), [(2**20, 0), (8000, 0), (10, 0), (8000, 2)])
def test_decoded_samples_in_memory_change_nothing(dataset, cache_bytes, num_workers):
    """8000 bytes hold 2 of 5 samples of 3072 bytes."""
    expected = list(islice(loader(dataset, cache_bytes=0), 12))
    assert_equal_batches(islice(loader(dataset, cache_bytes=cache_bytes, num_workers=num_workers), 12), expected)


def test_batches_of_all_types_travel_through_memory():
    memory = BatchMemory(2, 256)
    batches = []
    for number in range(3):
        empty = memory.empty(number)
        batch = {"odd": empty((3, 7), dtype=torch.uint8).fill_(number), "deep": empty((2, 5), dtype=torch.float32)}
        batch.update(deep=batch["deep"].fill_(number + 0.5), labels=empty((9,), dtype=torch.int64).fill_(-number))
        batch["large"] = empty((70,), dtype=torch.uint8).fill_(number)
        batches.append(memory.places({**batch, "sizes": [(3, 7)]}))
        assert [key for key, value in batches[-1].items() if isinstance(value, torch.Tensor)] == ["large"]
    for place, number in zip(batches, (2, 1, 2), strict=True):  # the third lies where the first was
        batch = memory.tensors(place)
        assert batch["odd"].shape == (3, 7) and (batch["odd"] == number).all() and batch["odd"].dtype == torch.uint8
        assert torch.equal(batch["deep"], torch.full((2, 5), number + 0.5))
        assert batch["labels"].tolist() == [-number] * 9 and batch["sizes"] == [(3, 7)]
        assert batch["large"].shape == (70,)


def test_each_file_is_decoded_once(dataset, monkeypatch):
    reads = []
    open_item = SegmentationDataset.open
    monkeypatch.setattr(SegmentationDataset, "open", lambda *arguments: reads.append(1) or open_item(*arguments))
    list(islice(loader(dataset), 12))
    assert len(reads) == 5


@pytest.mark.parametrize("num_workers", [0, 1])
def test_reading_leaves_the_random_state_of_the_process_alone(dataset, num_workers):
    """Else dropout would differ between a resumed run and an uninterrupted one."""
    state = torch.get_rng_state()
    first, second = islice(loader(dataset, num_workers=num_workers), 2)
    list(evaluation_dataloader(dataset, num_workers=num_workers))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first["pixel_values"], second["pixel_values"])


def test_two_processes_see_what_one_sees_with_twice_the_batch():
    whole = list(islice(ShuffledBatches(11, 6, seed=1), 5))
    parts = [islice(ShuffledBatches(11, 3, seed=1, process_index=p, num_processes=2), 5) for p in range(2)]
    assert [first + second for first, second in zip(*parts, strict=True)] == whole


def test_every_sample_comes_once_an_epoch_in_a_new_order():
    stream = [pair for batch in islice(ShuffledBatches(7, 2, seed=5), 14) for pair in batch]
    epochs = [[index for epoch, index in stream if epoch == number] for number in range(4)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert stream != [pair for batch in islice(ShuffledBatches(7, 2, seed=6), 14) for pair in batch]


def test_evaluation_covers_each_sample_once_at_its_own_size(dataset):
    batches = [batch for p in range(2) for batch in evaluation_dataloader(dataset, 2, process_index=p, num_processes=2)]
    names = [name for batch in batches for name in batch["names"]]
    assert sorted(names) == [item["name"] for item in dataset]
    first = dataset[0]
    assert np.array_equal(batches[0]["images"][0].permute(1, 2, 0), first["image"])
    assert np.array_equal(batches[0]["labels"][0], first["label"])
