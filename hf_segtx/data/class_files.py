"""Files with class names that lie beside data -> labels.

classes.json, id2label.json    see `Labels.from_file`
labelmap.txt                   CVAT's and Datumaro's: a line for each class, "road:128,64,128::", in the order of ids
_classes.csv                   Roboflow's: a header and a line for each class, "1, road"
"""

import csv
import re
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from .files import MaskFile
from .labels import CONTRACT_FILES, Labels, default_ignore_index
from .masks import read_mask


CLASS_FILES = (*CONTRACT_FILES, "labelmap.txt", "_classes.csv")


def class_file(folder: str | Path) -> Path | None:
    """The first of the files with class names in the folder, then in its parent; None if there is none."""
    folder = Path(folder).resolve()
    files = (place / name for place in (folder, folder.parent) for name in CLASS_FILES)
    return next((file for file in files if file.is_file()), None)


def read_class_file(file: Path, do_reduce_labels: bool = False) -> Labels:
    """The labels of one of these files.

    Raises:
        ValueError: if it cannot be read, or says itself which id is ignored.
    """
    if file.name in CONTRACT_FILES:
        if do_reduce_labels and file.name == "classes.json":
            raise ValueError(f"{file} says itself which id is ignored; omit do_reduce_labels")
        return Labels.from_file(file, do_reduce_labels)
    if do_reduce_labels:
        raise ValueError(f"{file} says itself which id each class has; omit do_reduce_labels")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
        return _from_labelmap(lines) if file.name == "labelmap.txt" else _from_classes_csv(lines)
    except (ValueError, OSError) as error:
        raise ValueError(f"{file}: {error}") from error


def _from_labelmap(lines: list[str]) -> Labels:
    """Ids are in the order of the lines; masks may also hold the colours."""
    rows = [line.split(":") for line in lines if line.strip() and not line.startswith("#")]
    names = tuple(row[0].strip() for row in rows)
    codes = ["".join(row[1:2]).strip() for row in rows]
    if len(rows) < 2:
        raise ValueError("it must list background and at least one class, each as NAME:RED,GREEN,BLUE::")
    if not any(codes):
        return Labels(names, (), default_ignore_index(len(names)))
    if wrong := [":".join(row) for row, code in zip(rows, codes) if not re.fullmatch(r"\d+ *, *\d+ *, *\d+", code)]:
        raise ValueError(f"{wrong[0]!r} is no class with a colour; a line is NAME:RED,GREEN,BLUE::")
    palette = tuple(tuple(map(int, code.split(","))) for code in codes)
    if wrong := [color for color in palette if palette.count(color) > 1 or max(color) > 255]:
        raise ValueError(f"the colour {wrong[0]} is there twice, or not three numbers of 0 .. 255; correct it")
    colors = {color: train_id for train_id, color in enumerate(palette)}
    return Labels(names, palette, default_ignore_index(len(names)), color_to_train=colors)


def _from_classes_csv(lines: list[str]) -> Labels:
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines[1:])]
    rows = [row for row in rows if any(row)]
    if wrong := [row for row in rows if len(row) != 2 or not row[0].isdigit()]:
        raise ValueError(f"{', '.join(wrong[0])!r} is no class; after the header a line is VALUE, NAME")
    return Labels._from_classes({"classes": [{"id": int(value), "name": name} for value, name in rows]})


def by_palette(masks: list[str], labels: Labels) -> list[str | MaskFile]:
    """Masks of classes that have colours: a PNG with a palette of these colours counts as what it looks like.

    Its indices need not be the ids, unlike those of other data.
    """
    decode = partial(decode_by_palette, colors=frozenset(labels.color_to_train))
    return [MaskFile(mask, decode) if mask.lower().endswith(".png") else mask for mask in masks]


def decode_by_palette(file: str, colors: frozenset[tuple[int, int, int]]) -> np.ndarray:
    """(H, W, 3) colours if the file has a palette of which it uses these colours only, else what `read_mask` says."""
    with Image.open(file) as image:
        if image.mode == "P":
            image = image.convert("RGB")
            if colors.issuperset(color for _, color in image.getcolors(image.width * image.height)):
                return np.asarray(image)
    return read_mask(file, file)
