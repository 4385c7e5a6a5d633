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


def png_16_bits(values):
    """PIL writes no such files, so this one is put together by hand (PNG specification, section 11.2)."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
