"""The check before training: every file is read once, and what would spoil a run is refused."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm.auto import tqdm

from .dataset import SegmentationDataset, evenly, note_errors


logger = logging.getLogger(__name__)


def mask_values(dataset: SegmentationDataset, max_samples: int) -> set[int]:
    """Raw values of masks with one channel; unreadable ones are left to `check_data`."""

    def values(index: int) -> list[int]:
        try:
            mask = dataset.read_mask(index)
        except ValueError:
            return []
        return np.unique(mask).tolist() if mask.ndim == 2 else []

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return set().union(*pool.map(values, evenly(len(dataset), max_samples)))


def check_data(dataset: SegmentationDataset, *, split: str = "training", max_samples: int = 1000) -> None:
    """Reads the data once, in threads, and refuses what would spoil a run.

    Checks all samples if there are at most `max_samples`, else that many, evenly spaced. Warns about classes that no
    mask shows.

    Raises:
        ValueError: naming the first ten bad files with their values and cures: images or masks that cannot be decoded,
            sizes that differ, ids or colours outside the contract; or if the data as a whole make no sense.
    """
    labels = dataset.labels
    if len(dataset) == 0:
        raise ValueError(f"the {split} data are empty; check the folder or split")
    indices = evenly(len(dataset), max_samples)

    def read(index: int) -> tuple[str | None, np.ndarray, set[int]]:
        """Error or None, pixels of each train id, and 0 and 255 if the raw mask holds nothing else."""
        try:
            read_image, mask, name = dataset._open(index)
            read_image()
            train = labels.map(mask, name)
        except ValueError as error:
            return str(error), np.zeros(labels.num_ids, np.int64), set()
        counts = np.bincount(train[train != labels.ignore_index].ravel(), minlength=labels.num_ids)
        if mask.ndim == 2 and labels.ignore_index == 255 and counts[1:].sum() == 0 and mask.size:
            return None, counts, {int(mask.min()), int(mask.max())}
        return None, counts, {-1}

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        progress = tqdm(pool.map(read, indices), f"Checking the {split} data", len(indices), leave=False, delay=2)
        results = list(progress)
    errors = [error for error, _, _ in results if error]
    if dataset.on_error == "skip" and len(errors) < len(indices):
        note_errors(dataset, errors)
    elif errors:
        more = f"\n... and {len(errors) - 10} more" if len(errors) > 10 else ""
        raise ValueError(
            f"{len(errors)} of {len(indices)} checked {split} samples are bad:\n- " + "\n- ".join(errors[:10]) + more
        )
    counts = np.sum([counts for _, counts, _ in results], axis=0)
    checked = f"{'all' if len(indices) == len(dataset) else 'the checked'} {len(indices)} {split} masks"
    if set().union(*(values for _, _, values in results)) == {0, 255}:
        raise ValueError(
            f"{checked} hold 0 and 255 only, but there are {labels.num_labels} classes and 255 means ignored, so that "
            f"only {labels.names[0]!r} could be learned; for two classes name two in classes.json (255 is then "
            'the second), else list it as a class ({"id": 255, "name": ...}) or save class ids'
        )
    if counts.sum() == 0:
        raise ValueError(f"every pixel of {checked} is ignored; check ignore_index and ids in the class names file")
    if absent := [name for name, count in zip(labels.names, counts[-labels.num_labels :], strict=True) if count == 0]:
        names = "; ".join(absent[:20]) + ("; ..." if len(absent) > 20 else "")
        logger.warning("%d of %d classes are in none of %s: %s", len(absent), labels.num_labels, checked, names)
