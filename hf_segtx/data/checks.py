"""The check before training: every file is read once, and what would spoil a run is refused.

`diagnosis` is the long form, which also says what is unlikely to be meant.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from .dataset import SegmentationDataset, evenly, note_errors
from .decoding import exif_orientation
from .labels import Labels
from .masks import palette_of


logger = logging.getLogger(__name__)


NUMBERED_ANEW = (
    "so that numbers are no class ids; save the masks with one channel of class ids, or as RGB with the colours of the "
    "classes in classes.json"
)


class Checked(NamedTuple):
    """What there is to say about one sample.

    Args:
        error: what is wrong with it, or None.
        counts: (num_ids,) pixels of each train id.
        values: raw ids in the mask; empty if it holds colours.
        is_grey_rgb: whether it holds ids, written three times.
        shown: the colour in the mask's palette of each value in it; empty without a palette.
        is_turned: whether EXIF turns the image but not the mask, and no size shows whether that is right.
    """

    error: str | None
    counts: np.ndarray
    values: set[int] = frozenset()
    is_grey_rgb: bool = False
    shown: dict[int, tuple[int, ...]] = {}
    is_turned: bool = False


def mask_values(dataset: SegmentationDataset, max_samples: int) -> set[int]:
    """Raw ids in the masks, without those of colours; masks that cannot be read are left to `check_data`."""

    def values(index: int) -> list[int]:
        try:
            mask = dataset.labels.ids_or_colors(dataset.read_mask(index))
        except ValueError:
            return []
        return np.unique(mask).tolist() if mask.ndim == 2 else []

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return set().union(*pool.map(values, evenly(len(dataset), max_samples)))


def masks_of_255(labels: Labels, values: list[set[int]]) -> int:
    """How many masks of two classes hold 0 and 255 only, if 255 is ignored and none has it beside the second class."""
    with_255 = [mask for mask in values if 255 in mask]
    is_odd = labels.num_ids == 2 and labels.mapping[255] == labels.ignore_index and all(m == {0, 255} for m in with_255)
    return len(with_255) if is_odd else 0


def shown_colors(file, mask: np.ndarray) -> dict[int, tuple[int, ...]]:
    """The colour in the mask's palette of each value in it; empty without a palette."""
    palette = palette_of(file) if mask.ndim == 2 else None
    if palette is None:
        return {}
    return {raw: tuple(palette[raw].tolist()) for raw in np.unique(mask).tolist() if raw < len(palette)}


def numbered_anew(masks: Iterable[dict[int, tuple[int, ...]]]) -> str | None:
    """What shows that each mask's palette has numbers of its own, as a program gives them that makes files small.

    One colour has two numbers then; or greys, which were the ids, have one number in one mask and another elsewhere.

    Args:
        masks: the `shown_colors` of each.
    """
    numbers, greys = {}, {}
    for shown in masks:
        counts = Counter(shown.values())
        is_grey = all(len(set(color)) == 1 for color in counts)
        for raw, color in shown.items():
            if counts[color] == 1 and (first := numbers.setdefault(color, raw)) != raw:
                return f"in their palettes the colour {color} has the number {first} in one and {raw} in another"
            if is_grey and (first := greys.setdefault(raw, color[0])) != color[0]:
                return f"in their palettes the number {raw} is the grey {first} in one and {color[0]} in another"
    return None


def palette_conflict(dataset: SegmentationDataset, index: int, shown: dict[int, tuple[int, ...]]) -> str | None:
    """What is wrong if a mask's palette shows colours of the classes, but of others than its ids are.

    So it is when a program made an indexed picture of a coloured one: it numbers the colours as it likes.
    """
    labels = dataset.labels
    meant = {raw: (labels.color_to_train or {}).get(color) for raw, color in shown.items()}
    if None in meant.values():  # other colours, which only make the ids visible
        return None
    different = [raw for raw in meant if meant[raw] != labels.mapping.get(raw)]
    if not different:
        return None
    raw, names = different[0], {**labels.id2label, labels.ignore_index: "ignored"}
    return (
        f"{dataset.names(index)[1]}: value {raw} is {names.get(labels.mapping.get(raw), 'no class')!r}, but its colour "
        f"in the palette, {shown[raw]}, is that of {names[meant[raw]]!r}; save the mask as RGB, or "
        "with one channel of class ids"
    )


