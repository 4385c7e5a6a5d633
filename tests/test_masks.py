"""Masks: the values that were written are the values that are read, whatever file they are in; else a clear refusal."""

import io
import json
import logging

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps
from small_data import CLASSES, png, with_exif, write_folder

from hf_segtx.data import SegmentationDataset, load_data, read_mask
from hf_segtx.data.labels import Labels


SIZE = (7, 9)
TWO_CLASSES = [{"id": 0, "name": "background"}, {"id": 1, "name": "crack"}]


def random_ids(highest, size=SIZE):
    ids = np.random.default_rng(0).integers(0, highest + 1, size)
    ids[0, 0], ids[1, 1] = highest, 0
    return ids


def pil(mode="L", dtype=np.uint8, **options):
    """Writes by Pillow."""
    return lambda file, ids: Image.fromarray(ids.astype(dtype)).convert(mode).save(file, **options)


def palette(file, ids):
    mask = Image.fromarray(ids.astype(np.uint8)).convert("P")
    mask.putdata(ids.ravel().tolist())
    mask.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    mask.save(file, transparency=0) if file.suffix == ".png" else mask.save(file)


def grey_palette(file, greys):
    mask = Image.fromarray(random_ids(2).astype(np.uint8)).convert("P")
    mask.putdata(random_ids(2).ravel().tolist())
    mask.putpalette(np.repeat(greys, 3).tolist())
    mask.save(file)


def by_hand(channels=1, bits=16, alpha=False):
    """A PNG with the id in each channel but the last, if that is alpha."""

    def write(file, ids):
        values = np.repeat(ids[..., None], channels, -1)
        if alpha:
            values[..., -1] = 2**bits - 1
        file.write_bytes(png(values, bits))

    return write


def tif(dtype, channels=0, axis=-1, **options):
    """Writes by tifffile, in the byte order of the type."""

    def write(file, ids):
        values = (np.stack([ids] * channels, axis) if channels else ids).astype(dtype)
        tifffile.imwrite(file, values, byteorder=">" if dtype.startswith(">") else "<", **options)

    return write


def npy(dtype):
    return lambda file, ids: np.save(file, ids.astype(dtype))


def pgm(highest):
    def write(file, ids):
        values = ids.astype(">u2" if highest > 255 else "u1").tobytes()
        file.write_bytes(f"P5 {ids.shape[1]} {ids.shape[0]} {highest}\n".encode() + values)

    return write


