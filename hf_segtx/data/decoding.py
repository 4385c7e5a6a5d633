"""Files of images -> pixels, upright, of any depth and number of channels; and the very numbers of a file.

Pillow opens the files. It would change the numbers of some: of PNG and TIFF with several channels of more than 8 bits
it keeps the first byte of each, of others (64 bits, many bands) it knows nothing. Those are read here, and by tifffile.

Shapes: (H, W) image size, C channels.
"""

import io
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from ..models.image_processing_segtx import is_of_fractions, pil_numbers, scaled_to_255
from .partial_decoding import first_rows


IMAGE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# Tags of TIFF; EXIF's orientation is the same. White is 0 if the third is 0.
BITS, COMPRESSION, WHITE_IS_ZERO, ORIENTATION, SAMPLES = 258, 259, 262, 274, 277


# --- Files ----------------------------------------------------------------------------------------------------------


def name_of(file, position: str) -> str:
    """What messages call a file: its path, or where it stands in a table."""
    path = file.get("path") if isinstance(file, dict) else getattr(file, "path", file)
    if isinstance(path, (str, Path)):
        return str(path) if not isinstance(file, dict) else f"{path} ({position})"
    return position


def source_of(file) -> str | Path | io.BytesIO:
    """A path, or an open file of the bytes.

    Args:
        file: a path, or {"bytes", "path"} as in HF data sets.
    """
    if file is None:
        raise ValueError("the value is missing, null")
    if isinstance(file, dict):
        return io.BytesIO(file["bytes"]) if file.get("bytes") is not None else file["path"]
    return file


def content_of(file) -> bytes:
    source = source_of(file)
    return source.getvalue() if isinstance(source, io.BytesIO) else Path(source).read_bytes()


def undecodable(name: str, error: Exception) -> ValueError:
    """What is raised for a file that is broken, or whose reader is not installed."""
    if "imagecodecs" in str(error):  # of tifffile
        return ValueError(f"{name}: its compression needs a library ({error}): pip install imagecodecs")
    if isinstance(error, ImportError):
        return ValueError(f"{name}: TIFF of many bands, or more than 8 bits for each of several: pip install tifffile")
    what = " ".join(str(error).split())
    what = what if len(what) <= 200 else what[:200] + " ..."
    return ValueError(f"{name}: cannot be decoded ({what}); replace it, or remove it and its partner")


