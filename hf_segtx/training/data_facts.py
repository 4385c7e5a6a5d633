"""What a data set is like, in numbers: what a run that configures itself decides from.

    facts = measure_facts(train_dataset, len(validation_dataset))
    facts.height, facts.class_shares, facts.object_sides

Shapes: (H, W) image size, C channels, K classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..data.dataset import SegmentationDataset, evenly
from ..data.decoding import read_image
from ..data.diagnosis import Sample, examine_sample
from ..error_analysis import connected_runs


EXAMINED_IMAGES = 200  # the shares of classes and the sizes of images hardly change with more of them
EXAMINED_MASKS = 60  # of these, whose regions are measured
LARGEST_CHANNELS = 64  # that are looked for
SMALLEST_REGION = 9  # pixels; below are the crumbs of borders and of pictures resized with their masks


@dataclass
class DataFacts:
    """Measured on up to `EXAMINED_IMAGES` training images, evenly spread.

    Attributes:
        num_images, num_validation_images: of the whole data set.
        height, width: medians, in pixels.
        smallest, largest: (H, W) of the images with the fewest and the most pixels.
        num_channels: of the images.
        is_deep: whether an image has more than 8 bits or other channels than PIL knows.
        mean, std: (C,) over all pixels, of 0-1.
        class_names: of K classes, or the background and the one class there is.
        class_shares: (K,) of the valid pixels, of 0-1.
        class_images: (K,) share of the images that show the class.
        void_share: of all pixels.
        object_sides: (K,) median of the square roots of the areas of connected regions, in pixels; nan without any.
    """

    num_images: int
    num_validation_images: int
    height: int
    width: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    num_channels: int
    is_deep: bool
    mean: list[float]
    std: list[float]
    class_names: list[str]
    class_shares: list[float]
    class_images: list[float]
    void_share: float
    object_sides: list[float]

    @property
    def megapixels(self) -> float:
        """Of a median image."""
        return self.height * self.width / 1e6

    def smallest_object(self) -> tuple[str, float]:
        """The class with the smallest median region among those of less than 5 % of the pixels, and that side.

        Without such a class it is that of the smallest regions of all.
        """
        sides = [math.inf if math.isnan(side) else side for side in self.object_sides]
        rare = [index for index, share in enumerate(self.class_shares) if 0 < share < 0.05 and sides[index] < math.inf]
        index = min(rare or range(len(sides)), key=lambda index: sides[index])
        return self.class_names[index], sides[index]


def measure_facts(dataset: SegmentationDataset, num_validation_images: int) -> DataFacts:
    """The facts of a training set.

    Raises:
        ValueError: if not one sample that was looked at can be read.
    """
    rows = evenly(len(dataset), EXAMINED_IMAGES)
    samples = [examine_sample(dataset, row) for row in rows]
    good = [(row, sample) for row, sample in zip(rows, samples, strict=True) if sample.error is None]
    if not good:
        raise ValueError(f"not one of {len(rows)} training samples can be read: {samples[0].error}")
    rows, samples = [row for row, _ in good], [sample for _, sample in good]
    pixels = np.stack([sample.pixels for sample in samples])  # (N, K + 1), the last one ignored
    valid = max(1, pixels[:, :-1].sum())
    mean, std = _moments(samples)
    by_area = sorted((sample.size for sample in samples), key=lambda size: size[0] * size[1])
    return DataFacts(
        num_images=len(dataset),
        num_validation_images=num_validation_images,
        height=round(float(np.median([size[0] for size in by_area]))),
        width=round(float(np.median([size[1] for size in by_area]))),
        smallest=by_area[0],
        largest=by_area[-1],
        num_channels=len(mean),
        is_deep=isinstance(dataset[rows[0]]["image"], torch.Tensor),
        mean=mean,
        std=std,
        class_names=list(dataset.labels.id2label.values()),
        class_shares=(pixels[:, :-1].sum(0) / valid).tolist(),
        class_images=(pixels[:, :-1] > 0).mean(0).tolist(),
        void_share=float(pixels[:, -1].sum() / max(1, pixels.sum())),
        object_sides=_object_sides(dataset, [rows[index] for index in evenly(len(rows), EXAMINED_MASKS)]),
    )


def _moments(samples: Sequence[Sample]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over all pixels."""
    areas = [sample.size[0] * sample.size[1] for sample in samples]
    mean, square = np.average([sample.moments for sample in samples], axis=0, weights=areas)
    return mean.tolist(), np.sqrt(np.maximum(square - mean**2, 0)).tolist()


def _object_sides(dataset: SegmentationDataset, rows: Sequence[int]) -> list[float]:
    """Of each train id, the median square root of the areas of its connected regions."""
    areas: list[list[float]] = [[] for _ in range(dataset.labels.num_ids)]
    for row in rows:
        label = np.asarray(dataset[row]["label"])
        starts, lengths, regions = connected_runs(label)
        sizes = np.bincount(regions, weights=lengths, minlength=len(starts))
        for region in np.flatnonzero(sizes >= SMALLEST_REGION):
            label_id = int(label.flat[starts[region]])
            if label_id < len(areas):
                areas[label_id].append(float(sizes[region]))
    return [float(np.sqrt(np.median(found))) if found else math.nan for found in areas]


def file_channels(dataset: SegmentationDataset) -> int:
    """Channels of the first image: 3 for whatever is a picture, else the first number that it can be read with.

    Returns:
        3 also for a file that cannot be read: the check of the data says what is wrong with it.
    """
    file = dataset.files(0)[0]
    for channels in (3, 1, 2, *range(4, LARGEST_CHANNELS + 1)):
        try:
            read_image(file, "the image", channels)
        except ValueError:
            continue
        return channels
    return 3
