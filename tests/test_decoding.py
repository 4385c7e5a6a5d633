"""Images: the numbers that were written are the numbers that are read, upright, whatever the depth and the format."""

import io
import json
import zlib

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from small_data import chunk, png, write_folder

from hf_segtx.data import load_data, read_image
from hf_segtx.data.augmentation import TrainingTransform
from hf_segtx.data.decoding import read_image_part
from hf_segtx.data.loaders import evaluation_dataloader, training_dataloader
from hf_segtx.models.image_processing_segtx import SegFormerImageProcessor
from hf_segtx.visualization import overlay


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
        file.write_bytes(png(values))
    elif name == "rgb.tif":
        tifffile.imwrite(file, values, photometric="rgb")
    else:
        np.save(file, values.transpose(2, 0, 1) if name == "first.npy" else values)
    image = read_image(file)
    assert image.dtype == torch.float32 and image.shape == (3, 7, 9) and image.max() == 255
    assert np.array_equal((image.permute(1, 2, 0).numpy() * 257).round(), values)


@pytest.mark.parametrize(
    "case, message",
    [
        ("nan", "the image: 2 of 60 values are no finite numbers"),
        ("fractions", "the image: its values are fractions of 0 to 1, expected are 0 to 255; multiply them by 255"),
        (
            "white",
            "the image: cannot be decoded .0 is white in it, PhotometricInterpretation is 0; save it with 0 as bl",
        ),
    ],
)
def test_numbers_that_are_no_brightness_are_refused(tmp_path, case, message):
    values = np.linspace(0, 1, 60, dtype=np.float32).reshape(4, 5, 3)
    if case == "white":
        tifffile.imwrite(tmp_path / "image.tif", values[..., 0].astype(np.uint16), photometric="miniswhite")
    else:
        np.save(tmp_path / "image.npy", 255 * values)
        assert read_image(tmp_path / "image.npy").max() == 255
        np.save(tmp_path / "image.npy", values.round())
        assert read_image(tmp_path / "image.npy").max() == 1  # black and next to black
        if case == "nan":
            values = 255 * values
            values[0, 0, :2] = np.nan, np.inf
        np.save(tmp_path / "image.npy", values)
    with pytest.raises(ValueError, match=message):
        read_image(next(tmp_path.iterdir()))


def test_many_formats_of_pictures_are_found(tmp_path):
    """Of JPEG 2000, AVIF and others, Pillow says what it reads."""
    write_folder(tmp_path)
    for number, suffix in enumerate(("gif", "ppm", "jfif", "tga", "jp2", "avif")):
        file = tmp_path / f"images/{number:03}.png"
        Image.open(file).save(file.with_suffix(f".{suffix}"))
        file.unlink()
    train, validation, _ = load_data(train_dir=str(tmp_path))
    assert len(train) + len(validation) == 6 and train[0]["image"].mode == "RGB"


def pixels(image):
    """(H, W, C) of what `read_image` gives."""
    image = image.permute(1, 2, 0) if isinstance(image, torch.Tensor) else np.asarray(image)
    return np.asarray(image if image.ndim == 3 else image[..., None])


