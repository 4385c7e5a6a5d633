"""Pascal VOC and Pascal Context in the folders of their owners -> pairs of image and mask, split by split.

    Pascal Context    VOC2010 with 59_context_labels, trainval/*.mat or trainval_merged.json, else the
                      SegmentationClassContext that mmsegmentation's converter writes
    Pascal VOC        JPEGImages, SegmentationClass, ImageSets/Segmentation; SegmentationClassAug for lists with "aug"

People put data of their own into VOC's folders: what counts is the owners' names of the files.
"""

import json
import os
import re
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from .annotations import decode_runs
from .class_files import class_file
from .files import Layout, MaskFile, canonical_split, fixed, some
from .label_tables import PASCAL_CONTEXT_459
from .labels import Labels
from .public_files import decoded, inside, listed_pairs, read_mat


VOC_NAME = re.compile(r"20(07|08|09|10|11|12)_\d{6}")


def find_pascal_context(folder: Path) -> Layout | None:
    forms = ("59_context_labels", "trainval", "trainval_merged.json", "SegmentationClassContext")
    root = inside(folder, *forms, places=("VOC2010", "VOCdevkit/VOC2010"))
    if root is None or not (root / "JPEGImages").is_dir():
        return None
    masks = next(root / form for form in forms if (root / form).exists())
    image = f"{root}/JPEGImages/{{}}.jpg"
    lists = inside(root / "ImageSets", "train.txt", "val.txt", places=("SegmentationContext", "Main"))
    if lists is None and masks.suffix != ".json":
        raise ValueError(
            f"{root}: Pascal Context without lists: neither ImageSets/SegmentationContext nor ImageSets/Main holds a "
            "train.txt and val.txt; unpack VOC2010's VOCtrainval archive here"
        )
    splits = {}
    for split, name in (("train", "train"), ("validation", "val")):
        if masks.suffix == ".json":
            splits[split] = fixed(_detail_pairs, masks, name, image)
        elif (lists / f"{name}.txt").is_file():
            end, decode = {
                "59_context_labels": (".png", None),
                "trainval": (".mat", decode_pascal_context),
                "SegmentationClassContext": (".png", decode_alphabetical_context),
            }[masks.name]
            pairs = fixed(listed_pairs, lists / f"{name}.txt", image, f"{masks}/{{}}{end}")
            splits[split] = decoded(pairs, decode) if decode else pairs
    return Layout("Pascal Context", Labels.named("pascal_context_60"), splits)


@lru_cache(None)
def _context_tables() -> tuple[np.ndarray, np.ndarray]:
    """(65536,) number among the 459 names -> 0 .. 59, and (256,) place of that number in their order -> 0 .. 59."""
    numbers = [int(number) for number in PASCAL_CONTEXT_459.split()]
    by_number, by_order = np.zeros(2**16, np.uint8), np.full(256, 255, np.uint8)
    by_number[numbers] = np.arange(1, 60)
    by_order[:60] = [0, *(by_number[number] for number in sorted(numbers))]
    return by_number, by_order


def decode_pascal_context(file: str) -> np.ndarray:
    """(H, W) ids 0 .. 59 from an original .mat file of 459 classes."""
    return _context_tables()[0][read_mat(file, "LabelMap").astype(np.uint16)]


def decode_alphabetical_context(file: str) -> np.ndarray:
    """(H, W) ids 0 .. 59 from a mask of mmsegmentation's converter.

    It numbers the classes in the order of the 459 names, which is the alphabet's, not that of the 59 names.
    """
    with Image.open(file) as image:
        return _context_tables()[1][np.asarray(image)]


@lru_cache(1)
def _detail(file: Path) -> tuple[list[dict], dict]:
    """Images, and per image id its segments (number of the class, run lengths), of "PASCAL in Detail"."""
    content = json.loads(file.read_text())
    segments = {image["image_id"]: [] for image in content["images"]}
    for annotation in content["annos_segmentation"]:
        segments[annotation["image_id"]].append((annotation["category_id"], annotation["segmentation"]))
    return content["images"], segments


def _detail_pairs(file: Path, phase: str, image: str) -> list[tuple[str, MaskFile]]:
    try:
        images, segments = _detail(file)
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(f"{file}: not the JSON of Pascal Context ({error!r}); download it again") from error
    pairs = []
    for entry in images:
        if entry["phase"] == phase:
            size = entry["height"], entry["width"]
            decode = partial(decode_segments, segments=segments[entry["image_id"]], size=size)
            path = image.format(Path(entry["file_name"]).stem)
            pairs.append((path, MaskFile(f"{file}, mask of {entry['file_name']}", decode)))
    if missing := [path for path, _ in pairs if not os.path.isfile(path)]:
        raise ValueError(
            f"{file}: {len(missing)} of its {len(pairs)} images of {phase} are missing: {some(missing)}; "
            "unpack VOC2010's VOCtrainval archive there"
        )
    return pairs


def decode_segments(file: str, segments: list[tuple[int, dict]], size: tuple[int, int]) -> np.ndarray:
    """(H, W) ids 0 .. 59 from run-length encoded segments of the 459 classes; later ones lie on top."""
    numbers = np.zeros(size, np.uint16)
    for number, segment in segments:
        numbers[decode_runs(segment["counts"], tuple(segment["size"]))] = number
    return _context_tables()[0][numbers]


def find_pascal_voc(folder: Path) -> Layout | None:
    root = voc_root(folder)
    if root is None or class_file(root) or not _is_the_owners(root):
        return None
    splits = {}
    for list_file in sorted((root / "ImageSets/Segmentation").glob("*.txt")):
        masks = root / ("SegmentationClassAug" if "aug" in list_file.stem else "SegmentationClass")
        if masks.is_dir() and list_file.stem != "test":  # whose masks are not public
            pairs = fixed(listed_pairs, list_file, f"{root}/JPEGImages/{{}}.jpg", f"{masks}/{{}}.png")
            splits[canonical_split(list_file.stem)] = pairs
    if not splits:
        raise ValueError(f"{root}: Pascal VOC without masks: no SegmentationClass there; unpack the archive again")
    return Layout("Pascal VOC", Labels.named("voc"), splits)


def voc_root(folder: Path) -> Path | None:
    """The folder with JPEGImages and ImageSets/Segmentation: the given one, or one of a year in it."""
    years = tuple(f"{place}VOC{year}" for place in ("", "VOCdevkit/") for year in range(2012, 2006, -1))
    root = inside(folder, "ImageSets/Segmentation", places=years)
    return root if root is not None and (root / "JPEGImages").is_dir() else None


def _is_the_owners(root: Path) -> bool:
    """Whether these are VOC's own images: names such as 2008_000002, or numbers with VOC2007's own descriptions."""
    lists = sorted((root / "ImageSets/Segmentation").glob("*.txt"))
    names = [line.split()[0] for file in lists for line in file.read_text().splitlines() if line.strip()]
    if not names or all(VOC_NAME.fullmatch(name) for name in names):
        return bool(names)
    description = root / f"Annotations/{names[0]}.xml"
    return (
        all(re.fullmatch(r"\d{6}", name) for name in names)
        and description.is_file()
        and "The VOC2007 Database" in description.read_text()
    )
