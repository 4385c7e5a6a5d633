"""Drawn data sets of several kinds, for benchmarks: folders with images/, masks/ and classes.json.

    write_drawn("aerial", Path("data/aerial"), count=120)

- scenes: the embedded scenes at sizes from 240 to 640 pixels, without void
- aerial: fields with textures, and small things on them, ten classes, sizes from 200 to 520 pixels
- binary: the same, one kind of the small things against everything else: about 1 % of the pixels
- many: the same with 150 classes
- deep: the same with five channels of 16 bits, 256x256 pixels; two channels are measurements
- large: two scenes side by side, 2048x1024 pixels
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from hf_segtx.data.scenes import CLASS_NAMES, VOID, SceneDataset


KINDS = ("scenes", "aerial", "binary", "many", "deep", "large")
NUM_CLASSES = {"aerial": 10, "binary": 10, "many": 150, "deep": 6}
THING = 7  # of the ten classes, the one that is told from everything else


def write_drawn(kind: str, folder: Path, count: int, seed: int) -> None:
    """Writes `count` pairs; another seed draws others of the same kind."""
    random = np.random.default_rng([seed, KINDS.index(kind)])
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image, mask = _draw(kind, number, seed, random)
        if kind == "deep":
            np.save(folder / "images" / f"{number:04}.npy", image)
        else:
            Image.fromarray(image).save(folder / "images" / f"{number:04}.jpg", quality=92)
        Image.fromarray(mask.astype(np.uint8)).save(folder / "masks" / f"{number:04}.png")
    names = [f"{kind} {number}" for number in range(NUM_CLASSES.get(kind, 0))] or CLASS_NAMES
    if kind == "binary":
        names = ("background", "thing")
    classes = [{"id": number, "name": name} for number, name in enumerate(names)]
    (folder / "classes.json").write_text(json.dumps({"classes": classes}))


def _draw(kind: str, number: int, seed: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    if kind == "scenes":
        return _scene(number, seed, tuple(int(side) for side in random.integers(240, 640, 2)))
    if kind == "large":
        halves = [_scene(2 * number + half, seed, (1024, 1024)) for half in (0, 1)]
        return tuple(np.concatenate(parts, axis=1) for parts in zip(*halves, strict=True))
    if kind == "deep":
        image, mask = _aerial(random, (256, 256), NUM_CLASSES[kind])
        extra = [(mask == 5) * 90 + 60 + 40 * _clouds(random, (256, 256), 8)]
        extra += [(mask < 3) * 50 + 80 + 60 * _clouds(random, (256, 256), 16)]
        channels = np.concatenate([image, np.stack(extra, -1)], -1) * 37.0 + 500
        return channels.transpose(2, 0, 1).clip(0, 65535).astype(np.uint16), mask
    image, mask = _aerial(random, tuple(int(side) for side in random.integers(200, 520, 2)), NUM_CLASSES[kind])
    return image, mask == THING if kind == "binary" else mask


def _scene(number: int, seed: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """An embedded scene, its void taken for ground."""
    item = SceneDataset(number + 1, seed=seed, size=size)[number]
    mask = np.array(item["label"])
    mask[mask == VOID] = CLASS_NAMES.index("ground")
    return np.asarray(item["image"]), mask


def _clouds(random: np.random.Generator, size: tuple[int, int], cell: int) -> np.ndarray:
    """Smooth noise of 0-1 with spots of `cell` pixels."""
    small = (random.random([max(2, side // cell + 2) for side in size]) * 255).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC), float) / 255


def _texture(number: int, size: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """What class `number` looks like: two colours in a pattern of its own, a little different each time."""
    fixed = np.random.default_rng(1000 + number)
    first, second = fixed.integers(30, 226, (2, 3)).astype(float)
    cell, kind, frequency, angle = (
        fixed.choice([2, 4, 8, 16]),
        fixed.integers(3),
        fixed.uniform(0.05, 0.5),
        fixed.random(),
    )
    y, x = np.mgrid[: size[0], : size[1]]
    patterns = (
        lambda: _clouds(random, size, int(cell)),
        lambda: (np.sin(frequency * (x * np.cos(np.pi * angle) + y * np.sin(np.pi * angle))) + 1) / 2,
        lambda: (np.sin(frequency * x) * np.sin(frequency * y) > 0).astype(float),
    )
    return first + random.normal(0, 18, 3) + (second - first) * patterns[kind]()[..., None]


def _aerial(random: np.random.Generator, size: tuple[int, int], num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Fields of the first classes, with crooked borders, and small ellipses and rectangles of the others."""
    height, width = size
    num_fields = int(0.6 * num_classes)
    seeds = random.uniform(0, 1, (int(random.integers(6, 16)), 2)) * size
    classes = random.integers(num_fields, size=len(seeds))
    y, x = (axis + 60 * (_clouds(random, size, 40) - 0.5) for axis in np.mgrid[:height, :width].astype(float))
    mask = classes[np.argmin([(y - down) ** 2 + (x - right) ** 2 for down, right in seeds], axis=0)]
    image = np.zeros((height, width, 3))
    for number in np.unique(mask):
        image[mask == number] = _texture(int(number), size, random)[mask == number]
    y, x = np.mgrid[:height, :width]
    for _ in range(int(random.integers(3, 12))):
        number = int(random.integers(num_fields, num_classes))
        fixed = np.random.default_rng(500 + number)
        side = max(4.0, fixed.uniform(0.02, 0.08) * min(size) * random.uniform(0.7, 1.6))
        ratio, is_round, angle = fixed.uniform(1, 4), fixed.random() < 0.5, random.uniform(0, np.pi)
        down, right = y - random.uniform(0, height), x - random.uniform(0, width)
        along = (right * np.cos(angle) + down * np.sin(angle)) / (side * ratio)
        across = (down * np.cos(angle) - right * np.sin(angle)) / side
        inside = along**2 + across**2 < 1 if is_round else np.maximum(abs(along), abs(across)) < 1
        mask, image[inside] = np.where(inside, number, mask), _texture(number, size, random)[inside]
    image *= (0.6 + 0.8 * _clouds(random, size, 80))[..., None] * random.uniform(0.7, 1.2)
    return (image + random.normal(0, 10, image.shape)).clip(0, 255).astype(np.uint8), mask
