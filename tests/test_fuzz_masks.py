"""Random masks and images of every depth, byte order, orientation and format: what was written, or a clear refusal.

Each case counts once:
- right: what comes out is what was written
- clear: a ValueError or OSError, where the file does not say for certain what was meant, or a value is no class
- unsaid: nobody can see from the file that a byte was changed, or which axis of a small array is the channels'
- wrong: anything else was read, or a plain file was refused
- raw: any other exception
Not one may be wrong or raw.
"""

import io
from collections import Counter

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from small_data import png, with_exif
from test_decoding import pixels, turned

from hf_segtx.data import read_image, read_mask
from hf_segtx.data.labels import Labels
from hf_segtx.models.image_processing_segtx import SegFormerImageProcessor, SegFormerImageProcessorPil


pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Pillow warns about broken files
LABELS = Labels(tuple("abcde"))
SIDES = st.sampled_from([1, 2, 3, 4, 5, 9, 16, 33])
REPEATABLE = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False
)


def count(strategy, judge, examples):
    """Judges random cases, and asserts that none is wrong or raw."""
    results, bad = Counter(), []

    @settings(REPEATABLE, max_examples=examples)
    @given(strategy)
    def run(case):
        try:
            verdict = judge(case)
        except Exception as error:
            verdict = f"raw: {type(error).__name__} {error}"
        results[verdict.split(":")[0]] += 1
        if verdict.startswith(("wrong", "raw")):
            bad.append((verdict[:300], case))

    run()
    print(f"tried {results.total()}, {dict(results)}")
    for verdict, case in bad[:200]:
        print(verdict, case)
    assert results["wrong"] == results["raw"] == 0, bad[0]
    assert results["right"] > 0.5 * results.total() and results["clear"] > 0.02 * results.total(), results


class Case(dict):
    """A file and what was written into it.

    Keys: file (bytes), name, written (array), certain (whether it must be read), ...
    """

    def __repr__(self):
        values = np.unique(self["written"])[:9].tolist()
        return f"{self['written'].shape} {values} { ({k: v for k, v in self.items() if k not in ('file', 'written')}) }"


def save(array, mode, **options):
    stream = io.BytesIO()
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(stream, **options)
    return stream.getvalue()


def tif(array, **options):
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


# --- Masks ------------------------------------------------------------------------------------------------------------


