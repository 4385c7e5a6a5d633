"""What all readers of files share: what is below a folder, the words for splits, and what a reader gives."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .labels import Labels


IMAGE_SUFFIXES = set(
    ".avif .bmp .gif .jfif .jp2 .jpe .jpeg .jpg .npy .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp".split()
)
SPLIT_NAMES = {  # other words for a split
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validate": "validation",
    "testing": "test",
}
ALL = "all"  # the split of data that have none


@dataclass(frozen=True)
class Layout:
    """A data set that was recognised.

    Args:
        title: what it is, for messages.
        labels: what the values in its masks mean; None if it has no class names, or has them in files beside it.
        splits: name of each split -> function that lists its (image, mask) pairs. It takes the labels that count, and a
            list that notes files without a partner, or None if these are an error. Data without splits have one, "all".
        places: folders in which files with class names are searched for.
        notes: what else was found, a sentence each.
        names: of the classes, if masks are drawn by name; the labels may then be any that have these names.
    """

    title: str
    labels: Labels | None
    splits: dict[str, Callable[[Labels | None, list[str] | None], list[tuple]]]
    places: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def is_public(self) -> bool:
        """Whether it is a data set with a name of its own: nothing beside the files changes its classes."""
        return self.labels is not None and not self.places

    def records(self, split: str, labels: Labels | None = None, alone: list[str] | None = None) -> list[tuple]:
        """The pairs of a split.

        Args:
            labels: instead of the layout's own.
            alone: files without a partner are noted in this list, instead of being an error.

        Raises:
            ValueError: if there is no such split, or files of it are missing.
        """
        split = ALL if ALL in self.splits else canonical_split(split)
        if split not in self.splits:
            raise ValueError(f"{self.title}: there is no split {split!r} here; there are {', '.join(self.splits)}")
        return self.splits[split](labels or self.labels, alone)


def fixed(function: Callable, *arguments) -> Callable:
    """A split that depends neither on labels nor on what is done with files without a partner."""
    return lambda labels, alone: function(*arguments)


class MaskFile:
    """A mask that is not a picture of class ids; `numpy.asarray` decodes it to (H, W) ids.

    Args:
        path: of the file, also for messages.
        decode: function of the path.
    """

    def __init__(self, path: str | Path, decode: Callable[[str], np.ndarray]):
        self.path = str(path)
        self.decode = decode

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        try:
            return np.asarray(self.decode(self.path), dtype)
        except ImportError as error:
            raise ValueError(f"{self.path}: {error}") from error
        except Exception as error:  # PIL, scipy and numpy raise many kinds on broken files
            if isinstance(error, ValueError) and str(error).startswith(self.path):
                raise  # it says already what is wrong
            raise ValueError(f"{self.path}: the mask cannot be decoded ({error}); download it again") from error


def canonical_split(name: str) -> str:
    """ "val" -> "validation"; other names stay."""
    return SPLIT_NAMES.get(name.lower(), name)


def split_of(name: str) -> str | None:
    """The split that a folder or file is called after, such as "val", "Training" or "train2017"; None for others."""
    word = re.sub(r"[\W_]*((19|20)\d\d)?$", "", name.lower())
    word = SPLIT_NAMES.get(word, word)
    return word if word in ("train", "validation", "test") else None


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, also linked ones, without hidden ones, sorted."""
    return sorted(place for place in folder.iterdir() if place.is_dir() and not place.name.startswith("."))


def files_below(folder: str | Path) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """(names of the folders on the way, name, path) of all files, in order; linked folders are followed, loops are not.

    Raises:
        ValueError: if a link leads nowhere; its file would be missing without a word.
    """

    def walk(place: str, way: tuple[str, ...], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str, str]]:
        real = os.path.realpath(place)
        if real in above:
            return
        for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_symlink() and not os.path.exists(entry.path):
                raise ValueError(f"{entry.path} is a link to {os.readlink(entry.path)}, which is not there; correct it")
            if entry.is_dir():
                yield from walk(entry.path, (*way, entry.name), (*above, real))
            else:
                yield way, entry.name, entry.path

    yield from walk(str(folder), (), ())


def pictures_below(folder: str | Path) -> list[tuple[tuple[str, ...], str, str]]:
    """The image files among `files_below`."""
    return [found for found in files_below(folder) if Path(found[1]).suffix.lower() in IMAGE_SUFFIXES]


def has_pictures(folder: str | Path) -> bool:
    return any(Path(name).suffix.lower() in IMAGE_SUFFIXES for _, name, _ in files_below(folder))


def upright_size(file: str | Path) -> tuple[int, int]:
    """(H, W) of an image as it is shown (EXIF), from the head of the file.

    Raises:
        ValueError: if the file is no picture.
    """
    try:
        if str(file).lower().endswith(".npy"):
            shape = list(np.load(file, mmap_mode="r", allow_pickle=False).shape)
            if len(shape) == 3:
                shape.remove(min(shape))  # that of the channels
            return tuple(shape)
        with Image.open(file) as image:
            turned = image.getexif().get(0x0112, 1) > 4
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception as error:  # PIL raises many kinds on broken files
        raise ValueError(f"{file}: its width and height cannot be read ({error}); replace the file") from error


def some(names: list, count: int = 5) -> str:
    """The first of many names, for a message."""
    return ", ".join(map(str, names[:count])) + (", ..." if len(names) > count else "")