def open_picture(file) -> np.ndarray | Image.Image | None:
    """The array of a .npy file; a picture that is not decoded yet; None for a TIFF file that Pillow does not know."""
    source = source_of(file)
    if is_numpy(source):
        array = np.load(source, allow_pickle=False)
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    try:
        picture = Image.open(source)
        if picture.format == "TIFF" and picture.tag_v2.get(ORIENTATION, 1) > 4:
            picture.filename = ""  # Pillow 13 maps files into memory with height and width exchanged
        return picture
    except UnidentifiedImageError:
        begin = content_of(file)[:8]
        if begin[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return None
        what = f"no known picture format: it begins with {begin!r}" if begin else "the file is empty"
        raise ValueError(what) from None


def is_numpy(source) -> bool:
    if isinstance(source, io.BytesIO):
        return source.getbuffer()[:6] == b"\x93NUMPY"
    return str(source).lower().endswith(".npy")


# --- The numbers of a file --------------------------------------------------------------------------------------------


def num_pages(image: Image.Image) -> int:
    """How many pictures a file holds; smaller copies of the first, and masks of transparency, do not count."""
    count = getattr(image, "n_frames", 1)
    if image.format != "TIFF" or count == 1:
        return count
    kinds = []
    for number in range(count):
        image.seek(number)
        kinds.append(image.tag_v2.get(254, 0))
    image.seek(0)
    return max(1, kinds.count(0))


def raw_mode(image: Image.Image) -> str:
    """Pillow's name for what the file holds, such as "RGB;16B"; known until the picture is decoded. "" for others."""
    tile = getattr(image, "tile", None)
    args = tile[0][3] if tile else ""
    return str(args[0] if isinstance(args, tuple) else args)


def is_deep(image: Image.Image, raw: str) -> bool:
    """Whether Pillow reads a file of more than 8 bits wrongly: of several channels it keeps the first byte of each."""
    if image.format == "TIFF":
        tags = image.tag_v2
        is_swapped = image.mode in ("I", "F") and tags.prefix == b"MM" and tags.get(COMPRESSION, 1) != 1  # by Pillow
        return max(tags.get(BITS, (1,))) > 8 and (image.mode[0] not in "IF" or tags.get(SAMPLES, 1) > 1 or is_swapped)
    return raw.endswith(";16B") and raw != "I;16B"


def png_numbers(image: Image.Image, raw: str, file) -> np.ndarray:
    """(H, W, C) uint16 of a PNG of 16 bits, upright.

    Pillow keeps the first byte of each value, and the second if it is told that values are little-endian; so all is
    decoded twice. torchvision's decoder takes half of the time, but ends the process if the file is damaged.
    """
    other = Image.open(source_of(file))
    is_grey = raw == "LA;16B"  # two values, as long as the four that Pillow knows
    other.tile = [other.tile[0]._replace(args="RGBA" if is_grey else raw.replace(";16B", ";16L"))]
    if is_grey:
        values = np.array(other).view(">u2").astype(np.uint16)
    else:
        values = np.asarray(image).astype(np.uint16) << 8 | np.asarray(other)
    return upright(values, orientation_of(image))


def tiff_numbers(file) -> tuple[np.ndarray, tuple[int, ...]]:
    """What tifffile reads, upright, and which axes may be that of the channels, the likeliest first.

    (H, W); (H, W, C) if the file says that these are samples or channels; else pages (C, H, W). In files by tifffile
    the pages may also be rows: so it writes arrays (H, W, C) if it is not told what they are.
    """
    import tifffile

    with tifffile.TiffFile(source_of(file)) as tiff:
        series = tiff.series[0]
        array, orientation = series.asarray(), tiff.pages[0].tags.valueof(ORIENTATION, default=1)
        is_by_tifffile = series.kind == "shaped"
    axes = [name for name, length in zip(series.axes, series.shape) if length > 1 or name in "YX"]
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    array = array.reshape([length for name, length in zip(series.axes, series.shape) if name in axes])
    if len(axes) > 3:
        raise ValueError(
            f"it holds {series.axes} of {series.shape}; save one picture, with at most an axis of channels"
        )
    array = upright(np.moveaxis(array, [axes.index("Y"), axes.index("X")], [0, 1]), orientation)
    if len(axes) == 3 and not {"S", "C"} & set(axes):
        return np.moveaxis(array, 2, 0), (0, 2) if is_by_tifffile else (0,)
    return array, (2,)


def has_transparency(file) -> bool:
    """Whether a TIFF file says that a band of it is that, multiplied with the others or not."""
    import tifffile

    with tifffile.TiffFile(source_of(file)) as tiff:
        return bool({1, 2} & {int(kind) for kind in tiff.pages[0].extrasamples})


def grey_numbers(image: Image.Image) -> np.ndarray:
    """(H, W) of a picture of one channel of more than 8 bits, upright; the type says what the numbers are."""
    orientation = orientation_of(image)
    return upright(pil_numbers(image), orientation)


def orientation_of(image: Image.Image) -> int:
    """How EXIF says that the pixels of `numpy.asarray` are turned, after they are decoded: 1 is upright, to 8."""
    image.load()  # which turns TIFF, and finds what PNG says after its pixels
    return image.getexif().get(ORIENTATION, 1)


def exif_orientation(file) -> int:
    """The same of a file, as EXIF says it before anything is turned; 1 for what is no picture."""
    picture = open_picture(file) if isinstance(file, (str, Path, dict)) else None
    return picture.getexif().get(ORIENTATION, 1) if isinstance(picture, Image.Image) else 1


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, ...) of what a file with this EXIF orientation shows: (W, H, ...) for those of 5 and more."""
    array = array.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else array
    rows, columns = (slice(None, None, -1 if orientation in turned else 1) for turned in ((3, 4, 7, 8), (2, 3, 6, 7)))
    return array if orientation == 1 else array[rows, columns].copy()  # torch knows no negative steps


# --- Images -----------------------------------------------------------------------------------------------------------


def read_image(file, name: str = "the image", num_channels: int = 3) -> Image.Image | torch.Tensor:
    """Decodes an image, upright (EXIF).

    - 8 bits and 1, 3 or 4 channels: a PIL image, grey, RGB or RGBA; the file may have another number of channels.
    - More bits: a float32 tensor (C, H, W). Integers without a sign are divided so that their largest is 255, with
      nothing rounded, so that mean and std mean the same as for 8 bits; others are as they are in the file.
    - Other numbers of channels, from TIFF (bands or pages) or .npy: a tensor (C, H, W), uint8 or float32 as above. Of
      .npy the last axis is that of the channels if its length fits (`num_channels`, or 1 for grey, or 4, the last for
      transparency, for 3), else the first; TIFF says it, and its pages are channels.

    Raises:
        ValueError: if the file cannot be decoded or has another number of channels.
    """
    return read_image_part(file, name, num_channels)[0]


def read_image_part(file, name: str, num_channels: int, scale: float = 1.0, num_rows: int | None = None) -> tuple:
    """The image, and its (height, width) as it is in the file, upright.

    Args:
        scale: the largest factor that the image will be resized by. A JPEG that is twice as large as needed, or more,
            is decoded at 1/2, 1/4 or 1/8 of its size, which is several times faster.
        num_rows: how many are needed, counted from the top. Of a JPEG or PNG, little more is decoded.
    """
    source, num_left_out = file, 0
    try:
        if num_rows is not None and scale > 0.5:
            content, num_left_out = first_rows(content_of(file), num_rows)
            source = {"bytes": content}
        image = open_picture(source)
        raw = raw_mode(image)
        if num_left_out and image.getexif().get(ORIENTATION, 1) != 1:  # the first rows are not those of the file
            source, num_left_out, image = file, 0, open_picture(file)
        numbers = _image_numbers(image, raw, source, num_channels)
        if numbers is None and num_channels in IMAGE_MODES:
            image, (height, width) = _decode(image, scale)
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error and others on broken files
        raise undecodable(name, error) from error
    if numbers is not None:
        array = _channels_first(*numbers, name, num_channels)
        image, (height, width) = _from_numbers(array, num_channels, name), array.shape[1:]
    elif num_channels not in IMAGE_MODES:
        raise ValueError(
            f"{name}: {image.format} holds 1, 3 or 4 channels, the model expects {num_channels}; use TIFF or .npy"
        )
    elif image.mode != IMAGE_MODES[num_channels]:
        image = image.convert(IMAGE_MODES[num_channels])
    return image, (height + num_left_out, width)


def _decode(image: Image.Image, scale: float) -> tuple[Image.Image, tuple[int, int]]:
    """The picture, upright, and what its height and width are if it is not decoded smaller."""
    width, height = image.size
    if scale <= 0.5:
        image.draft(image.mode, (math.ceil(width * scale), math.ceil(height * scale)))
    is_smaller = image.size != (width, height)  # which JPEGs can be
    orientation = orientation_of(image)
    if orientation != 1:
        ImageOps.exif_transpose(image, in_place=True)
    if is_smaller:
        return image, (width, height) if orientation > 4 else (height, width)
    return image, (image.height, image.width)


def _image_numbers(image, raw: str, file, num_channels: int) -> tuple[np.ndarray, tuple[int, ...]] | None:
    """Numbers that Pillow would not read without a loss, and which axes may be the channels'; None for the others."""
    if isinstance(image, np.ndarray):
        return image, (2, 0)
    if image is None:
        return tiff_numbers(file)
    deep = is_deep(image, raw)
    if image.format == "TIFF" and image.tag_v2.get(WHITE_IS_ZERO) == 0 and (deep or image.mode[0] in "IF"):
        raise ValueError("0 is white in it, PhotometricInterpretation is 0; save it with 0 as black")
    if image.format == "TIFF" and (deep or num_channels not in IMAGE_MODES or num_pages(image) > 1):
        return tiff_numbers(file)
    if deep:
        return png_numbers(image, raw, file), (2,)
    return (grey_numbers(image), (2,)) if image.mode[0] in "IF" else None