@st.composite
def ids_of(draw):
    """(H, W) int64: mostly classes, sometimes what is ignored, negative or no class."""
    size = draw(SIDES), draw(SIDES)
    plain = [[0, 1], [0], range(5), range(5), range(5), [*range(5), 255], [0, 255]]
    pool = draw(st.sampled_from([*plain, *plain, [0, 3, 7], [-1, 0, 2], [0, 70000]]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return random.choice(list(pool), size).astype(np.int64)


@st.composite
def masks(draw):
    ids = draw(ids_of())
    kind = draw(st.sampled_from(MASK_KINDS))
    case = Case(kind=kind.__name__, written=ids, certain=True)
    case["file"] = kind(draw, ids, case)
    if case["file"] is None:  # such values do not fit into such a file
        case["file"], case["kind"] = npy(ids), "npy instead"
    return case


def fits(ids, dtype):
    info = np.iinfo(dtype)
    return info.min <= ids.min() and ids.max() <= info.max


@np.errstate(over="ignore", invalid="ignore")
def survives(ids, dtype):
    """Whether the ids are the same in this type."""
    if dtype.kind in "iu" and not fits(ids, dtype):
        return False
    return np.array_equal(ids.astype(dtype).astype(np.int64), ids)


def by_hand(draw, ids, case):
    """PNG of any depth and number of channels; transparent pixels only where nothing is hidden, or not certain."""
    bits, channels = draw(st.sampled_from([1, 2, 4, 8, 16])), draw(st.sampled_from([1, 1, 2, 3, 4]))
    channels = channels if bits >= 8 else 1
    if ids.min() < 0 or ids.max() >= 2**bits:
        return None
    values = np.repeat(ids[..., None], channels, -1)
    if channels in (2, 4):
        values[..., -1] = 2**bits - 1
        if draw(st.booleans()):
            values[..., -1] = np.random.default_rng(0).choice([0, 2**bits - 1], ids.shape)
            case["certain"] = False
    if channels >= 3 and draw(st.booleans()):
        values[..., 1] = 0  # ids in red and blue only
        case["certain"] = False
    content = png(values, bits)
    orientation = draw(st.sampled_from([1, 1, *range(2, 9)]))
    case["written"] = turned(ids, orientation)
    return content if orientation == 1 else with_exif(content, exif(orientation))


def by_pillow(draw, ids, case):
    options = draw(
        st.sampled_from(
            [
                *[{"format": "TIFF", "compression": c} for c in (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg")],
                {"format": "PNG"},
                {"format": "BMP"},
                {"format": "WEBP", "lossless": True, "exact": True},
                {"format": "WEBP"},
                {"format": "JPEG", "quality": 100},
                {"format": "JPEG2000", "irreversible": True},
                {"format": "PPM"},
            ]
        )
    )
    case["options"] = options
    dtype = draw(st.sampled_from([bool, np.uint8, np.uint8, np.uint16, np.int32, np.float32]))
    lossy = options["format"] in ("JPEG", "JPEG2000") or options.get("compression") == "jpeg"
    lossy = lossy or options["format"] == "WEBP" and not options.get("lossless")
    if dtype is bool and ids.max() > 1 or dtype is not bool and dtype is not np.float32 and not fits(ids, dtype):
        return None
    if ids.min() < 0 and dtype in (bool, np.uint8, np.uint16):
        return None
    if options["format"] not in ("TIFF", "PNG") and dtype not in (bool, np.uint8):
        return None  # Pillow would clip them to 255
    if options["format"] == "WEBP" and dtype is bool:
        return None  # which has no bits: they become 0 and 255
    if options.get("compression") == "jpeg" and dtype is not np.uint8:
        return None  # in libtiff of Pillow 12 that ends the process
    mode = draw(st.sampled_from([None, "RGB", "RGBA", "LA"])) if dtype is np.uint8 else None
    orientation = draw(st.sampled_from([1, 1, 3, 5, 6, 8])) if options["format"] in ("TIFF", "PNG") else 1
    try:
        content = save(ids.astype(dtype), mode, exif=exif(orientation), **options) if orientation > 1 else None
        content = content or save(ids.astype(dtype), mode, **options)
    except (OSError, ValueError, KeyError):  # Pillow does not write such a file
        return None
    case["written"], case["certain"] = turned(ids, orientation), not lossy
    case["lossy"] = lossy
    return content


def palette(draw, ids, case):
    if not fits(ids, np.uint8):
        return None
    image = Image.fromarray(ids.astype(np.uint8)).convert("P")
    image.putdata(ids.ravel().tolist())
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    stream = io.BytesIO()
    transparency = {"transparency": 0} if draw(st.booleans()) else {}
    image.save(stream, draw(st.sampled_from(["PNG", "TIFF", "BMP"])), **transparency)
    return stream.getvalue()


def by_tifffile(draw, ids, case):
    dtype = np.dtype(draw(st.sampled_from("bool u1 i1 u2 i2 u4 i4 u8 i8 f2 f4 f8".split())))
    if dtype.kind == "b" and not (0 <= ids.min() and ids.max() <= 1) or dtype.kind in "iu" and not fits(ids, dtype):
        return None
    if not survives(ids, dtype):
        return None
    order, channels = draw(st.sampled_from("<>")), draw(st.sampled_from([1, 1, 3, 4])) if dtype.itemsize < 3 else 1
    channels = 1 if dtype.kind == "b" else channels
    compression = draw(st.sampled_from([None, "zlib"]))
    orientation = draw(st.sampled_from([1, 1, 2, 4, 5, 6, 7, 8]))
    values = ids if channels == 1 else np.repeat(ids[..., None], channels, -1)
    options = {"photometric": "rgb"} if channels > 1 else {}
    if channels == 4:
        values[..., 3] = np.iinfo(dtype).max if dtype.kind in "iu" else 1
    if channels > 1 and draw(st.booleans()):
        values, options["planarconfig"] = np.moveaxis(values, -1, 0), "separate"
    case.update(dtype=str(dtype), order=order, channels=channels, compression=compression, orientation=orientation)
    case["written"] = turned(ids, orientation)
    tag = [(0x0112, "H", 1, orientation, True)] if orientation > 1 else []
    values = values.astype(dtype.newbyteorder(order))
    return tif(values, byteorder=order, compression=compression, extratags=tag, **options)


def by_numpy(draw, ids, case):
    dtype = np.dtype(draw(st.sampled_from("bool u1 i1 <u2 >u2 >i2 <i4 >i4 i8 >u8 f2 >f4 f8".split())))
    if not survives(ids, dtype):
        return None
    form = draw(st.sampled_from(["plain", "plain", "last", "first", "fortran", "scaled", "one-hot"]))
    case.update(dtype=str(dtype), form=form)
    values = ids.astype(dtype)
    if form == "scaled":
        case["certain"] = False
        return npy(np.where(ids == 255, 254, ids) / 255)
    if form == "one-hot" and 0 <= ids.min() and ids.max() < 5 and len(ids) > 1:  # (1, H, 5) may be (1, H, W)
        case["certain"] = False
        return npy(np.eye(5, dtype=np.uint8)[ids])
    if form == "first":
        return npy(values[None] if ids.shape[1] not in (1, 3) else values)  # (1, H, 3) may be a row of colours
    return npy({"last": values[..., None], "fortran": np.asfortranarray(values)}.get(form, values))


def netpbm(draw, ids, case):
    highest = draw(st.sampled_from([4, 20, 255, 300, 65535]))
    if ids.min() < 0 or ids.max() > highest:
        return None
    case["highest"] = highest
    values = ids.astype(">u2" if highest > 255 else "u1").tobytes()
    return f"P5 {ids.shape[1]} {ids.shape[0]} {highest}\n".encode() + values


def broken(draw, ids, case):
    """A good file that was cut, or in which a byte is another."""
    content = bytearray(draw(st.sampled_from([by_hand, by_tifffile, by_numpy]))(draw, ids, case) or npy(ids))
    case["certain"] = False
    if draw(st.booleans()):
        return bytes(content[: draw(st.integers(0, len(content) - 1))])
    place = draw(st.integers(8, len(content) - 1))
    content[place] ^= 1 << draw(st.integers(0, 7))
    case["changed"] = True
    return bytes(content)


MASK_KINDS = [by_hand, by_hand, by_pillow, by_pillow, palette, by_tifffile, by_tifffile, by_numpy, netpbm, broken]


def judge_mask(case):
    written = case["written"]
    unknown = set(np.unique(written).tolist()) - {*range(5), 255}
    expected = written
    try:
        train = LABELS.map(read_mask({"bytes": case["file"], "path": None}, "mask"), "mask")
    except (ValueError, OSError) as error:
        if len(str(error)) > 500:
            return f"wrong: a long message: {error}"
        if case["certain"] and not unknown:
            return f"wrong: refused: {error}"
        if case["certain"] and not any(str(value) in str(error) for value in unknown):
            return f"wrong: no value: {error}"
        return "clear"
    if case.get("changed"):  # a byte of a file without a checksum: nobody can see it
        return "unsaid"
    return "right" if not unknown and np.array_equal(train, expected) else f"wrong: {np.unique(train)}"


def test_masks_come_out_as_they_were_written():
    count(masks(), judge_mask, 2500)


@st.composite
def label_maps(draw):
    ids = draw(ids_of())
    forms = "array tensor picture bool fraction last first colours other".split()
    form = draw(st.sampled_from(forms))
    dtype = np.dtype(draw(st.sampled_from("u1 i1 <u2 >u2 >i4 i8 u8 f2 f4 >f8".split())))
    case = Case(form=form, dtype=str(dtype), written=ids, certain=True, file=ids)
    if form == "bool":
        case["file"], case["written"] = Image.fromarray(ids > 1) if draw(st.booleans()) else ids > 1, ids > 1
        return case
    if not survives(ids, dtype):
        return case
    values = ids.astype(dtype)
    if form == "tensor":
        case["file"] = torch.from_numpy(values.astype(values.dtype.newbyteorder("=")))
    elif form == "picture" and fits(ids, np.uint16):
        case["file"] = Image.fromarray(ids.astype(draw(st.sampled_from([np.uint16, np.int32, np.float32]))))
    elif form == "fraction":
        case["file"], case["certain"] = np.where(ids == 255, 254, ids) / 255, False
    elif form == "colours":
        case["file"], case["certain"] = np.repeat(values[..., None], 3, -1), False
    elif form == "other":
        case["file"], case["certain"] = np.pad(values, ((0, 1), (0, 0))), False
    else:
        case["file"] = {"last": values[..., None], "first": values[None]}.get(form, values)
    return case


def judge_label_map(case):
    written = case["written"].astype(np.int64)
    processor = (SegFormerImageProcessor, SegFormerImageProcessorPil)[len(case["form"]) % 2]
    picture = Image.new("RGB", written.shape[::-1])
    try:
        (seen,) = processor(do_resize=False, do_pad=False)(picture, case["file"], return_tensors="pt")["labels"]
    except (ValueError, OSError) as error:
        if case["certain"] and written.min() >= 0 or len(str(error)) > 400:
            return f"wrong: refused: {error}"
        return "clear"
    return "right" if written.min() >= 0 and np.array_equal(seen, written) else "wrong: other ids"


def test_label_maps_of_the_processor_come_out_as_they_were_given():
    count(label_maps(), judge_label_map, 800)


# --- Images -----------------------------------------------------------------------------------------------------------


@st.composite
def images(draw):
    dtype = np.dtype(draw(st.sampled_from(["u1", "u2"])))
    channels = draw(st.sampled_from([1, 2, 3, 3, 4, 5]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = random.integers(0, np.iinfo(dtype).max + 1, (draw(SIDES), draw(SIDES), channels)).astype(dtype)
    orientation = draw(st.sampled_from([1, 1, *range(2, 9)]))
    kind = draw(st.sampled_from(["png", "tif", "planes", "pages", "npy", "first"]))
    wanted = draw(st.sampled_from([1, 3, channels]))
    case = Case(kind=kind, dtype=str(dtype), shape=values.shape, orientation=orientation, wanted=wanted, certain=True)
    case["written"] = turned(values, orientation)
    tag = {"extratags": [(0x0112, "H", 1, orientation, True)]} if orientation > 1 else {}
    rgb = {"photometric": "rgb" if channels in (3, 4) else "minisblack"}
    if kind == "png" and channels < 5:
        content = png(values, 8 * dtype.itemsize)
        case["file"] = with_exif(content, exif(orientation)) if orientation > 1 else content
    elif kind == "tif":
        order = draw(st.sampled_from("<>"))
        array = values[..., 0] if channels == 1 else values
        options = {} if channels == 1 else {"planarconfig": "contig", **rgb}
        case["file"] = tif(array.astype(dtype.newbyteorder(order)), byteorder=order, **options, **tag)
    elif kind == "planes" and channels > 1:
        case["file"] = tif(np.moveaxis(values, -1, 0), planarconfig="separate", **rgb, **tag)
    elif kind == "pages" and channels > 1 and 1 not in values.shape:
        case["file"] = tif(np.moveaxis(values, -1, 0), photometric="minisblack", **tag)
    else:
        case["written"] = values
        array = np.moveaxis(values, -1, 0) if kind == "first" else values
        case["file"], case["kind"] = npy(array), "first" if kind == "first" else "npy"
    return case


def expected_image(case):
    """(H, W, C) of 0-255 as float, or None if such a file may be refused."""
    values, wanted = case["written"], case["wanted"]
    channels = values.shape[2]
    colors = values
    if (channels, wanted) == (4, 3) or channels == 2 and wanted in (1, 3) and case["kind"] in ("png", "tif", "planes"):
        colors = values[..., :-1]  # without transparency
    if colors.shape[2] == 1 and wanted == 3:
        colors = colors.repeat(3, -1)
    return colors / (257 if values.dtype == np.uint16 else 1) if colors.shape[2] == wanted else None


def judge_image(case):
    expected = expected_image(case)
    channels = case["written"].shape[2]
    if case["kind"] == "first":  # where the last axis could be the channels', too, it is
        height, width = case["written"].shape[:2]
        fitting = {case["wanted"], *({1, 4} if case["wanted"] == 3 else {1} if case["wanted"] in (1, 4) else ())}
        if width in fitting:
            expected = None
    file = {"bytes": case["file"], "path": None}
    try:
        image = read_image(file, "image", case["wanted"])
    except (ValueError, OSError) as error:
        is_pair = channels == case["wanted"] == 2 and case["kind"] == "png"  # grey and transparency as two channels
        return "clear" if expected is None or is_pair else f"wrong: refused: {error}"
    if expected is None:
        return _judge_other_number(image, case)
    seen = pixels(image)
    if seen.shape != expected.shape or np.abs(seen - expected).max() > 1e-4:  # float32 rounding of 255
        return f"wrong: {seen.shape}"
    return _judge_processor(image, file, expected, case)


def _judge_other_number(image, case):
    """What was read of a file with another number of channels: grey or RGB of it, or another axis of an array."""
    height, width, channels = case["written"].shape
    if case["kind"] in ("npy", "first", "pages"):
        fitting = {case["wanted"], 1, 4} if case["wanted"] == 3 else {case["wanted"], 1}
        return "unsaid" if fitting & {height, width} else "wrong: an axis was found"
    if case["dtype"] == "uint8" and case["wanted"] in (1, 3, 4):  # converted by Pillow, as it always does
        return "unsaid"
    return f"wrong: {case['written'].shape} was read"


def _judge_processor(image, file, expected, case):
    """What a processor makes of what was read, and of what Pillow opens, is the same."""
    wanted = case["wanted"]
    settings = {"do_resize": False, "do_pad": False, "image_mean": [0] * wanted, "image_std": [1] * wanted}
    given = [image]
    if (
        case["kind"] == "png"
        and case["orientation"] == 1
        and (case["dtype"] == "uint8" or case["written"].shape[2] == 1)
    ):
        given.append(Image.open(io.BytesIO(file["bytes"])))
    for picture in given:
        for processor in (SegFormerImageProcessor, SegFormerImageProcessorPil):
            (seen,) = processor(**settings)(picture, return_tensors="pt")["pixel_values"]
            seen = seen.permute(1, 2, 0).numpy() * 255
            if seen.shape != expected.shape or np.abs(seen - expected).max() > 1e-3:  # float32 rounding, twice
                return f"wrong: the processor has {seen.shape}"
    return "right"


def test_images_come_out_as_they_were_written():
    count(images(), judge_image, 2000)
