"""Images and masks: the numbers that were written are the numbers that are read."""

import json
import struct
import zlib

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from small_data import CLASSES, chunk, png_16_bits, write_folder

from hf_segtx.data import load_data, read_image, read_mask
from hf_segtx.data.augmentation import TrainingTransform
from hf_segtx.data.loaders import evaluation_dataloader, training_dataloader
from hf_segtx.models.image_processing_segtx import SegFormerImageProcessor
from hf_segtx.visualization import overlay


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
    mean, std = [0.1] * 5, [0.2, 0.3, 0.4, 0.5, 0.6]
    processor = SegFormerImageProcessor(image_mean=mean, image_std=std, do_resize=False, do_pad=False)
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


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "the file is empty"), (b"hello", "no known picture format: it begins with b'hello'")]
)
def test_files_that_are_no_pictures_say_so(tmp_path, content, message):
    write_folder(tmp_path)
    (tmp_path / "images/002.png").write_bytes(content)
    with pytest.raises(ValueError, match=rf"images/002\.png: cannot be decoded \({message}\); replace it"):
        load_data(train_dir=str(tmp_path), validation_dir=str(tmp_path))