def check_data(dataset: SegmentationDataset, *, split: str = "training", max_samples: int = 1000) -> None:
    """Reads the data once, in threads, and refuses what would spoil a run.

    Checks all samples if there are at most `max_samples`, else that many, evenly spaced. Warns about classes that no
    mask shows, and about 255 in masks of two classes if it may be meant as the second; says if masks are RGB pictures
    of grey ids.

    Raises:
        ValueError: naming the first ten bad files with their values and cures: images or masks that cannot be decoded,
            sizes that differ, ids or colours outside the contract; or if the data as a whole make no sense.
    """
    if len(dataset) == 0:
        raise ValueError(f"the {split} data are empty; check the folder or split")
    indices = evenly(len(dataset), max_samples)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        samples = pool.map(lambda index: _check_sample(dataset, index), indices)
        samples = list(tqdm(samples, f"Checking the {split} data", len(indices), leave=False, delay=2))
    errors = [sample.error for sample in samples if sample.error]
    if dataset.on_error == "skip" and len(errors) < len(indices):
        note_errors(dataset, errors)
    elif errors:
        more = f"\n... and {len(errors) - 10} more" if len(errors) > 10 else ""
        raise ValueError(
            f"{len(errors)} of {len(indices)} checked {split} samples are bad:\n- " + "\n- ".join(errors[:10]) + more
        )
    checked = f"{'all' if len(indices) == len(dataset) else 'the checked'} {len(indices)} {split} masks"
    _check_whole(dataset, [sample for sample in samples if not sample.error], checked)


def _check_sample(dataset: SegmentationDataset, index: int) -> Checked:
    labels = dataset.labels
    try:
        files = dataset.files(index)
        read_image, mask, name = dataset.open_raw(index, files)
        read_image()
        shown = shown_colors(files[1], mask)
        if conflict := palette_conflict(dataset, index, shown):
            raise ValueError(conflict)
        train = labels.map(mask, name)
    except ValueError as error:
        return Checked(str(error), np.zeros(labels.num_ids, np.int64))
    counts = np.bincount(train[train != labels.ignore_index].ravel(), minlength=labels.num_ids)
    ids = labels.ids_or_colors(mask)
    is_simple = ids.ndim == 2 and np.count_nonzero(counts) <= 2  # else there is nothing to say about its values
    values = set(np.unique(ids).tolist()) if is_simple else frozenset({-1})
    turned, mask_turned = map(exif_orientation, files)
    is_turned = turned != 1 and mask_turned == 1 and (turned <= 4 or mask.shape[0] == mask.shape[1])
    return Checked(None, counts, values, ids.ndim < mask.ndim, shown, is_turned)


def _check_whole(dataset: SegmentationDataset, samples: list[Checked], checked: str) -> None:
    """What the samples say together."""
    labels = dataset.labels
    if conflict := numbered_anew(sample.shown for sample in samples):
        raise ValueError(f"{checked}: {conflict}, {NUMBERED_ANEW}")
    counts = np.sum([sample.counts for sample in samples], axis=0)
    if turned := sum(sample.is_turned for sample in samples):
        logger.warning(
            "EXIF turns the images of %d of %s, and says nothing of the masks: look at some (segtx check); masks of "
            "pixels as they lie in the file have to be turned alike.",
            turned,
            checked,
        )
    if grey := sum(sample.is_grey_rgb for sample in samples):
        logger.info("%d of %s are RGB pictures with equal channels; they are read as class ids.", grey, checked)
    if counts.sum() == 0:
        raise ValueError(f"every pixel of {checked} is ignored; check ignore_index and ids in the class names file")
    ignores_255 = labels.mapping[255] == labels.ignore_index
    if ignores_255 and set().union(*(sample.values for sample in samples)) == {0, 255}:
        name = labels.id2label[labels.mapping[0]]
        raise ValueError(
            f"{checked} hold 0 and 255 only, but there are {labels.num_labels} classes and 255 means ignored, so that "
            f"only {name!r} could be learned; for two classes name two in classes.json (255 is then "
            'the second), else list it as a class ({"id": 255, "name": ...}) or save class ids'
        )
    if count := masks_of_255(labels, [sample.values for sample in samples]):
        logger.warning(
            "%d of %s hold 0 and 255 only, the others no 255, which is ignored. If it means %r there, write one value "
            "for it in all masks.",
            *(count, checked, labels.names[-1]),
        )
    if absent := [name for name, count in zip(labels.names, counts[-labels.num_labels :], strict=True) if count == 0]:
        names = "; ".join(absent[:20]) + ("; ..." if len(absent) > 20 else "")
        logger.warning("%d of %d classes are in none of %s: %s", len(absent), labels.num_labels, checked, names)