def turned(array, orientation):
    """(H, W, C) upright: EXIF's eight cases by numpy's own turning and mirroring (Exif 2.32, 4.6.4)."""
    changes = [
        lambda a: a,
        np.fliplr,
        lambda a: np.rot90(a, 2),
        np.flipud,
        lambda a: np.flipud(np.rot90(a)),
        lambda a: np.rot90(a, -1),
        lambda a: np.flipud(np.rot90(a, -1)),
        np.rot90,
    ]
    return changes[orientation - 1](array)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "kind",
    ["8 grey.tif", "8 rgb.tif", "16 grey.tif", "16 rgb.tif", "16 planes.tif", "16 grey.png", "8 rgb.png", "8 rgb.jpg"],
)
def test_images_are_upright(tmp_path, kind, orientation):
    """From a path and from bytes, which Pillow reads in different ways."""
    deep = kind.startswith("16")
    values = np.random.default_rng(0).integers(0, 65536 if deep else 256, (14, 9, 3))
    values = values.astype(np.uint16 if deep else np.uint8)
    values = values[..., :1] if "grey" in kind else values
    file = tmp_path / f"image{kind[-4:]}"
    if kind in ("16 rgb.tif", "16 planes.tif"):
        planes = {"planarconfig": "separate"} if "planes" in kind else {}
        array = values.transpose(2, 0, 1) if planes else values
        tag = (0x0112, "H", 1, orientation, True)
        tifffile.imwrite(file, array, photometric="rgb", extratags=[tag], **planes)
    else:
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(values[..., 0] if values.shape[2] == 1 else values).save(file, exif=exif)
        if file.suffix == ".jpg":
            values = np.asarray(Image.open(file))
    expected = turned(values, orientation).repeat(3 // values.shape[2], -1)
    for source in (file, {"bytes": file.read_bytes()}):
        image, size = read_image_part(source, "", 3)
        assert size == expected.shape[:2]
        # half a grey level of 65536
        assert np.abs(pixels(image).astype(float) - expected / (257 if deep else 1)).max() < 0.002


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_images_that_are_decoded_smaller_know_their_size(orientation):
    """A quarter of 160 x 80 pixels, with a dark upper left quarter of the upright picture."""
    dark = np.full((160, 80, 3), 200, np.uint8)
    dark = dark.transpose(1, 0, 2) if orientation > 4 else dark
    dark[: len(dark) // 2, : dark.shape[1] // 2] = 20
    stored = next(
        a for a in (turned(dark, back) for back in range(1, 9)) if np.array_equal(turned(a, orientation), dark)
    )
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(file, "JPEG", exif=exif)
    image, size = read_image_part({"bytes": file.getvalue()}, "", 3, scale=0.25)
    small = pixels(image)
    assert size == dark.shape[:2] and small.shape[:2] == (size[0] // 4, size[1] // 4)
    assert np.abs(small.astype(int) - dark[2::4, 2::4]).mean() < 5  # JPEG, and blocks of 4 pixels at the edges


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
@pytest.mark.parametrize("columns", [1, 3, 4, 40])
@pytest.mark.parametrize("kind", ["8.png", "16.png", "8.tif", "16.tif", "8.npy", "16.npy"])
def test_images_of_few_rows_or_columns_are_not_taken_for_channels(tmp_path, kind, rows, columns):
    deep = kind.startswith("16")
    values = np.random.default_rng(0).integers(0, 65536 if deep else 256, (rows, columns, 3))
    values = values.astype(np.uint16 if deep else np.uint8)
    file = tmp_path / f"image{kind[-4:]}"
    if kind == "16.png":
        file.write_bytes(png(values))
    elif kind.endswith("tif"):
        tifffile.imwrite(file, values, photometric="rgb")
    else:
        np.save(file, values) if kind.endswith("npy") else Image.fromarray(values).save(file)
    image = pixels(read_image(file))
    assert image.shape == values.shape and np.allclose(image * (257 if deep else 1), values, atol=0.01)  # of 65535


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_transparency_is_dropped(tmp_path, channels, num_channels):
    """Of 16 bits as of 8, in PNG and TIFF; grey from colours of 16 bits is refused."""
    values = np.random.default_rng(0).integers(0, 65536, (7, 9, channels)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(png(values))
    options = {"photometric": "rgb" if channels > 2 else "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "a.tif", values, extrasamples=["unassalpha"] if channels != 3 else None, **options)
    for file in (tmp_path / "a.png", tmp_path / "a.tif"):
        if channels > 2 and num_channels == 1:
            with pytest.raises(ValueError, match="has no axis of 1 channels"):
                read_image(file, num_channels=1)
            continue
        expected = values[..., : 3 if channels > 2 else 1].repeat(num_channels if channels == 2 else 1, -1)
        assert np.allclose(pixels(read_image(file, num_channels=num_channels)) * 257, expected, atol=0.01)


def test_arrays_that_tifffile_wrote_as_pages_are_known_by_their_channels(tmp_path):
    """(24, 32, 5) without a word on what it is: 24 pages of 32 x 5."""
    values = np.random.default_rng(0).integers(0, 65536, (24, 32, 5)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values)
    image = read_image(tmp_path / "a.tif", num_channels=5)
    assert np.allclose(pixels(image) * 257, values, atol=0.01)


def test_compressed_tiff_needs_no_other_library_where_pillow_reads_it(tmp_path):
    """LZW of 16 bits, which tifffile cannot read alone; and a smaller copy in the file, as GDAL writes it."""
    values = np.random.default_rng(0).integers(0, 65536, (64, 64)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tif", compression="tiff_lzw")
    assert np.allclose(pixels(read_image(tmp_path / "a.tif", num_channels=1))[..., 0] * 257, values, atol=0.01)
    colors = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    with tifffile.TiffWriter(tmp_path / "b.tif") as writer:
        writer.write(colors, photometric="rgb")
        writer.write(colors[::2, ::2], photometric="rgb", subfiletype=1)
    assert np.array_equal(pixels(read_image(tmp_path / "b.tif")), colors)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_damaged_files_of_16_bits_are_errors(tmp_path, channels):
    """Cut anywhere, or with one bit changed."""
    content = png(np.random.default_rng(0).integers(0, 65536, (20, 30, channels)))
    for broken in (content[: len(content) // 2], content[:50], content[:500] + b"??" + content[502:]):
        with pytest.raises(ValueError, match="cannot be decoded"):
            read_image({"bytes": broken})


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_interlaced_pngs_of_16_bits(channels):
    """Each pixel of this one is alone in its row of a pass (PNG specification, 8.2)."""
    values = np.arange(4 * channels).reshape(2, 2, channels) * 4096 + 7
    rows = b"".join(b"\0" + pixel.astype(">u2").tobytes() for pixel in values[0])
    rows += b"\0" + values[1].astype(">u2").tobytes()
    content = png(values, interlaced=True)
    start = content.index(b"IDAT") - 4
    content = content[:start] + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    expected = values[..., : 3 if channels > 2 else 1].repeat(1 if channels > 2 else 3, -1)
    assert np.allclose(pixels(read_image({"bytes": content})) * 257, expected, atol=0.01)


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
    transform = TrainingTransform(processor, (24, 32), (1, 1), flip_probability=0, photometric="none")
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


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "the file is empty"), (b"hello", "no known picture format: it begins with b'hello'")]
)
def test_files_that_are_no_pictures_say_so(tmp_path, content, message):
    write_folder(tmp_path)
    (tmp_path / "images/002.png").write_bytes(content)
    with pytest.raises(ValueError, match=rf"images/002\.png: cannot be decoded \({message}\); replace it"):
        load_data(train_dir=str(tmp_path), validation_dir=str(tmp_path))
