"""labelme's JSON, a file for each image -> masks, and label maps -> labelme's JSON.

    x.jpg  x.json               in one folder, or in train/ and val/
    images/x.jpg  labels/x.json     or in two

Shapes are drawn in their order, the last on top; what none covers is background, or what labelme calls _background_.
Pixels of the label __ignore__ count nowhere.
"""

import base64
import io
import json
import os
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from .annotations import BACKGROUND_NAMES, AnnotatedMask, labels_of_names, polygon_points, raw_ids
from .class_files import CLASS_FILES
from .files import ALL, IMAGE_SUFFIXES, Layout, files_below, pictures_below, some, split_of, upright_size
from .labels import Labels
from .outlines import find_regions, joined


IGNORED = "__ignore__"
CIRCLE_POINTS = 72  # by which a circle is drawn


def find_labelme(folder: Path) -> Layout | None:
    """The annotations below a folder; None if there are none.

    Raises:
        ValueError: if files cannot be read or have no image, or shapes have no inside.
    """
    pictures: dict[tuple[str, str], list[str]] = {}
    for way, name, path in pictures_below(folder):
        pictures.setdefault((_split_of_way(way), Path(name).stem), []).append(path)
    files = [
        found for found in files_below(folder) if found[1].lower().endswith(".json") and found[1] not in CLASS_FILES
    ]
    partnered = [path for way, name, path in files if (_split_of_way(way), Path(name).stem) in pictures]
    if not any(_is_labelme(path) for path in (partnered or [path for _, _, path in files])[:5]):
        return None
    files = [found for found in files if found[2] in set(partnered) or _is_labelme(found[2])]
    splits: dict[str, list[tuple[str, str]]] = {}
    names: set[str] = set()
    spelled: dict[str, tuple[str, str]] = {}  # as it is first, and where
    for way, name, path in files:
        split = _split_of_way(way)
        content = _read(path)
        for label, _, _ in _shapes(content, path):
            other, where = spelled.setdefault(label.strip().lower(), (label, path))
            if other != label:
                raise ValueError(f"{path}: the label {label!r} is {other!r} in {where}; write them alike")
            names.add(label)
        splits.setdefault(split, []).append(
            (_image_of(content, Path(path), pictures.get((split, Path(name).stem), [])), path)
        )
    if ALL in splits and len(splits) > 1:
        raise ValueError(f"{folder}: {len(splits[ALL])} files are in no folder of a split, such as {splits[ALL][0][1]}")
    classes = tuple(sorted(name for name in names if name != IGNORED))
    if not {name.lower() for name in classes} - BACKGROUND_NAMES:
        raise ValueError(f"{folder}: labelme's files hold no shapes of any class; annotate them")
    used = {image for pairs in splits.values() for image, _ in pairs}
    unused = [path for paths in pictures.values() for path in paths if path not in used]
    notes = [f"{len(pairs)} images in {split}" for split, pairs in splits.items()]
    notes += [f"{len(unused)} images without annotations are not read: {some(unused, 2)}"] if unused else []
    functions = {split: _split(pairs, tuple(sorted(names)), str(folder)) for split, pairs in splits.items()}
    return Layout(
        f"labelme's annotations in {folder}", labels_of_names(classes), functions, (folder,), tuple(notes), classes
    )


def _split_of_way(way: tuple[str, ...]) -> str:
    return next(filter(None, map(split_of, way)), ALL)


def _split(pairs: list[tuple[str, str]], names: tuple[str, ...], where: str):
    def records(labels: Labels | None, alone) -> list[tuple]:
        ids, background = raw_ids(labels, names, where)
        return [
            (image, AnnotatedMask(path, partial(_read_shapes, path, image, ids), background)) for image, path in pairs
        ]

    return records


def _is_labelme(file: str) -> bool:
    try:
        content = json.loads(Path(file).read_bytes())
    except ValueError:
        return False
    return isinstance(content, dict) and isinstance(content.get("shapes"), list)


def _read(file: str) -> dict:
    try:
        content = json.loads(Path(file).read_bytes())
        if isinstance(content["shapes"], list) and all(isinstance(shape, dict) for shape in content["shapes"]):
            return content
        what = "its shapes are no list of objects"
    except (ValueError, KeyError, TypeError) as error:
        what = repr(error) if isinstance(error, KeyError) else error
    raise ValueError(f"{file}: not labelme's JSON ({what}); save it again, or remove it")


def _image_of(content: dict, file: Path, pictures: list[str]) -> str:
    """The image of a file: what it names, else the one of the same name."""
    named = file.parent / str(content.get("imagePath") or "").replace("\\", "/")
    if named.suffix.lower() in IMAGE_SUFFIXES and named.is_file() and named.stem == file.stem:
        return str(named)
    beside = [path for path in pictures if Path(path).parent == file.parent] or pictures
    if len(beside) == 1:
        return beside[0]
    if not beside and named.suffix.lower() in IMAGE_SUFFIXES and named.is_file():
        return str(named)
    what = (
        f"which of {some(beside)} is its image?"
        if beside
        else "its image is neither beside it nor where imagePath says."
    )
    raise ValueError(f"{file}: {what} An image has the name of its file of annotations up to the suffix")


