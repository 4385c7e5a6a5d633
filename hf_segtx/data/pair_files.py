"""Tables that list images and masks -> pairs: files of pairs, and run lengths as in Kaggle's competitions.

image,mask,split            .csv (also with semicolons or tabs), .tsv or .jsonl; paths start at the file's folder
ImageId,EncodedPixels       a row for each object: "start length start length ...", pixels counted from 1, column by
                            column; a class in a column (ClassId) or behind the image's name (ImageId_ClassId)
"""

import csv
import json
import os
import re
from functools import partial
from pathlib import Path

import numpy as np

from .annotations import BACKGROUND_NAMES, AnnotatedMask, labels_of_names, raw_ids
from .files import ALL, Layout, canonical_split, fixed, pictures_below, some, upright_size
from .labels import Labels


IMAGE_KEYS = ("image", "file_name", "image_path", "img")
MASK_KEYS = ("mask", "label", "annotation", "mask_file_name", "label_file_name", "mask_path", "label_path")
RUN_KEYS = ("encodedpixels", "rle", "rle_mask", "rle_encoding", "encoding")
NAME_KEYS = ("imageid", "image_id", "id", "image", "img", "image_name", "file_name", "filename")
CLASS_KEYS = ("classid", "class_id", "class", "category_id", "categoryid", "label")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")


def read_table(file: Path) -> Layout:
    """The pairs of a table of one of both forms.

    Raises:
        ValueError: if it cannot be read, or columns or files are missing.
    """
    rows = _rows(file)
    keys = {key.lower(): key for key in rows[0]}
    runs, joined = next((keys[key] for key in RUN_KEYS if key in keys), None), None
    if runs is not None:
        joined = next((key for key in rows[0] if re.fullmatch(r"image_?(id)?_(class_?(id)?|label)", key, re.I)), None)
        name = joined or next((keys[key] for key in NAME_KEYS if key in keys), None)
        if name is None:
            raise ValueError(f"{file}: there is no column of the images among {some(list(rows[0]))}; call it ImageId")
        return _run_table(
            file, rows, runs, name, joined is not None, next((keys[k] for k in CLASS_KEYS if k in keys), None)
        )
    found = [next((keys[key] for key in names if key in keys), None) for names in (IMAGE_KEYS, MASK_KEYS)]
    if None in found:
        raise ValueError(
            f"{file}: the columns are {', '.join(map(str, rows[0]))}; name the one of the images {IMAGE_KEYS[0]!r} and "
            f"the one of the masks {MASK_KEYS[0]!r}{', with a comma between' if len(rows[0]) == 1 else ''}"
        )
    return _pair_table(file, rows, found, keys.get("split"))


def find_run_table(folder: Path) -> Layout | None:
    """The run lengths in a folder's only table of them, apart from samples of submissions; None if there is none."""
    tables = []
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in (".csv", ".tsv") and "submission" not in file.name.lower() and file.is_file():
            with open(file, encoding="utf-8-sig", errors="replace") as lines:
                header = re.split(r"[,;\t]", lines.readline().lower())
            if any(cell.strip(' "\n') in RUN_KEYS for cell in header):
                tables.append(file)
    if len(tables) > 1:
        raise ValueError(f"{folder}: there are several tables of run lengths, {some(tables)}; give the one that counts")
    return read_table(tables[0]) if tables else None


def _rows(file: Path) -> list[dict]:
    """Rows with their cells by the names in the header, without spaces around; not empty."""
    try:
        start = file.read_bytes()[:2]
        encoding = "utf-16" if start in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        with open(file, newline="", encoding=encoding) as lines:
            if file.suffix.lower() == ".jsonl":
                rows = [json.loads(line) for line in lines if line.strip()]
            else:
                known = {*IMAGE_KEYS, *MASK_KEYS, *RUN_KEYS, *NAME_KEYS}
                header = lines.readline()
                counts = {mark: sum(c.strip(' "\r\n').lower() in known for c in header.split(mark)) for mark in ",;\t|"}
                lines.seek(0)
                reader = csv.DictReader(lines, delimiter=max(counts, key=counts.get), skipinitialspace=True)
                rows = [{str(key).strip(): value for key, value in row.items()} for row in reader]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: cannot be read as {error.encoding} ({error.reason}); save it as UTF-8") from error
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{file}: cannot be read ({error}); a row names an image and a mask file") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file}: no rows; give a header image,mask and a row for each pair (.jsonl: objects)")
    if wrong := [number for number, row in enumerate(rows, 1) if "None" in row]:
        raise ValueError(f"{file}: row {wrong[0]} has more cells than the header; correct it")
    return rows


