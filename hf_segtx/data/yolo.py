"""YOLO's outlines, a text file for each image -> masks, and label maps -> YOLO's text files.

    data.yaml  images/train/x.jpg  labels/train/x.txt      or train/images/x.jpg  train/labels/x.txt, and so on

A line of x.txt is one object: "class x y x y ...", the class counted from 0, coordinates in shares of width and height.
Objects are in no order: larger ones are drawn first. What none covers is background; so are images without a file.
"""

import logging
import re
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from .annotations import BACKGROUND_NAMES, AnnotatedMask, labels_of_names, raw_ids
from .files import (
    IMAGE_SUFFIXES,
    Layout,
    canonical_split,
    files_below,
    some,
    upright_size,
)
from .labels import Labels, read_utf8
from .outlines import find_regions, joined


logger = logging.getLogger(__name__)

CONFIGURATIONS = (".yaml", ".yml")
OUTSIDE = 0.01  # share of a side by which outlines may leave the image: some tools round so


def find_yolo(folder: Path) -> Layout | None:
    """The annotations of the folder's data.yaml; None if there is no such file with classes.

    Raises:
        ValueError: if there are several, or `read_yolo` raises.
    """
    files = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in CONFIGURATIONS and _is_yolo(file)]
    if len(files) > 1:
        raise ValueError(f"{folder}: which of {some([file.name for file in files])} counts? Give that file itself")
    return read_yolo(files[0]) if files else None


def read_yolo(file: Path) -> Layout:
    """The annotations of a data.yaml.

    Raises:
        ValueError: if it names no classes or images, or none of the images has a file of annotations.
    """
    content = _content(file)
    if not _is_yolo(file):
        raise ValueError(f"{file}: not YOLO's data.yaml: it must have names, and train or val")
    names = content["names"]
    names = names if isinstance(names, dict) else dict(enumerate(names))
    if wrong := [number for number in names if not str(number).isdecimal()]:
        raise ValueError(f"{file}: names must be a list, or have numbers as keys, not {wrong[0]!r}")
    if wrong := [name for name in names.values() if not isinstance(name, str)]:
        raise ValueError(f"{file}: the name {wrong[0]!r} is no text; write it in quotes")
    if content.get("nc", len(names)) != len(names):
        raise ValueError(f"{file}: nc is {content['nc']!r}, but there are {len(names)} names; make them agree")
    names = {int(number): name for number, name in names.items()}
    ordered = tuple(names[number] for number in sorted(names))
    try:
        labels = labels_of_names(ordered)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    splits, notes = {}, []
    for key in ("train", "val", "valid", "validation", "test"):
        images = _images(file, content, key) if content.get(key) else []
        if images is None:
            notes.append(f"{key} is not there")
        if not images:
            continue
        pairs = [(image, label_file(image)) for image in images]
        _check_partners(file, pairs)
        missing = sum(not Path(label).is_file() for _, label in pairs)
        if missing == len(pairs) and key == "test":
            notes.append("the images of test have no annotations and are not read")
            continue
        if missing == len(pairs):
            raise ValueError(
                f"{file}: none of the {len(pairs)} images of {key} has a file of annotations, such as {pairs[0][1]}; "
                "put them there"
            )
        splits[canonical_split(key)] = pairs
        notes.append(f"{len(pairs)} images in {canonical_split(key)}")
        notes += [f"{missing} of them have no file of annotations and are background"] if missing else []
    if not splits:
        raise ValueError(f"{file}: there are no images where train, val and test say; correct the paths")
    if both := set(splits.get("train", [])) & set(splits.get("validation", [])):
        logger.warning("%s: %d images are both in train and in val.", file, len(both))
    functions = {split: _split(pairs, names, str(file)) for split, pairs in splits.items()}
    return Layout(f"YOLO's outlines of {file}", labels, functions, (file.parent,), tuple(notes), ordered)


