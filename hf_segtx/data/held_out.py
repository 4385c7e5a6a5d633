"""Which images validate, if a data set has no validation part: at random, or with near duplicates kept together.

Neighbouring frames of a video, and copies of one picture, in both parts would make scores that are too good.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from .augmentation import to_array
from .dataset import SegmentationDataset
from .diagnosis import HASH_SIDE, fingerprint


SPLIT_SEED = 0  # the same images whatever the seed of the run
# Bits of 256 in which two images may differ and be kept together. Measured on CamVid's validation clip, of which every
# second frame is there: neighbours differ in 46 at most, frames four apart in 19 to 68; on its training images those 20
# and more apart in 71 and more. The smaller bounds are for data that all look alike.
NEAR = (60, 40, 18)


def split_rows(dataset: SegmentationDataset, share: float, keep_together: bool = False) -> tuple[list[int], list[int]]:
    """The rows that train, and about a `share` of all that validates, both in order and the same every time.

    Args:
        keep_together: look at every image and let near duplicates stay in one part. Where more than half of all images
            hang together, as in one video, the last ones by their order validate.

    Raises:
        ValueError: if no row would train.
    """
    count = len(dataset)
    held_out = max(1, round(share * count))
    if held_out >= count:
        raise ValueError(
            f"{count} samples cannot be split into training and validation with train_val_split {share}; give more, a "
            "smaller share, or validation_dir"
        )
    order = np.random.default_rng(SPLIT_SEED).permutation(count)
    if keep_together:
        groups = near_duplicates(dataset)
        if groups is None:
            order = np.arange(count)[::-1]
        else:  # whole groups, in the order of their first member, until there are enough
            members = [np.flatnonzero(groups == group) for group in dict.fromkeys(groups[order].tolist())]
            sizes = np.cumsum([len(rows) for rows in members])
            # That number of groups which comes nearest to the share, but leaves some for training.
            taken = 1 + int(np.abs(sizes[:-1] - held_out).argmin()) if len(members) > 1 else 0
            order, held_out = np.concatenate(members), int(sizes[taken - 1]) if taken else held_out
    return sorted(order[held_out:].tolist()), sorted(order[:held_out].tolist())


def near_duplicates(dataset: SegmentationDataset) -> np.ndarray | None:
    """A number for each row, the same for images that are linked by near duplicates; None if most images are.

    Images that cannot be read, or show nothing, stand alone.
    """
    with ThreadPoolExecutor() as pool:
        prints = list(pool.map(lambda row: _fingerprint(dataset, row), range(len(dataset))))
    rows = [row for row, bits in enumerate(prints) if bits is not None]
    if len(rows) < 2:
        return np.arange(len(prints))
    signs = np.stack([prints[row] for row in rows]).astype(np.float32) * 2 - 1
    for bound in NEAR:
        groups = np.arange(len(prints))
        for start in range(0, len(rows), 1024):
            agreement = signs[start : start + 1024] @ signs.T  # bits that agree minus bits that differ
            for first, second in zip(*np.nonzero(agreement >= HASH_SIDE**2 - 2 * bound)):
                one, other = groups[rows[start + first]], groups[rows[second]]
                if one != other:
                    groups[groups == max(one, other)] = min(one, other)
        if 2 * np.bincount(groups).max() <= len(prints):
            return groups
    return None


def _fingerprint(dataset: SegmentationDataset, row: int) -> np.ndarray | None:
    try:
        image = dataset[row]["image"]
    except ValueError:  # what is wrong with it, the check of the data says
        return None
    gray = image.convert("L") if isinstance(image, Image.Image) else to_array(image).astype(np.float32).mean(-1)
    return fingerprint(gray if isinstance(gray, Image.Image) else Image.fromarray(gray))
