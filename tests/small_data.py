"""Small data folders that tests write, and what the tests of several modules share."""

import json
import struct
import zlib
from types import SimpleNamespace

import numpy as np
from PIL import Image


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


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values, bits=16, interlaced=False):
    """A PNG file of (H, W), or (H, W, C) for grey, grey and alpha, RGB, RGBA; Pillow writes few of these.

    W3C PNG, section 11.2; rows unfiltered, values of less than 8 bits packed from the left.
    """
    values = values[..., None] if values.ndim == 2 else values
    height, width, channels = values.shape
    if bits < 8:
        bit = values[..., 0, None].astype(np.uint8) >> np.arange(bits - 1, -1, -1) & 1
        rows = np.packbits(bit.reshape(height, -1), axis=1)
    else:
        rows = values.reshape(height, -1).astype(f">u{bits // 8}")
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, bits, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, int(interlaced))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def with_exif(content, exif):
    """A PNG file with a chunk that holds EXIF before its pixels."""
    return content[:33] + chunk(b"eXIf", exif.tobytes()[6:]) + content[33:]
