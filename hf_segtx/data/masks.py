"""Files of masks -> the values that were written: class ids, or colours; upright, not through a palette, not rounded.

    file -> open_picture -> values as in the file (by Pillow, or by `decoding`) -> checked_mask -> `Labels.map`

What could mean something else than it seems is refused: files whose compression changes values, transparency over
colours, several pictures or bands in one file, fractions, one entry for each class.

Shapes: (H, W) image size.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..models.image_processing_segtx import pil_numbers
from .decoding import (
    BITS,
    COMPRESSION,
    SAMPLES,
    WHITE_IS_ZERO,
    content_of,
    grey_numbers,
    has_transparency,
    is_deep,
    num_pages,
    open_picture,
    orientation_of,
    png_numbers,
    raw_mode,
    tiff_numbers,
    undecodable,
)


SOFTWARE, SAMPLE_FORMAT = 305, 339  # tags of TIFF
LOSSY_FORMATS = {"AVIF", "DDS", "HEIF", "JPEG", "JPEG2000", "JXL", "MPO"}
LOSSY_COMPRESSIONS = {6, 7, 33003, 33005, 34712, 34887, 34892, 50001, 50002}  # JPEG, JPEG 2000, LERC, WebP, JPEG XL


def read_mask(file, name: str = "the mask", allow_lossy_masks: bool = False) -> np.ndarray:
    """Decodes a mask to raw values, upright (EXIF): (H, W) ids, or (H, W, 3) colours; integers without exception.

    1-bit pixels are 0 and 1. Transparency is dropped where it hides nothing. Grey values are those in the file, also of
    2 and 4 bits, which programs show spread over 0-255.

    Args:
        file: a path, or {"bytes", "path"} as in HF data sets; or anything that `numpy.asarray` makes an array.
        allow_lossy_masks: whether to read JPEG and the like, whose compression makes other ids of some pixels.

    Raises:
        ValueError: if the file cannot be decoded, or its values are not certain.
    """
    if hasattr(file, "path") and hasattr(file, "__array__"):  # decoded or drawn by itself, and says what is wrong
        return checked_mask(np.asarray(file), name)
    try:
        if isinstance(file, (str, Path, dict, type(None))):
            values = _values_of_file(file, allow_lossy_masks)
        else:
            values = pil_numbers(file) if isinstance(file, Image.Image) else np.asarray(file)
    except _Refused as error:
        raise ValueError(f"{name}: {error}") from error
    except Exception as error:  # of PIL and tifffile many kinds, on broken files
        raise undecodable(name, error) from error
    return checked_mask(values, name)


class _Refused(ValueError):
    """A mask that can be decoded, and whose values may mean something else than it seems."""


def _values_of_file(file, allow_lossy_masks: bool) -> np.ndarray:
    picture = open_picture(file)
    if isinstance(picture, np.ndarray):
        return picture
    if picture is None:
        return _tiff_values(file)
    if not allow_lossy_masks and (kind := _lossy_kind(picture, file)):
        raise _Refused(
            f"a mask stored as {kind}, which changes values: some pixels now have ids of other classes. Save masks as "
            "PNG from the start, or set allow_lossy_masks to train on these"
        )
    if picture.format != "MPO" and (count := num_pages(picture)) > 1:
        raise _Refused(f"it holds {count} pictures, a mask is one; save each in a file of its own")
    raw, largest = raw_mode(picture), 0
    if picture.format == "TIFF":
        largest = _inverted(picture)
        if is_deep(picture, raw):
            return _tiff_values(file)
    if is_deep(picture, raw):
        values = png_numbers(picture, raw, file)
        return _without_alpha(values) if values.shape[2] in (2, 4) else values
    spread = _spread(picture, raw)  # before it is decoded
    if picture.mode[0] in "IF":
        values = grey_numbers(picture)
    else:
        if orientation_of(picture) != 1:
            ImageOps.exif_transpose(picture, in_place=True)
        values = _pil_values(picture)
    if spread != 1:
        values = np.round(values / spread).astype(values.dtype)
    return largest - values if largest else values


def _pil_values(picture: Image.Image) -> np.ndarray:
    if picture.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        picture = picture.convert("RGB")
    elif picture.mode in ("La", "RGBa"):  # multiplied with the transparency
        picture = picture.convert(picture.mode.upper())
    values = pil_numbers(picture)
    if picture.mode == "P":
        _check_palette(picture, values)
    if picture.format == "TIFF" and picture.tag_v2.get(SAMPLE_FORMAT) == (2,):
        values = values.view(np.int8)  # for which Pillow has no mode
    return _without_alpha(values) if picture.mode in ("LA", "PA", "RGBA") else values


def _check_palette(picture: Image.Image, values: np.ndarray) -> None:
    """Colours only name the classes, but greys may be the ids: programs that make files small number them anew."""
    palette = np.array(picture.getpalette("RGB"), int).reshape(-1, 3)
    greys = palette[:, 0]
    if (palette == palette[:, :1]).all() and (np.diff(greys) < 0).any():
        used = np.flatnonzero(np.bincount(values.ravel(), minlength=len(greys)))
        if (np.diff(greys[used[used < len(greys)]]) < 0).any():
            raise _Refused(
                "its palette holds greys in another order than their numbers, so that it is not certain which of the "
                "two are the class ids; save the mask as a PNG with one channel of class ids, without a palette"
            )


def palette_of(file) -> np.ndarray | None:
    """(n, 3) colours of a picture's palette, which `read_mask` does not look at; None of what has no palette."""
    picture = open_picture(file) if isinstance(file, (str, Path, dict)) else None
    if not isinstance(picture, Image.Image) or picture.mode != "P":
        return None
    return np.frombuffer(bytes(picture.getpalette("RGB")), np.uint8).reshape(-1, 3)