WRITTEN = {
    "palette.png": (palette, 255),
    "palette.bmp": (palette, 255),
    "1 bit.png": (pil("1", bool), 1),
    "1 bit.bmp": (pil("1", bool), 1),
    "1 bit.tif": (pil("1", bool), 1),
    "1 bit fax.tif": (pil("1", bool, compression="group4"), 1),
    "1 bit by tifffile.tif": (tif("bool"), 1),
    "1 bit.pbm": (pil("1", bool), 0),
    "2 bits.png": (by_hand(bits=2), 3),
    "4 bits.png": (by_hand(bits=4), 15),
    "8 bits.png": (pil(), 255),
    "8 bits.bmp": (pil(), 255),
    "8 bits.tif": (pil(compression="tiff_lzw"), 255),
    "8 bits.webp": (pil(lossless=True), 255),
    "8 bits white is zero.tif": (tif("u1", photometric="miniswhite"), 255),
    "20 grey levels.pgm": (pgm(20), 20),
    "1000 grey levels.pgm": (pgm(1000), 1000),
    "16 bits.png": (pil("I;16", np.uint16), 65535),
    "16 bits.tif": (pil("I;16", np.uint16), 65535),
    "16 bits lzw.tif": (pil("I;16", np.uint16, compression="tiff_lzw"), 65535),
    "16 bits.pgm": (pgm(65535), 65535),
    "u2 big.tif": (tif(">u2"), 65535),
    "u2 big zlib.tif": (tif(">u2", compression="zlib"), 65535),
    "i2 big zlib.tif": (tif(">i2", compression="zlib"), 32767),
    "i4 big zlib.tif": (tif(">i4", compression="zlib"), 2**31 - 1),
    "f4 big zlib.tif": (tif(">f4", compression="zlib"), 10**6),
    "u4.tif": (tif("<u4"), 2**32 - 1),
    "u4 big.tif": (tif(">u4"), 2**32 - 1),
    "u8.tif": (tif("<u8"), 2**40),
    "i1.tif": (tif("i1"), 127),
    "i2.tif": (tif("<i2"), 32767),
    "i2 big.tif": (tif(">i2"), 32767),
    "i4.tif": (tif("<i4"), 2**31 - 1),
    "i4 big.tif": (tif(">i4"), 2**31 - 1),
    "i8 big.tif": (tif(">i8"), 2**40),
    "f2.tif": (tif("f2"), 2000),
    "f4.tif": (tif("<f4"), 10**6),
    "f4 big.tif": (tif(">f4"), 10**6),
    "f8.tif": (tif("f8"), 10**9),
    "alpha.png": (pil("LA"), 255),
    "rgb.png": (pil("RGB"), 255),
    "rgba.png": (pil("RGBA"), 255),
    "rgba.tif": (pil("RGBA"), 255),
    "rgb lossless.webp": (pil("RGBA", lossless=True, exact=True), 255),
    "alpha 16 bits.png": (by_hand(2, alpha=True), 65535),
    "rgb 16 bits.png": (by_hand(3), 65535),
    "rgba 16 bits.png": (by_hand(4, alpha=True), 65535),
    "rgb 16 bits.tif": (tif("<u2", 3), 65535),
    "rgb 16 bits big.tif": (tif(">u2", 3), 65535),
    "rgb 16 bits planes.tif": (tif("<u2", 3, axis=0, photometric="rgb", planarconfig="separate"), 65535),
    "one page.tif": (lambda file, ids: tifffile.imwrite(file, ids[None].astype("u2")), 65535),
    "one channel.tif": (lambda file, ids: tifffile.imwrite(file, ids[..., None].astype("u1")), 255),
    **{
        f"{kind}.npy": (npy(kind), 1 if kind == "bool" else 100)
        for kind in "bool u1 i1 <u2 >u2 >i4 i8 >u8 f2 >f8".split()
    },
    "one channel.npy": (lambda file, ids: np.save(file, ids[..., None]), 100),
    "channel first.npy": (lambda file, ids: np.save(file, ids[None]), 100),
    "fortran.npy": (lambda file, ids: np.save(file, np.asfortranarray(ids)), 100),
}


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("as_bytes", [False, True], ids=["file", "bytes"])
def test_the_ids_that_were_written_are_read(tmp_path, name, as_bytes):
    """Through a contract without colours; files, and the bytes of tables."""
    write, highest = WRITTEN[name]
    ids = random_ids(highest)
    file = tmp_path / f"mask.{name.rsplit('.')[-1]}"
    write(file, ids)
    mask = read_mask({"bytes": file.read_bytes(), "path": file.name} if as_bytes else file)
    mask = Labels(("a", "b")).ids_or_colors(mask)
    assert mask.dtype.kind in "iu" and mask.dtype.isnative and np.array_equal(mask, ids)


@pytest.mark.parametrize(
    "name", ["i1.tif", "i2.tif", "i2 big.tif", "i2 big zlib.tif", "i4.tif", "i4 big.tif", "i1.npy", ">i4.npy"]
)
def test_negative_ids_are_read_and_refused(tmp_path, name):
    file = tmp_path / f"mask{name[-4:]}"
    WRITTEN[name][0](file, np.array([[0, -1, 1], [-1, 0, 1]]))
    assert read_mask(file).tolist() == [[0, -1, 1], [-1, 0, 1]]
    with pytest.raises(ValueError, match="2 of 6 pixels have value -1"):
        Labels(("a", "b")).map(read_mask(file))


def test_arrays_and_pictures_in_memory_are_masks_too():
    ids = random_ids(1)
    for mask in (ids.tolist(), ids.astype(bool), Image.fromarray(ids > 0), Image.fromarray(ids.astype(np.uint16))):
        assert np.array_equal(read_mask(mask), ids)
    whole_bytes = np.array([[0, 255], [255, 0]], np.uint8).view(bool)  # as in Pillow's pictures of mode 1
    assert read_mask(whole_bytes).tolist() == Labels(("a", "b")).map(whole_bytes).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "kind", ["8 bits.png", "8 bits.tif", "16 bits.png", "16 bits.tif", "rgb 16 bits.png", "1 bit.png"]
)
def test_masks_are_upright(tmp_path, kind, orientation):
    """Against Pillow's own turning of the 8-bit picture of the same ids."""
    ids, file = random_ids(1).astype(np.uint8), tmp_path / f"mask.{kind[-3:]}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind.startswith("rgb"):
        file.write_bytes(with_exif(png(np.repeat(ids[..., None], 3, -1)), exif))
    else:
        dtype = {"8 bits": np.uint8, "1 bit.": bool}.get(kind[:6], np.uint16)
        Image.fromarray(ids.astype(dtype)).save(file, exif=exif)
    source = Image.fromarray(ids)
    source.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(source))
    assert np.array_equal(Labels(("a", "b")).map(read_mask(file)), expected)