def _channels_first(array: np.ndarray, axes: tuple[int, ...], name: str, num_channels: int) -> np.ndarray:
    """(C, H, W) of (H, W), or of three axes, of which one of `axes` is that of the channels."""
    if array.ndim == 2:
        array, axes = array[None], (0,)
    for axis in axes if array.ndim == 3 and array.dtype.kind in "uif" else ():
        planes = np.moveaxis(array, axis, 0)
        if len(planes) == num_channels:
            return planes
        if num_channels == 3 and len(planes) == 4:  # without transparency
            return planes[:3]
        if num_channels in IMAGE_MODES and (len(planes) == 1 or len(planes) == 2 and axes == (2,)):
            return np.broadcast_to(planes[:1], (num_channels, *planes.shape[1:]))
    raise ValueError(
        f"{name}: {array.dtype} of shape {array.shape} has no axis of {num_channels} channels; set the model's "
        "num_channels, and one value for each in the processor's image_mean and image_std"
    )


def _from_numbers(array: np.ndarray, num_channels: int, name: str) -> Image.Image | torch.Tensor:
    """(C, H, W) as `read_image` gives it."""
    if array.dtype.kind == "f":
        if num_bad := array.size - np.count_nonzero(np.isfinite(array)):
            raise ValueError(
                f"{name}: {num_bad} of {array.size} values are no finite numbers; fill them, or remove the image and "
                "its mask"
            )
        if num_channels == 3 and is_of_fractions(torch.from_numpy(np.require(array, requirements=["C", "W"]))):
            raise ValueError(f"{name}: its values are fractions of 0 to 1, expected are 0 to 255; multiply them by 255")
    if array.dtype == np.uint8 and num_channels in IMAGE_MODES:
        array = np.ascontiguousarray(array.transpose(1, 2, 0))
        return Image.fromarray(array[..., 0] if num_channels == 1 else array)
    pixels = scaled_to_255(torch.from_numpy(np.require(array, requirements=["C", "W"])))
    return pixels if pixels.dtype == torch.uint8 else pixels.float()