def _tiff_values(file) -> np.ndarray:
    values, axes = tiff_numbers(file)
    if values.ndim == 3 and axes != (2,):
        raise _Refused(f"it holds {len(values)} pictures, a mask is one; save each in a file of its own")
    if values.ndim == 3 and values.shape[2] == 2 and values.itemsize == 1 and not has_transparency(file):
        raise _Refused("it has 2 bands, a mask has one of class ids or three of colours; save these alone")
    return _without_alpha(values) if values.ndim == 3 and values.shape[2] in (2, 4) else values


def _spread(picture: Image.Image, raw: str) -> float:
    """By what Pillow multiplies values of few bits, so that the largest is 255 (or 65535, of 16 bits)."""
    bits = 8
    if picture.format == "PPM" and picture.tile[0][0].startswith("ppm"):
        highest = picture.tile[0][3][-1]
        if highest > 255 and picture.mode != "I":
            raise _Refused(
                "PPM of more than 8 bits, which Pillow rounds; save it as a PNG with one channel of class ids"
            )
        return (65535 if picture.mode == "I" else 255) / highest
    if picture.format == "PNG" and raw in ("L;2", "L;4"):
        bits = int(raw[-1])
    elif picture.format == "TIFF" and picture.mode == "L":
        bits = picture.tag_v2.get(BITS, (8,))[0]
    return {2: 85, 4: 17}.get(bits, 1)


def _inverted(picture: Image.Image) -> int:
    """0 if the values in a TIFF file are what Pillow gives; else the value from which that is to be subtracted.

    Raises:
        _Refused: if that is not certain, or there are bands that Pillow leaves out.
    """
    tags, bits = picture.tag_v2, picture.tag_v2.get(BITS, (1,))
    if (samples := tags.get(SAMPLES, 1)) != len(picture.getbands()) and max(bits) <= 8:
        raise _Refused(f"it has {samples} bands, a mask has one of class ids or three of colours; save these alone")
    if tags.get(WHITE_IS_ZERO) != 0:
        return 0
    if str(tags.get(SOFTWARE)).startswith("tifffile"):  # which writes values as they are, and says this of 1 bit
        return 2 ** bits[0] - 1 if bits[0] <= 8 else 0  # Pillow inverts these only
    if bits == (1,):
        return 0
    raise _Refused(
        "its header says that 0 is white (PhotometricInterpretation 0), so that programs read different values; save "
        "it with 0 for black (MinIsBlack)"
    )