ONE_HOT = np.eye(4, dtype=np.uint8)[random_ids(3)]
TRANSPARENT = np.dstack([random_ids(2)] * 3 + [np.where(np.arange(9) < 4, 0, 255)[None].repeat(7, 0)]).astype(np.uint8)
CUTOUT = np.dstack([np.zeros((*SIZE, 3)), 255 * random_ids(1)]).astype(np.uint8)
REFUSED = {
    "k255.npy": (
        lambda f: np.save(f, random_ids(2) / 255),
        "fractions (first 0.007",
        "divided by 255 (first 2)",
        "integer",
    ),
    "half.tif": (
        lambda f: tifffile.imwrite(f, random_ids(2).astype("f4") + 0.5),
        "fractions (first 2.5)",
        "integer ids",
    ),
    "nan.npy": (lambda f: np.save(f, np.full(SIZE, np.nan)), "fractions (first nan)"),
    "inf.npy": (lambda f: np.save(f, np.full(SIZE, np.inf)), "first inf"),
    "complex.npy": (lambda f: np.save(f, random_ids(2) * 1j), "complex128", "integer ids"),
    "text.npy": (lambda f: np.save(f, np.full(SIZE, "a")), "<U1"),
    "objects.npy": (lambda f: np.save(f, np.full(SIZE, None), allow_pickle=True), "allow_pickle"),
    "lossy.jpg": (lambda f: pil()(f, random_ids(2)), "JPEG", "allow_lossy_masks", "PNG"),
    "lossy.webp": (lambda f: pil()(f, random_ids(2)), "lossy WebP"),
    "alpha.webp": (lambda f: pil("RGBA")(f, random_ids(2)), "lossy WebP"),
    "jpeg.tif": (lambda f: pil(compression="jpeg")(f, random_ids(2)), "TIFF with the compression jpeg"),
    "lossy.jp2": (lambda f: pil()(f, random_ids(2)), "JPEG2000"),
    "pages.tif": (lambda f: tifffile.imwrite(f, np.zeros((5, 8, 9), "u1")), "it holds 5 pictures"),
    "pages16.tif": (lambda f: tifffile.imwrite(f, np.zeros((5, 8, 9), "u8")), "it holds 5 pictures"),
    "moving.gif": (
        lambda f: Image.fromarray(random_ids(200).astype(np.uint8)).save(
            f, save_all=True, append_images=[Image.new("L", (9, 7), 2)]
        ),
        "it holds 2 pictures",
    ),
    "deep.ppm": (lambda f: f.write_bytes(b"P6 1 1 1000\n" + bytes(6)), "PPM of more than 8 bits"),
    "small.png": (lambda f: grey_palette(f, [255, 0, 128]), "palette holds greys in another order"),
    "bands.tif": (
        lambda f: tifffile.imwrite(f, np.zeros((7, 9, 2), "u1"), photometric="minisblack", planarconfig="contig"),
        "it has 2 bands",
    ),
    "white.tif": (
        lambda f: tifffile.imwrite(f, random_ids(2).astype("u1"), photometric="miniswhite", software="scanner"),
        "PhotometricInterpretation 0",
        "MinIsBlack",
    ),
    "hot last.npy": (lambda f: np.save(f, ONE_HOT), "one-hot", "4 classes", "mask.argmax(2)", "(7, 9, 4)"),
    "hot first.npy": (lambda f: np.save(f, ONE_HOT.transpose(2, 0, 1)), "one-hot", "mask.argmax(0)"),
    "planes.npy": (lambda f: np.save(f, np.full((3, 7, 9), 2)), "(3, 7, 9)", "one channel of class ids"),
    "row.npy": (lambda f: np.save(f, np.zeros(9, np.uint8)), "(9,)"),
    "transparent.png": (lambda f: Image.fromarray(TRANSPARENT).save(f), "transparent and not black", "alpha"),
    "transparent16.png": (lambda f: f.write_bytes(png(TRANSPARENT.astype(int) * 257)), "transparent and not black"),
    "cutout.png": (lambda f: Image.fromarray(CUTOUT).save(f), "only the transparency differs"),
    "cut.png": (lambda f: f.write_bytes(png(random_ids(2))[:60]), "cannot be decoded"),
    "damaged.png": (lambda f: f.write_bytes(damaged(png(np.dstack([random_ids(2)] * 3)))), "cannot be decoded"),
    "empty.tif": (lambda f: f.write_bytes(b"II*\0"), "cannot be decoded"),
}


