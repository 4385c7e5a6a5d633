"""Which of the known layouts a folder or file has.

In this order; what comes first counts:

    public_layouts    data sets in the folders of their owners, which know their classes
    voc_folders       own data in VOC's folders
    folders           images and masks as pictures, in folders of any usual names
    coco, yolo, labelme    annotations, from which masks are drawn
    folders           masks beside their images
    pair_files        tables of pairs (given as a file), and of run lengths
"""

from pathlib import Path

from .coco import find_coco, read_coco
from .files import Layout
from .folders import find_beside, find_folders, no_layout
from .labelme import find_labelme
from .pair_files import TABLE_SUFFIXES, find_run_table, read_table
from .public_layouts import find_public
from .voc_folders import find_own_voc
from .yolo import CONFIGURATIONS, find_yolo, read_yolo


def find_layout(place: str | Path) -> Layout:
    """The data set in a folder, or in a file of pairs or annotations.

    Raises:
        ValueError: if it is none that is known, or a part of it is missing or in doubt.
    """
    place = Path(place)
    if not place.exists():
        raise ValueError(f"{place}: there is no such folder or file")
    if place.is_file():
        if place.suffix.lower() in TABLE_SUFFIXES:
            return read_table(place)
        if place.suffix.lower() == ".json":
            return read_coco(place)
        if place.suffix.lower() in CONFIGURATIONS:
            return read_yolo(place)
        raise ValueError(
            f"{place} is a file; give a folder that holds images/ and masks/, pairs as .csv or .jsonl, or "
            "annotations as .json (COCO) or .yaml (YOLO)"
        )
    for find in (
        find_public,
        find_own_voc,
        find_folders,
        find_coco,
        find_yolo,
        find_labelme,
        find_beside,
        find_run_table,
    ):
        if layout := find(place):
            return layout
    raise no_layout(place)