def _lossy_kind(picture: Image.Image, file) -> str | None:
    """The name of the file's compression if it changes values."""
    if picture.format in LOSSY_FORMATS:
        return picture.format
    if picture.format == "TIFF" and picture.tag_v2.get(COMPRESSION, 1) in LOSSY_COMPRESSIONS:
        return f"TIFF with the compression {picture.info.get('compression', picture.tag_v2[COMPRESSION])}"
    if picture.format == "WEBP":
        content, position = content_of(file), 12
        while position < len(content):  # chunks: name, length, content, to an even position
            kind, length = (
                content[position : position + 4],
                int.from_bytes(content[position + 4 : position + 8], "little"),
            )
            if kind == b"VP8 ":
                return "lossy WebP"
            position += 8 + length + length % 2
    return None


def _without_alpha(values: np.ndarray) -> np.ndarray:
    """(H, W, C) without its last channel, the transparency, if that hides nothing.

    Raises:
        _Refused: if colours other than black are transparent, or the transparency seems to be the mask.
    """
    colors, alpha = values[..., :-1], values[..., -1]
    if (alpha == alpha.flat[0]).all():
        return colors[..., 0] if colors.shape[-1] == 1 else colors
    if (colors == colors[:1, :1]).all():
        raise _Refused("all pixels have one colour and only the transparency differs; save it alone, as class ids")
    if colors[alpha != np.iinfo(alpha.dtype).max].any():
        raise _Refused(
            "some pixels are transparent and not black, so that programs show other values; save the mask without "
            "transparency (an alpha channel)"
        )
    return colors[..., 0] if colors.shape[-1] == 1 else colors


def checked_mask(values: np.ndarray, name: str) -> np.ndarray:
    """An array as (H, W) ids or (H, W, 3) colours, of integers in the byte order of the machine.

    Raises:
        ValueError: for fractions, other types and other shapes, with what they seem to be.
    """
    if values.dtype == bool:
        values = (values.view(np.uint8) != 0).astype(np.uint8)  # a true byte may be any but 0
    if values.dtype.kind == "f":
        values = _whole(values, name)
    if values.dtype.kind not in "iu":
        raise ValueError(f"{name}: a mask of the type {values.dtype}; save it with integer ids")
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    elif values.ndim == 3 and values.shape[0] == 1 and values.shape[2] != 3:
        values = values[0]
    if values.ndim == 3 and (axis := _one_hot_axis(values)) is not None:
        raise ValueError(
            f"{name}: shape {values.shape} with a single 1 at each pixel seems to be one-hot, an entry for each of "
            f"{values.shape[axis]} classes; save the ids, mask.argmax({axis})"
        )
    if values.ndim == 2 or values.ndim == 3 and values.shape[2] == 3:
        return values
    raise ValueError(
        f"{name}: a mask is (height, width) class ids, or (height, width, 3) colours, not {values.dtype} of shape "
        f"{values.shape}; save it as a PNG with one channel of class ids"
    )


def _whole(values: np.ndarray, name: str) -> np.ndarray:
    """Floats as integers."""
    values = values.astype(np.float64)
    is_whole = (np.abs(values) < 2**53) & (values == np.round(values))
    if not is_whole.all():
        bad = values[~is_whole]
        scaled = bad * 255
        what = f"the mask holds fractions (first {bad[0]:.6g})"
        if ((0 <= scaled) & (scaled <= 255)).all() and (np.abs(scaled - np.round(scaled)) < 1e-3).all():
            what += f", which seem to be ids divided by 255 (first {scaled[0]:.0f}), as ToTensor makes them"
        raise ValueError(f"{name}: {what}; save it with integer ids")
    return values.astype(np.int64)


def _one_hot_axis(values: np.ndarray) -> int | None:
    """The axis of the classes if each pixel has one 1 and otherwise 0; the last of three may be that of colours."""
    if values.shape[2] == 3 or not values.size or values.max() != 1 or values.min() != 0:
        return None
    return next((axis for axis in (2, 0) if values.shape[axis] > 1 and (values.sum(axis) == 1).all()), None)
