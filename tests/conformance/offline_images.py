"""Synthetic pictures in place of the Hub fixtures that the mixins ask for by URL."""

import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image


FOLDER = Path(tempfile.gettempdir()) / f"offline-images-{os.getuid()}"


def url_to_local_path(url: str) -> str:
    """Path of a picture of 640 x 480 pixels made for this URL (a label map for .png). Paths stay as they are."""
    if os.path.exists(url):
        return url
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / (hashlib.sha1(url.encode()).hexdigest()[:12] + ".png")
    if path.exists():
        return str(path)
    generator = np.random.default_rng(len(url))
    height, width = 480, 640
    if url.endswith(".png"):
        picture = np.zeros((height, width), np.uint8)
        for _ in range(12):
            y, x = generator.integers(0, height - 80), generator.integers(0, width - 80)
            picture[y : y + 80, x : x + 80] = generator.integers(0, 151)
    else:
        y, x = np.mgrid[0:height, 0:width]
        waves = 127 + 127 * np.sin(x / 25.0) * np.cos(y / 31.0)
        smooth = np.stack([x * 255 / width, y * 255 / height, waves], -1)
        picture = np.clip(smooth + generator.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
    part = path.with_suffix(f".{os.getpid()}.png")
    Image.fromarray(picture).save(part)
    os.replace(part, path)  # several workers may be here at once
    return str(path)