def damaged(content):
    """One bit of the pixels is another."""
    content = bytearray(content)
    content[content.index(b"IDAT") + 12] ^= 4
    return bytes(content)


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_mean_something_else_is_refused_with_the_cure(tmp_path, name):
    write, *words = REFUSED[name]
    file = tmp_path / name
    write(file)
    with pytest.raises(ValueError) as raised:
        read_mask(file, name)
    message = str(raised.value)
    assert message.startswith(f"{name}: ") and all(word in message for word in words), message
    assert len(message) < 400


def test_transparency_that_hides_nothing_is_dropped(tmp_path):
    ids = random_ids(2)
    values = np.dstack([ids] * 3 + [np.where(ids == 0, 0, 255)]).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), values[..., :3])


@pytest.mark.parametrize("greys", [[0, 128, 255], [7, 7, 7], [1, 2, 3, 0, 0]])
def test_greys_in_the_order_of_the_ids_are_a_palette_like_others(tmp_path, greys):
    grey_palette(tmp_path / "mask.png", greys)
    assert np.array_equal(read_mask(tmp_path / "mask.png"), random_ids(2))


def test_smaller_copies_in_a_tiff_do_not_count(tmp_path):
    """As GDAL and cloud-optimized GeoTIFF have them."""
    ids = random_ids(200, (64, 64)).astype(np.uint8)
    with tifffile.TiffWriter(tmp_path / "mask.tif") as writer:
        writer.write(ids)
        writer.write(ids[::2, ::2], subfiletype=1)
    assert np.array_equal(read_mask(tmp_path / "mask.tif"), ids)


def folder_of(root, write, classes=TWO_CLASSES, suffix="png", count=6):
    """Images, and masks by `write`, of ids 0 and 1 at random."""
    write_folder(root, count, SIZE, classes, ids=(0,))
    for number in range(count):
        (root / f"masks/{number:03}.png").unlink()
        write(root / f"masks/{number:03}.{suffix}", np.random.default_rng(number).integers(0, 2, SIZE))
    return root


def white(mode):
    return lambda file, ids: Image.fromarray((255 * ids).astype(np.uint8)).convert(mode).save(file)


@pytest.mark.parametrize(
    ("write", "suffix"),
    [
        *[(pil("1", bool), suffix) for suffix in ("png", "tif", "bmp")],
        (tif("bool"), "tif"),
        *[(white(mode), "png") for mode in ("L", "RGB", "RGBA", "LA", "P")],
        (lambda file, ids: np.save(file, ids.astype(bool)), "npy"),
        (lambda file, ids: np.save(file, 255 * ids), "npy"),
        (lambda file, ids: tifffile.imwrite(file, (255 * ids).astype(">u2"), byteorder=">"), "tif"),
    ],
)
@pytest.mark.parametrize("classes", [TWO_CLASSES, ["background", "crack"], ["crack"]], ids=["json", "names", "one"])
def test_two_classes_in_any_file_are_0_and_1(tmp_path, write, suffix, classes):
    """1 bit, or 0 and 255; the check and the data set agree on it."""
    if classes is TWO_CLASSES:
        folder_of(tmp_path, write, suffix=suffix)
    else:
        folder_of(tmp_path, write, classes=None, suffix=suffix)
        (tmp_path / "id2label.json").write_text(json.dumps(classes))
    train, validation, _ = load_data(train_dir=str(tmp_path))
    for dataset in (train, validation):
        for item in dataset:
            expected = np.random.default_rng(int(item["name"][-7:-4])).integers(0, 2, SIZE)
            assert np.array_equal(item["label"], expected)


def test_masks_in_parquet_files(tmp_path):
    """1-bit pictures as the bytes of a table."""
    import datasets
    from datasets.table import embed_table_storage

    folder_of(tmp_path / "files", pil("1", bool))
    names = [f"{number:03}.png" for number in range(6)]
    rows = [{"image": str(tmp_path / f"files/images/{n}"), "label": str(tmp_path / f"files/masks/{n}")} for n in names]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    table = datasets.Dataset.from_list(rows, features=features).with_format("arrow")
    table = table.map(embed_table_storage, batched=True).with_format(None)
    table.to_parquet(tmp_path / "data.parquet")
    for streaming in (False, True):
        train, _, _ = load_data(
            dataset_name=str(tmp_path / "data.parquet"),
            classes_file=str(tmp_path / "files/classes.json"),
            cache_dir=str(tmp_path / "cache"),
            streaming=streaming,
        )
        for item, row in zip(train, train.indices, strict=True):
            assert np.array_equal(item["label"], np.random.default_rng(row).integers(0, 2, SIZE))


