"""Prototypes of a model's errors: of each confusion the few wrong segments that stand for the most others.

A wrong segment is a connected region of pixels of one true class that the model takes for one other class. It is
described by the backbone's last map, in the mean over the segment; k-means groups what is alike, and each group is
shown by the segment nearest to its centre.

Shapes: (H, W) picture, (h, w) last map of the backbone, C channels, N segments.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from .data.dataset import evenly
from .error_analysis import connected_runs
from .inference import follow, image_size, predict, resized_image
from .visualization.label_maps import as_image


LEAST_PIXELS = 64  # of a segment that is looked at: smaller ones are the seams of boundaries
SEGMENTS_AN_IMAGE = 3  # the largest, of each confusion: no image speaks for all
OUTLINE = (255, 0, 160)
SHOWN_EDGE = 240  # pixels of the longer side of a picture


@dataclass
class TypicalError:
    """A wrong segment that stands for a group.

    Attributes:
        name: of its image.
        picture: the segment, outlined, and what is around it.
        pixels: its size.
        group: number of segments that it stands for, itself one of them.
    """

    name: str
    picture: Image.Image
    pixels: int
    group: int


@dataclass
class _Segment:
    """index: of its image; mask: (H, W) bool, packed; features: (C,), of length 1."""

    index: int
    mask: np.ndarray
    size: tuple[int, int]
    pixels: int
    features: np.ndarray


@torch.no_grad()
def typical_errors(
    model: nn.Module,
    processor,
    dataset: Dataset,
    confusions: Sequence[tuple[int, int]],
    *,
    max_images: int = 60,
    groups: int = 3,
) -> list[list[TypicalError]]:
    """For each confusion (true class, predicted class) the prototypes, those of the largest groups first.

    Args:
        model: with a `backbone`, in evaluation mode.
        processor: of this package.
        dataset: as in `hf_segtx.inference.evaluate`.
        max_images: that are looked at, evenly spread.
        groups: at most, of each confusion.
    """
    follow(processor, model)
    found: list[list[_Segment]] = [[] for _ in confusions]
    for index in evenly(len(dataset), max_images):
        try:
            item = dataset[index]
        except ValueError:
            continue  # it cannot be read, which the evaluation has said
        truth, features = np.asarray(item["label"]), None
        label_map = predict(model, processor, [item["image"]])[0].cpu().numpy()
        for (true_class, predicted), segments in zip(confusions, found, strict=True):
            masks = largest_regions((truth == true_class) & (label_map == predicted))
            for mask in masks:
                features = _features(model, processor, item["image"]) if features is None else features
                segments.append(_Segment(index, np.packbits(mask), mask.shape, int(mask.sum()), _mean(features, mask)))
    return [_prototypes(segments, dataset, groups) for segments in found]


def largest_regions(mask: np.ndarray) -> list[np.ndarray]:
    """The largest connected regions of a mask that are no seams, as masks."""
    starts, lengths, roots = connected_runs(mask.astype(np.uint8))
    areas = np.bincount(roots, np.where(mask.ravel()[starts], lengths, 0), len(roots))
    chosen = np.argsort(-areas, kind="stable")[:SEGMENTS_AN_IMAGE]
    region = roots.repeat(lengths).reshape(mask.shape)
    return [region == root for root in chosen if areas[root] >= LEAST_PIXELS]


def _features(model: nn.Module, processor, image) -> torch.Tensor:
    """The last map (C, h, w) of the whole image, without what belongs to padding."""
    maps = []
    hook = model.backbone.register_forward_hook(lambda module, inputs, output: maps.append(output.feature_maps[-1]))
    try:
        inputs = processor(images=[image], window_size=None, return_tensors="pt")["pixel_values"]
        model(inputs.to(next(model.parameters()).device))
    finally:
        hook.remove()
    own = resized_image(processor, image).shape[1:]
    height, width = (
        max(1, round(steps * part / whole)) for steps, part, whole in zip(maps[0].shape[2:], own, inputs.shape[2:])
    )
    return maps[0][0, :, :height, :width].float().cpu()


def _mean(features: torch.Tensor, mask: np.ndarray) -> np.ndarray:
    """(C,) of length 1: the mean of (C, h, w) over a mask (H, W), whose pixels fill the cells in part."""
    shares = F.adaptive_avg_pool2d(torch.from_numpy(mask)[None].float(), features.shape[1:])
    return F.normalize((features * shares).sum((1, 2)), dim=0).numpy()


def _prototypes(segments: list[_Segment], dataset: Dataset, groups: int) -> list[TypicalError]:
    if not segments:
        return []
    features = np.stack([segment.features for segment in segments])
    group_of, centres = k_means(features, groups, first=int(np.argmax([segment.pixels for segment in segments])))
    found = []
    for number, centre in enumerate(centres):
        members = np.flatnonzero(group_of == number)
        nearest = members[np.square(features[members] - centre).sum(1).argmin()]
        segment = segments[nearest]
        item = dataset[segment.index]
        picture = _crop(as_image(item["image"]), segment)
        found.append(TypicalError(str(item["name"]), picture, segment.pixels, len(members)))
    return sorted(found, key=lambda error: -error.group)


def k_means(points: np.ndarray, groups: int, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Which of at most so many groups each of the points (N, C) belongs to, and their centres, none of them empty.

    Begins with the point `first` and those farthest from all before, so that nothing is random.
    """
    centres = points[[first]]
    while len(centres) < groups:
        distances = np.square(points[:, None] - centres).sum(2).min(1)
        if distances.max() < 1e-9:  # there are no more different points
            break
        centres = np.concatenate([centres, points[[distances.argmax()]]])
    for _ in range(20):
        group_of = np.square(points[:, None] - centres).sum(2).argmin(1)
        kept = np.unique(group_of)
        moved = np.stack([points[group_of == number].mean(0) for number in kept])
        if len(kept) == len(centres) and np.array_equal(moved, centres):
            break
        centres = moved
    group_of = np.square(points[:, None] - centres).sum(2).argmin(1)
    kept, group_of = np.unique(group_of, return_inverse=True)
    return group_of, centres[kept]


def _crop(image: Image.Image, segment: _Segment) -> Image.Image:
    """The segment, outlined, with as much around it as it is large."""
    mask = np.unpackbits(segment.mask, count=image_size(image)[0] * image_size(image)[1]).reshape(segment.size) > 0
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    side = max(96, 2 * (rows[-1] - rows[0] + 1), 2 * (columns[-1] - columns[0] + 1))
    box = []
    for places, length in ((columns, image.width), (rows, image.height)):
        start = max(0, min((places[0] + places[-1] + 1 - side) // 2, length - side))
        box.append((int(start), int(min(length, start + side))))
    (left, right), (top, bottom) = box
    scale = SHOWN_EDGE / max(right - left, bottom - top)
    size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    picture = np.array(image.crop((left, top, right, bottom)).resize(size, Image.Resampling.BICUBIC))
    shown = np.asarray(Image.fromarray(mask[top:bottom, left:right]).resize(size, Image.Resampling.NEAREST))
    inside = np.pad(shown, 2)
    inner = np.logical_and.reduce([np.roll(inside, step, axis) for step in (-2, 2) for axis in (0, 1)])[2:-2, 2:-2]
    picture[shown & ~inner] = OUTLINE
    return Image.fromarray(picture)
