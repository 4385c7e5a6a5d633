"""Files of images and masks -> pixels: upright, of any depth and number of channels, ids as they are in the file.

Shapes: (H, W) image size, C channels.
"""

import io
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from .partial_decoding import first_rows


IMAGE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def name_of(file, position: str) -> str:
    path = file.get("path") if isinstance(file, dict) else getattr(file, "path", file)
    if isinstance(path, (str, Path)):
        return str(path) if not isinstance(file, dict) else f"{path} ({position})"
    return position


def _source(file):
    """A path, or an open file of the bytes."""
    if file is None:
        raise ValueError("the value is missing, null")
    if isinstance(file, dict):
        return io.BytesIO(file["bytes"]) if file.get("bytes") is not None else file["path"]
    return file


def _first_bytes(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(8)


def _undecodable(name: str, error: Exception) -> ValueError:
    return ValueError(f"{name}: cannot be decoded ({error}); replace it, or remove it and its partner")


def read_image(file, name: str = "the image", num_channels: int = 3) -> Image.Image | torch.Tensor:
    """Decodes an image, upright (EXIF).

    - 8 bits and 1, 3 or 4 channels: a PIL image, grey, RGB or RGBA; the file may have another number of channels.
    - More bits: a float32 tensor (C, H, W). Integers without a sign are divided so that their largest is 255, with
      nothing rounded, so that mean and std mean the same as for 8 bits; others are as they are in the file.
    - Other numbers of channels, from TIFF (bands or pages) or .npy: a tensor (C, H, W), uint8 or float32 as above. The
      axis with `num_channels` entries is that of the channels.

    Raises:
        ValueError: if the file cannot be decoded or has another number of channels.
    """
    return read_image_part(file, name, num_channels)[0]


def read_image_part(file, name: str, num_channels: int, scale: float = 1.0, num_rows: int | None = None) -> tuple:
    """The image, and its (height, width) in the file.

    Args:
        scale: the largest factor that the image will be resized by. A JPEG that is twice as large as needed, or more,
            is decoded at 1/2, 1/4 or 1/8 of its size, which is several times faster.
        num_rows: how many are needed, counted from the top. Of a JPEG or PNG, little more is decoded.
    """
    source, num_left_out = file, 0
    if num_rows is not None and scale > 0.5:
        try:
            content, num_left_out = first_rows(_content(file), num_rows)
        except (OSError, ValueError) as error:
            raise _undecodable(name, error) from error
        source = {"bytes": content}
    image = _open_image(source, name, num_channels)
    if isinstance(image, np.ndarray):
        array = _channels_first(image, name, num_channels)
        size = array.shape[1] + num_left_out, array.shape[2]
        if array.dtype == np.uint8 and num_channels in IMAGE_MODES:
            array = array.transpose(1, 2, 0)
            return Image.fromarray(array[..., 0] if num_channels == 1 else np.ascontiguousarray(array)), size
        if array.dtype.kind == "u" and array.itemsize > 1:
            array = array / np.float32(np.iinfo(array.dtype).max // 255)
        dtype = np.uint8 if array.dtype == np.uint8 else np.float32
        return torch.from_numpy(np.ascontiguousarray(array, dtype)), size
    size, mode = (image.height + num_left_out, image.width), IMAGE_MODES[num_channels]
    try:
        if scale <= 0.5:
            image.draft(image.mode, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
        orientation = image.getexif().get(0x0112, 1)
        if orientation != 1 and num_left_out:  # the first rows of the image are not those of the file
            return read_image_part(file, name, num_channels)
        image.load()
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error and others on broken files
        raise _undecodable(name, error) from error
    if orientation != 1:
        ImageOps.exif_transpose(image, in_place=True)
    return image if image.mode == mode else image.convert(mode), size[::-1] if orientation > 4 else size


def _open_image(file, name: str, num_channels: int) -> np.ndarray | Image.Image:
    """The numbers of a file that PIL would not read without a loss; for the others an image that is not loaded yet."""
    try:
        source = _source(file)
        if _is_numpy(source):
            return np.load(source, allow_pickle=False)
        try:
            image = Image.open(source)
        except UnidentifiedImageError:  # PIL knows no TIFF of five bands
            begin = source.getvalue()[:8] if isinstance(source, io.BytesIO) else _first_bytes(source)
            if begin[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
                what = f"no known picture format: it begins with {begin!r}" if begin else "the file is empty"
                raise ValueError(what) from None
            image = None
        if image is None or image.format == "TIFF":
            is_deep = image is None or image.mode[0] in "IF" or ";16" in str(image.tile[0][3:])
            if is_deep or num_channels not in IMAGE_MODES or image.n_frames > 1:
                import tifffile

                return tifffile.imread(_source(file))
        elif image.mode[0] in "IF":
            return np.asarray(image)
        elif ";16B" in str(image.tile and image.tile[0][3]):  # PNG; PIL keeps the first byte of each value only
            high = np.asarray(image).astype(np.uint16)
            image = Image.open(_source(file))
            image.tile = [image.tile[0]._replace(args=image.tile[0].args.replace(";16B", ";16L"))]
            return high << 8 | np.asarray(image)  # taken for little-endian, the second byte is the one it keeps
    except ImportError as error:
        raise ValueError(f"{name}: to read TIFF files of more than 8 bits or 4 bands, pip install tifffile") from error
    except Exception as error:
        raise _undecodable(name, error) from error
    if num_channels not in IMAGE_MODES:
        raise ValueError(
            f"{name}: {image.format} holds 1, 3 or 4 channels, the model expects {num_channels}; use TIFF or .npy"
        )
    return image


def _content(file) -> bytes:
    source = _source(file)
    return source.getvalue() if isinstance(source, io.BytesIO) else Path(source).read_bytes()


def _is_numpy(source) -> bool:
    if isinstance(source, io.BytesIO):
        return source.getbuffer()[:6] == b"\x93NUMPY"
    return str(source).lower().endswith(".npy")


def _channels_first(array: np.ndarray, name: str, num_channels: int) -> np.ndarray:
    """(C, H, W) of (H, W), (C, H, W) or (H, W, C)."""
    planes = array[None] if array.ndim == 2 else array
    if planes.ndim == 3 and planes.dtype.kind in "uif":
        if planes.shape[0] not in (1, num_channels):
            planes = planes.transpose(2, 0, 1)
        if len(planes) == num_channels:
            return planes
        if len(planes) == 1 and num_channels in IMAGE_MODES:
            return np.broadcast_to(planes, (num_channels, *planes.shape[1:]))
        if len(planes) == 4 and num_channels == 3:  # without transparency
            return planes[:3]
    raise ValueError(
        f"{name}: {array.dtype} of shape {array.shape} has no axis of {num_channels} channels; set the model's "
        "num_channels, and one value for each in the processor's image_mean and image_std"
    )


def read_mask(file, name: str = "the mask") -> np.ndarray:
    """Decodes a mask to raw values, never through a palette: (H, W) ids, or (H, W, 3) colours of an RGB file.

    Raises:
        ValueError: if the file cannot be decoded or holds fractions.
    """
    if not isinstance(file, (str, Path, dict, type(None))):
        return np.asarray(file)
    if isinstance(file, (str, Path, dict)) and _is_numpy(_source(file)):
        try:
            return np.load(_source(file), allow_pickle=False)
        except Exception as error:
            raise _undecodable(name, error) from error
    try:
        image = Image.open(_source(file))
        raw_mode = image.tile[0][3] if image.tile else None  # of the pixels in the file, e.g. "L;4"
        image.load()
    except Exception as error:
        raise _undecodable(name, error) from error
    if image.mode in ("RGBA", "CMYK", "YCbCr"):
        image = image.convert("RGB")
    elif image.mode in ("LA", "PA"):
        image = image.getchannel(0)
    mask = np.asarray(image)
    if raw_mode in ("L;2", "L;4"):  # PIL spreads grey values of 2 and 4 bits over 0-255; an id is the value in the file
        mask = mask // (85 if raw_mode == "L;2" else 17)
    if mask.dtype.kind == "f":
        if (fractions := mask[mask != np.round(mask)]).size:
            raise ValueError(f"{name}: the mask holds fractions (first {fractions[0]}); save it with integer ids")
        mask = mask.astype(np.int32)
    return mask
