"""Pairs of files -> checked samples: image and train ids.

Shapes: (H, W) image size, C channels.
"""

import logging
from collections.abc import Callable, Sequence
from copy import copy

import numpy as np
from torch.utils.data import Dataset

from .decoding import exif_orientation, name_of, read_image_part
from .labels import Labels
from .masks import read_mask


logger = logging.getLogger(__name__)


class SegmentationDataset(Dataset):
    """Images and train-id labels, decoded when asked for.

    Args:
        records: a pair (image, mask) of files for each sample: a path, or {"bytes", "path"} as in HF data sets. A mask
            may also be anything that `numpy.asarray` makes an array of ids.
        labels: the contract that maps the masks.
        num_channels: number of channels of the images (see `read_image`).
        on_error: "raise", or "skip": the loaders go on without a bad sample and list it in `skipped`.
        allow_lossy_masks: whether to read masks that are JPEGs and the like (see `read_mask`).

    Item i: {"image": PIL image, or tensor (C, H, W) if deep or of many channels, "label": (H, W) train ids (uint8 or
    int16), "name": text}.

    Raises:
        ValueError: for an item that cannot be decoded or breaks the contract, naming the file, value and cure.
    """

    def __init__(
        self,
        records: Sequence,
        labels: Labels,
        num_channels: int = 3,
        on_error: str = "raise",
        allow_lossy_masks: bool = False,
    ):
        if num_channels < 1:
            raise ValueError(f"num_channels {num_channels} is less than 1; give the number of channels of an image")
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error {on_error!r} is neither 'raise' nor 'skip'")
        self.records = records
        self.labels = labels
        self.num_channels = num_channels
        self.on_error = on_error
        self.allow_lossy_masks = allow_lossy_masks
        self.indices = range(len(records))
        self.skipped: list[str] = []  # what was wrong with each bad sample that was met, in this process

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict:
        read_image, raw, name = self.open_raw(index)
        return {"image": read_image(), "label": self.labels.map(raw, name), "name": name}

    def __getitems__(self, indices: list[int]) -> list[dict | str]:
        """Items for a loader's batch; with "skip", a text in place of one that cannot be read."""
        items = []
        for index in indices:
            try:
                items.append(self[index])
            except ValueError as error:
                if self.on_error == "raise":
                    raise
                items.append(str(error))
        return items

    def select(self, indices: Sequence[int]) -> "SegmentationDataset":
        """The same data set with these samples only."""
        selected = copy(self)
        selected.indices = [self.indices[index] for index in indices]
        selected.skipped = []
        return selected

    def files(self, index: int) -> tuple:
        """The undecoded image and mask of an item."""
        return self.records[self.indices[index]]

    def names(self, index: int) -> tuple[str, str]:
        """What messages call the image and the mask of an item."""
        return self._names(index, self.files(index))

    def _names(self, index: int, files: tuple) -> tuple[str, str]:
        row = self.indices[index]
        return name_of(files[0], f"row {row}, image"), name_of(files[1], f"row {row}, mask")

    def read_mask(self, index: int) -> np.ndarray:
        """The raw mask alone, (H, W) ids or (H, W, 3) colours."""
        files = self.files(index)
        return read_mask(files[1], self._names(index, files)[1], self.allow_lossy_masks)

    def open(
        self, index: int, files: tuple | None = None, largest_scale: Callable[[int, int], float] | None = None
    ) -> tuple[Callable, np.ndarray]:
        """A function that decodes the image of item `index`, and its labels.

        The function takes the number of rows that are needed, counted from the top, and gives at least these.

        Args:
            files: its undecoded files, if they are at hand.
            largest_scale: see `read_image_part`; the image may come out smaller than its labels.
        """
        read_image, raw, name = self.open_raw(index, files, largest_scale)
        return read_image, self.labels.map(raw, name)

    def open_raw(self, index: int, files: tuple | None = None, largest_scale=None) -> tuple[Callable, np.ndarray, str]:
        """As `open`, but with the raw mask, (H, W) ids or (H, W, 3) colours; and the name of the mask."""
        image, mask_file = files = files or self.files(index)
        image_name, name = self._names(index, files)
        mask = read_mask(mask_file, name, self.allow_lossy_masks)
        scale = largest_scale(*mask.shape[:2]) if largest_scale is not None else 1.0

        def read_image(num_rows: int | None = None):
            pixels, size = read_image_part(image, image_name, self.num_channels, scale, num_rows)
            if mask.shape[:2] != size:
                raise ValueError(_sizes_differ(name, mask.shape[:2], mask_file, image_name, size, image))
            return pixels

        return read_image, mask, name


def _sizes_differ(name: str, mask_size: tuple, mask_file, image_name: str, size: tuple, image_file) -> str:
    """Sizes are (height, width)."""
    what = f"{name}: the mask is {mask_size[1]}x{mask_size[0]} pixels, its image {image_name} {size[1]}x{size[0]}; "
    turned = [kind for kind, file in (("image", image_file), ("mask", mask_file)) if exif_orientation(file) > 4]
    if tuple(mask_size) == tuple(size[::-1]) and len(turned) == 1:
        other = "mask" if turned == ["image"] else "image"
        return what + f"EXIF says that the {turned[0]} is to be turned, and nothing says it of the {other}: turn that"
    return what + "a mask has the size of its image: export it again or scale it (nearest)"


def note_errors(dataset: Dataset, errors: list[str]) -> None:
    """Adds to the data set's list of what was skipped, and says it, once each."""
    for error in errors:
        if error not in dataset.skipped:
            dataset.skipped.append(error)
            logger.warning("Skipped a sample: %s", error)


def evenly(length: int, count: int | None) -> list[int]:
    """`count` indices spread evenly over 0 .. length - 1; all if there are no more."""
    return np.linspace(0, length - 1, min(length, count or length)).round().astype(int).tolist()
