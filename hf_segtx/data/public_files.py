"""Files in the folders of public data sets: found by their ends, listed, paired, decoded."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .files import MaskFile, files_below, some


def inside(folder: Path, *markers: str, places: tuple[str, ...] = ()) -> Path | None:
    """`folder` or the first of the `places` in it that holds one of the markers."""
    for place in (folder, *(folder / place for place in places)):
        if any((place / marker).exists() for marker in markers):
            return place
    return None


def files_ending(folder: Path, end: str) -> dict[str, str]:
    """{path below `folder` without `end`: file} of the files that end so, sorted."""
    found = ((("/".join((*way, name))), path) for way, name, path in files_below(folder) if name.endswith(end))
    return dict(sorted((name[: -len(end)], path) for name, path in found))


def paired(images: dict[str, str], masks: dict[str, str], image_place, mask_place) -> list[tuple[str, str]]:
    """Pairs of equal keys; none may be alone."""
    for found, place in ((images, image_place), (masks, mask_place)):
        if not found:
            raise ValueError(f"{place}: none of the files that belong there; unpack the data set's archives again")
    for found, others, place in ((images, masks, mask_place), (masks, images, image_place)):
        if alone := [file for key, file in found.items() if key not in others]:
            raise ValueError(
                f"{len(alone)} of {len(found)} files have no partner in {place}: {some(alone)}; "
                "unpack both archives whole, or remove these"
            )
    return [(images[key], masks[key]) for key in images]


def tree_pairs(image_folder: Path, image_end: str, mask_folder: Path, mask_end: str) -> list[tuple[str, str]]:
    images, masks = files_ending(image_folder, image_end), files_ending(mask_folder, mask_end)
    return paired(images, masks, f"{image_folder}/**{image_end}", f"{mask_folder}/**{mask_end}")


def listed_pairs(list_file: Path, image: str, mask: str) -> list[tuple[str, str]]:
    """Pairs of the names in a list; `image` and `mask` are paths with {} for the name."""
    names = [line.split()[0] for line in list_file.read_text().splitlines() if line.strip()]
    pairs = [(image.format(name), mask.format(name)) for name in names]
    if not pairs:
        raise ValueError(f"{list_file}: the list is empty; unpack the data set again")
    if missing := [file for pair in pairs for file in pair if not os.path.isfile(file)]:
        raise ValueError(
            f"{list_file}: {len(missing)} files of its {len(pairs)} pairs are missing: {some(missing)}; "
            "unpack the data set again, or remove these names from the list"
        )
    return pairs


def decoded(pairs: Callable, decode: Callable[[str], np.ndarray]) -> Callable:
    """The split `pairs`, with masks that are decoded so."""
    return lambda labels, alone: [(image, MaskFile(mask, decode)) for image, mask in pairs(labels, alone)]


def read_mat(file: str, key: str) -> np.ndarray:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError("reading .mat files needs scipy: pip install scipy") from error
    return loadmat(file, variable_names=[key])[key]