def _shapes(content: dict, file: str) -> list[tuple[str, str, dict]]:
    """Label, kind and the rest of each shape.

    Raises:
        ValueError: for kinds that have no inside.
    """
    shapes = []
    for number, shape in enumerate(content["shapes"], 1):
        label, kind = shape.get("label"), shape.get("shape_type") or "polygon"
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f"{file}: shape {number} has no label; give it one, or remove it")
        if kind not in ("polygon", "rectangle", "circle", "mask"):
            raise ValueError(f"{file}: shape {number}, {label}, is a {kind}, which has no inside; draw it as a polygon")
        shapes.append((label, kind, shape))
    return shapes


def _read_shapes(file: str, image: str, ids: dict[str, int]) -> tuple:
    """Size of the image, and the shapes, by their names' ids."""
    content = _read(file)
    size = content.get("imageHeight"), content.get("imageWidth")
    if wrong := [value for value in size if not isinstance(value, int | float | None)]:
        raise ValueError(f"imageHeight or imageWidth is {wrong[0]!r}; write a whole number, or null")
    size = upright_size(image) if None in size else tuple(map(int, size))
    shapes = []
    for number, (label, kind, shape) in enumerate(_shapes(content, file), 1):
        try:
            shapes.append((ids[label], _parts(kind, shape, size)))
        except (ValueError, TypeError, OSError) as error:
            raise ValueError(f"shape {number}, {label}, {kind}: {error}; draw it again, or remove it") from error
    return size, shapes


def _parts(kind: str, shape: dict, size: tuple[int, int]) -> list:
    """What `annotations.fill` takes."""
    if not shape.get("points"):
        raise ValueError('its "points" are missing')
    points = np.array(shape["points"], float)
    if kind == "polygon":
        return [polygon_points(points.ravel()).ravel()]
    if kind == "rectangle" and points.shape == (4, 2):
        ends = np.stack([points.min(0), points.max(0)])
        if (points[:, None] == ends).any(1).all():  # upright
            points = ends
    if points.shape != (2, 2):
        raise ValueError(f"{points.tolist()!s:.60} are not its two points")
    (x, y), (right, bottom) = points
    if kind == "rectangle":
        return [np.array([x, y, right, y, right, bottom, x, bottom])]
    if kind == "circle":  # its centre and a point on it
        angles, radius = np.linspace(0, 2 * np.pi, CIRCLE_POINTS, endpoint=False), np.hypot(right - x, bottom - y)
        return [np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1).ravel()]
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape.get("mask") or ""))) as image:
            pixels = np.asarray(image) > 0
    except (ValueError, OSError) as error:
        raise ValueError("its mask is no picture in base64") from error
    inside = np.zeros(size, bool)
    top, left = round(y), round(x)
    if pixels.ndim != 2 or inside[top : top + len(pixels), left : left + pixels.shape[1]].shape != pixels.shape:
        raise ValueError(f"a mask of {pixels.shape} pixels at {left}, {top} leaves the image")
    inside[top : top + len(pixels), left : left + pixels.shape[1]] = pixels
    return [inside]


class LabelmeWriter:
    """Label maps of pictures -> a file of labelme's JSON for each, `NAME.json`; polygons are exact to the pixel.

    A line leads from the outline of a region to its holes and back.

    Args:
        folder: of the files, from which the paths of the images start.
        names: class id -> name. A class called background is not written.
        ignored: ids that are written as __ignore__.

    The methods are those of `CocoWriter`.
    """

    def __init__(self, folder: str | Path, names: dict[int, str], ignored: set[int] = frozenset()):
        self.folder, self.names = Path(folder), {**names, **dict.fromkeys(ignored, IGNORED)}
        self.skipped = {class_id for class_id, name in names.items() if name in BACKGROUND_NAMES}

    def file(self, name: str) -> str:
        return f"{name}.json"

    def add(self, image: str | Path, name: str, label_map: np.ndarray) -> bytes:
        shapes = [
            {
                "label": self.names[region.label],
                "points": joined(region).tolist(),
                "group_id": None,
                "description": "",
                "shape_type": "polygon",
                "flags": {},
                "mask": None,
            }
            for region in find_regions(label_map, self.skipped)
        ]
        content = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": os.path.relpath(image, (self.folder / self.file(name)).parent).replace(os.sep, "/"),
            "imageData": None,
            "imageHeight": label_map.shape[0],
            "imageWidth": label_map.shape[1],
        }
        return json.dumps(content, indent=1).encode()

    def finish(self) -> dict[str, bytes]:
        return {}