def label_file(image: str) -> str:
    """labels/**/x.txt of images/**/x.jpg, by the last folder called images; else x.txt beside the image; or x.TXT."""
    beside = Path(image).with_suffix(".txt")
    parts = list(beside.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    forms = [path.with_suffix(suffix) for path in (Path(*parts), beside) for suffix in (".txt", ".TXT", ".Txt")]
    return str(next(filter(Path.is_file, forms), forms[0]))


def _check_partners(file: Path, pairs: list[tuple[str, str]]) -> None:
    """Raises ValueError for annotations of two images, or of none, beside those of others."""
    images: dict[str, str] = {}
    places: dict[Path, list[Path]] = {}  # folder of annotations -> their images
    for image, label in pairs:
        if (other := images.setdefault(label, image)) != image and Path(label).is_file():
            raise ValueError(f"{file}: {label} belongs to {other} and to {image}; rename one of the images")
        places.setdefault(Path(label).parent, []).append(Path(image))
    alone = []
    for place, own in places.items():
        beside = [path for folder in {image.parent for image in own} for path in folder.iterdir()]
        stems = {path.stem for path in own + [path for path in beside if path.suffix.lower() in IMAGE_SUFFIXES]}
        files = sorted(path for path in place.iterdir() if path.suffix.lower() == ".txt") if place.is_dir() else []
        alone += [path for path in files if path.stem not in stems and _has_lines(path)]
    if alone:
        without = [image for label, image in images.items() if not Path(label).is_file()]
        raise ValueError(
            f"{file}: {len(alone)} files of annotations belong to no image: {some(alone, 2)}; "
            + (f"{len(without)} images have none: {some(without, 2)}; " if without else "")
            + "an image and its annotations have one name up to the suffix: rename or remove them"
        )


def _has_lines(file: Path) -> bool:
    """Whether a text begins with an object, unlike lists of classes or images, which may lie there, too."""
    words = file.read_bytes().lstrip(b"\xef\xbb\xbf \t\r\n").split(b"\n", 1)[0].split()
    return len(words) > 4 and all(re.fullmatch(rb"[-+.\deE]+", word) for word in words)


def _content(file: Path) -> dict:
    try:
        content = yaml.safe_load(read_utf8(file))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: cannot be read as YAML ({error}); correct it") from error
    return content if isinstance(content, dict) else {}


def _is_yolo(file: Path) -> bool:
    content = _content(file)
    return (
        bool(content.get("names"))
        and isinstance(content["names"], list | dict)
        and bool({"train", "val"} & set(content))
    )


def _images(file: Path, content: dict, key: str) -> list[str] | None:
    """The images of a split: of a folder, a list in a text file, or several of them; None if none of these is there."""
    places = content[key] if isinstance(content[key], list) else [content[key]]
    images, found = [], False
    for place in map(str, places):
        # below `path`, else the file; where a "../" too many leads nowhere (Roboflow), without it
        starts = [file.parent / str(content.get("path") or ""), file.parent]
        forms = [start / form for start in starts for form in (place, place.removeprefix("../"))]
        path = next((form for form in forms if form.exists()), None)
        if path is None:
            continue
        found = True
        if path.is_dir():
            images += [image for _, name, image in files_below(path) if Path(name).suffix.lower() in IMAGE_SUFFIXES]
        else:
            listed = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
            images += [str(path.parent / line.removeprefix("./")) for line in listed]
    if missing := [image for image in images if not Path(image).is_file()]:
        raise ValueError(f"{file}: {len(missing)} of {len(images)} images of {key} are not there: {some(missing)}")
    return images if found and images else None


def _split(pairs: list[tuple[str, str]], names: dict[int, str], where: str):
    def records(labels: Labels | None, alone) -> list[tuple[str, AnnotatedMask]]:
        by_name, background = raw_ids(labels, names.values(), where)
        ids = {number: by_name[name] for number, name in names.items()}
        return [
            (image, AnnotatedMask(label, partial(_read_lines, label, image, ids), background, by_size=True))
            for image, label in pairs
        ]

    return records


def _read_lines(file: str, image: str, ids: dict[int, int]) -> tuple:
    """Size of the image, and the shapes of the lines."""
    size, shapes = upright_size(image), []
    lines = read_utf8(file).splitlines() if Path(file).is_file() else []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        try:
            class_id, values = float(words[0]), np.array(words[1:], np.float64)
        except ValueError:
            raise ValueError(f"line {number}, {line[:40]!r}, holds more than numbers; correct it") from None
        if class_id not in ids:
            raise ValueError(f"line {number} has class {words[0]}, but there are {min(ids)} .. {max(ids)}; correct it")
        if len(values) == 4:
            raise ValueError(f"line {number} is a box, which is no outline; annotate outlines, or remove the line")
        if len(values) < 6 or len(values) % 2:
            raise ValueError(
                f"line {number} has {len(values)} coordinates; an outline has x and y of three points or more"
            )
        if not (np.abs(values - 0.5) <= 0.5 + OUTSIDE).all():
            raise ValueError(f"line {number} has coordinates outside 0 .. 1; they are shares of width and height")
        points = values.reshape(-1, 2).clip(0, 1) * size[::-1]
        shapes.append((ids[int(class_id)], [points.ravel()]))
    return size, shapes


class YoloWriter:
    """Label maps of pictures -> `labels/NAME.txt` for each, and data.yaml; the images belong into images/ beside them.

    Outlines are exact to the pixel; a line leads from them to holes and back.

    Args:
        folder: of the files, whatever it is.
        names: class id -> name. A class called background is not written; the others are counted from 0.
        ignored: ids that are not written either.

    The methods are those of `CocoWriter`.
    """

    def __init__(self, folder: str | Path, names: dict[int, str], ignored: set[int] = frozenset()):
        written = [class_id for class_id in sorted(names) if names[class_id] not in BACKGROUND_NAMES]
        self.names = [names[class_id] for class_id in written]
        self.numbers = {class_id: number for number, class_id in enumerate(written)}
        self.skipped = {*ignored, *(set(names) - set(written))}

    def file(self, name: str) -> str:
        return f"labels/{name}.txt"

    def add(self, image: str | Path, name: str, label_map: np.ndarray) -> bytes:
        lines = []
        for region in find_regions(label_map, self.skipped):
            shares = joined(region) / label_map.shape[::-1]
            lines.append(f"{self.numbers[region.label]} " + " ".join(f"{share:.9g}" for share in shares.ravel()) + "\n")
        return "".join(lines).encode()

    def finish(self) -> dict[str, bytes]:
        content = {"path": ".", "train": "images", "names": dict(enumerate(self.names))}
        return {"data.yaml": yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode()}