def _pair_table(file: Path, rows: list[dict], keys: list[str], split_key: str | None) -> Layout:
    splits: dict[str, list[tuple[str, str]]] = {}
    for number, row in enumerate(rows, 1):
        if missing := [key for key in keys if not str(row.get(key) or "").strip()]:
            raise ValueError(f"{file}: row {number} has no {missing[0]!r}; remove or complete it")
        pair = tuple(_existing(file, str(row[key]).strip()) for key in keys)
        if missing := [path for path in pair if not os.path.isfile(path)]:
            raise ValueError(f"{file}: row {number}: there is no file {missing[0]}; paths start at {file.parent}")
        split = canonical_split(str(row.get(split_key) or "").strip() or ALL)
        splits.setdefault(split.lower() if split.lower() in ("train", "test") else split, []).append(pair)
    if ALL in splits and len(splits) > 1:
        raise ValueError(f"{file}: {len(splits[ALL])} rows have no split, others have one; complete them")
    functions = {name: fixed(list, pairs) for name, pairs in splits.items()}
    counts = ", ".join(f"{len(pairs)} pairs in {name}" for name, pairs in splits.items())
    return Layout(f"{file}, a file of pairs", None, functions, places=(file.parent,), notes=(counts,))


def _existing(file: Path, path: str) -> str:
    """The path below the table's folder; with slashes in place of backslashes if it is not there as it is."""
    found = file.parent / path
    return str(found if found.exists() else file.parent / path.replace("\\", "/"))


def _run_table(file: Path, rows: list[dict], runs: str, name: str, is_joined: bool, class_key: str | None) -> Layout:
    images: dict[str, list[tuple[str | None, str]]] = {}
    for number, row in enumerate(rows, 1):
        image, kind, text = str(row[name]).strip(), _cell(row[class_key]) if class_key else None, _cell(row[runs])
        if is_joined:
            image, _, kind = image.rpartition("_")
        if kind == "" and text:
            key = name if is_joined else class_key
            raise ValueError(f"{file}: row {number} has runs, but no class in {key}; complete or remove it")
        images.setdefault(image, []).append((kind, text))
    kinds = sorted({kind for objects in images.values() for kind, text in objects if kind is not None and text})
    names = tuple(kind for kind in kinds if not kind.isdecimal())
    if names and len(names) < len(kinds):
        raise ValueError(f"{file}: some classes are numbers, some are names: {some(kinds)}; make them alike")
    try:
        own_labels = labels_of_names(names) if names else None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    by_name: dict[str, list[str]] = {}
    for way, picture, path in pictures_below(file.parent):
        for key in {picture, Path(picture).stem, "/".join((*way, picture))}:
            by_name.setdefault(key, []).append(path)
    if missing := [image for image in images if image not in by_name]:
        raise ValueError(
            f"{file}: {len(missing)} of its {len(images)} images are not below {file.parent}: {some(missing)}"
        )
    if double := [image for image in images if len(by_name[image]) > 1]:
        raise ValueError(f"{file}: which file is {double[0]}: {some(by_name[double[0]])}? Remove the others")

    def records(labels: Labels | None, alone) -> list[tuple]:
        ids, background = raw_ids(labels, names, str(file)) if names else ({kind: int(kind) for kind in kinds}, 0)
        if labels and not names and 0 in ids.values():
            zero = labels.id2label.get(labels.mapping.get(0), "")
            if labels.num_labels == 1 or zero.strip().lower() not in BACKGROUND_NAMES:
                raise ValueError(
                    f"{file}: {class_key or name} 0 is also what no run covers, but the classes are "
                    f"{some(labels.names)}; count them from 1 there, and name background as the class of id 0"
                )
        return [
            (path, AnnotatedMask(f"{file}, mask of {image}", partial(_read_runs, path, objects, ids), background))
            for image, objects in images.items()
            for path in by_name[image]
        ]

    return Layout(
        f"{file}, run lengths (pixels counted from 1, column by column)",
        own_labels,
        {ALL: records},
        places=(file.parent,),
        notes=(f"{len(images)} images, the others below {file.parent} are not read",),
        names=names,
    )


def _cell(value) -> str:
    """Without the marks of numbers that pandas writes: nan is empty, 1.0 is 1."""
    text = "" if value is None else str(value).strip()
    return "" if text.lower() == "nan" else re.sub(r"^(\d+)\.0+$", r"\1", text)


def _read_runs(image: str, objects: list[tuple[str | None, str]], ids: dict[str, int]) -> tuple:
    size = upright_size(image)
    return size, [(1 if kind is None else ids[kind], [decode_starts(text, size)]) for kind, text in objects if text]


def decode_starts(text: str, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool from "start length start length ...", pixels counted from 1, column by column.

    Raises:
        ValueError: if the runs are not in order, overlap or leave the image: then they are counted in another way.
    """
    numbers = [int(number) for number in text.split()]
    starts, lengths = np.array(numbers[::2], np.int64), np.array(numbers[1::2], np.int64)
    if numbers == [-1]:  # nothing, in some competitions
        return np.zeros(size, bool)
    ends = starts + lengths if len(starts) == len(lengths) else starts
    if len(numbers) % 2 or (lengths < 1).any() or (starts[1:] < ends[:-1]).any():
        raise ValueError("its runs are not pairs of start and length in ascending order; convert them")
    if starts[0] < 1 or ends[-1] > size[0] * size[1] + 1:
        raise ValueError(f"a run from {starts[0]} to {ends[-1] - 1} leaves the image of {size[0]} x {size[1]} pixels")
    borders = np.zeros(size[0] * size[1] + 2, np.int8)
    borders[starts] += 1
    borders[ends] -= 1
    return np.cumsum(borders[1:-1]).astype(bool).reshape(size[::-1]).T