def test_grey_ids_saved_as_rgb_are_said_once(tmp_path, caplog):
    folder_of(tmp_path, pil("RGB"))
    with caplog.at_level(logging.INFO):
        load_data(train_dir=str(tmp_path), validation_dir=str(tmp_path))
    said = [record.getMessage() for record in caplog.records if "equal channels" in record.getMessage()]
    assert len(said) == 2 and said[0].startswith("6 of all 6 training masks are RGB pictures")


def test_255_in_some_masks_only_is_said(tmp_path, caplog):
    """Three masks of 0 and 255 among masks of 0 and 1; not if 255 is between the classes, as at outlines."""
    folder_of(tmp_path / "a", lambda file, ids: pil()(file, ids * (255 if int(file.stem) < 3 else 1)))
    load_data(train_dir=str(tmp_path / "a"), validation_dir=str(tmp_path / "a"))
    assert "3 of all 6 training masks hold 0 and 255 only" in caplog.text
    caplog.clear()
    folder_of(tmp_path / "b", lambda file, ids: pil()(file, np.where(np.arange(9) < 2, 255, ids)))
    load_data(train_dir=str(tmp_path / "b"), validation_dir=str(tmp_path / "b"))
    assert "hold 0 and 255 only" not in caplog.text


def test_lossy_masks_are_read_if_one_says_so(tmp_path):
    """JPEG of the best quality keeps areas of 0 and 255."""
    folder_of(tmp_path, lambda file, ids: Image.new("L", SIZE[::-1], 255 * int(ids[0, 0])).save(file), suffix="jpg")
    with pytest.raises(ValueError, match=r"000\.jpg: a mask stored as JPEG, which changes values"):
        load_data(train_dir=str(tmp_path))
    train, _, _ = load_data(train_dir=str(tmp_path), allow_lossy_masks=True)
    assert {int(value) for item in train for value in np.unique(item["label"])} == {0, 1}
    assert train.select([0, 1]).allow_lossy_masks


@pytest.mark.parametrize("turned", ["image", "mask"])
def test_turned_images_and_upright_masks_are_explained(tmp_path, turned):
    write_folder(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(6):
        file = tmp_path / f"{turned}s/{number:03}.png"
        Image.open(file).save(file, exif=exif)
    with pytest.raises(ValueError) as raised:
        SegmentationDataset(
            [(str(tmp_path / "images/000.png"), str(tmp_path / "masks/000.png"))], Labels.from_folder(tmp_path)
        )[0]
    message = str(raised.value)
    sizes = ("32x24", "24x32") if turned == "image" else ("24x32", "32x24")
    assert f"the mask is {sizes[0]} pixels" in message and sizes[1] in message
    assert f"EXIF says that the {turned} is to be turned" in message and len(message) < 400
    for number in range(6):  # both turned: they fit
        for kind in ("images", "masks"):
            file = tmp_path / f"{kind}/{number:03}.png"
            Image.open(file).save(file, exif=exif)
    train, _, _ = load_data(train_dir=str(tmp_path), validation_dir=str(tmp_path))
    raw = np.asarray(Image.open(tmp_path / "masks/003.png"))
    assert np.array_equal(train[3]["label"], np.rot90(np.where(raw == 9, 255, raw), -1))


def test_rgb_masks_go_through_the_colors(tmp_path):
    write_folder(tmp_path, count=2)
    by_id = {entry["id"]: entry["color"] for entry in CLASSES}
    ids = np.random.default_rng(1).choice(list(by_id), (24, 32))
    colors = np.array([[by_id[value] for value in row] for row in ids.tolist()], np.uint8)
    Image.fromarray(colors).save(tmp_path / "masks/000.png")
    train, _, _ = load_data(train_dir=str(tmp_path), validation_dir=str(tmp_path))
    assert np.array_equal(train[0]["label"], np.where(ids == 9, 255, ids))
    stream = io.BytesIO()
    Image.fromarray(colors).save(stream, "WEBP", lossless=True)
    assert np.array_equal(read_mask({"bytes": stream.getvalue()}), colors)
