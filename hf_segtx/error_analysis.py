"""What a mean IoU hides: boundaries, sizes of objects, single images, chance, and which class is taken for which.

The scores are objects with `add_batch(predictions=, references=)` and `compute()`, as `MeanIoU`, so that one pass over
the data serves all of them: `evaluate(model, processor, dataset, extra_metrics=[BoundaryIoU(19), SizeIoU(19)])`. Under
`torch.distributed` every process adds its own images, all of them call `compute`, and each gets the scores of all
images. Void pixels belong to no class, neither in the truth nor in the prediction, and count nowhere.

Counting is NumPy on the CPU and takes a few milliseconds an image: one histogram of joint codes instead of a loop over
the classes, runs of equal pixels instead of pixels, windows put together from smaller ones.

Shapes: (H, W) label map of ids in [0, K], K classes and K for void; N images; R runs of equal pixels in a row.
"""

import hashlib
import math
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from .metrics import as_label_array, is_distributed, markdown_table, per_cent


SIZES = ("small", "medium", "large")
SIZE_BOUNDS = (32**2, 96**2)  # pixels: smaller is small, smaller is medium, the rest is large


class _ImageScore:
    """Takes label maps one by one; what a score adds is `_add` and `compute`."""

    def __init__(self, num_labels: int, ignore_index: int = 255):
        if num_labels < 2:
            raise ValueError(f"num_labels is {num_labels}; give the number of classes, 2 for a single logit (sigmoid)")
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.reset()

    def add_batch(self, *, predictions: Sequence, references: Sequence) -> None:
        """Counts label maps, which may be of different sizes; numpy, torch or PIL, any integer type.

        Raises:
            ValueError: if numbers or sizes of the maps differ, or a pixel that counts has an id that is no class.
        """
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions but {len(references)} references; give one for each")
        for prediction, reference in zip(predictions, references, strict=True):
            self._add(*self._as_ids(prediction, reference))

    def _as_ids(self, prediction, reference) -> tuple[np.ndarray, np.ndarray]:
        """Prediction and truth as (H, W) ids in [0, K] of the smallest type, void K in both."""
        prediction, reference = _as_tensor(prediction, "prediction"), _as_tensor(reference, "reference")
        if prediction.shape != reference.shape or reference.ndim != 2:
            raise ValueError(
                f"prediction of shape {tuple(prediction.shape)} for a reference of shape {tuple(reference.shape)}; "
                "give two (H, W) maps of one size"
            )
        reference = reference.to(prediction.device)
        void = reference == self.ignore_index
        maps = []
        for label_map, what in ((prediction, "prediction"), (reference, "reference")):
            lowest, highest = torch.stack(label_map.aminmax()).tolist()
            if lowest < 0 or highest >= self.num_labels:  # which void pixels may be
                outside = label_map[((label_map < 0) | (label_map >= self.num_labels)) & ~void]
                if len(outside):
                    raise ValueError(
                        f"{what} id {outside[0]} is outside the classes [0, {self.num_labels}), and ignore_index is "
                        f"{self.ignore_index}; give the number of classes of the data and their ignore_index"
                    )
            label_map = label_map.to(torch.uint8 if self.num_labels < 256 else torch.int32, copy=True)
            maps.append(label_map.masked_fill_(void, self.num_labels).cpu().numpy())
        return maps[0], maps[1]

    def _histogram(self, *ids: np.ndarray) -> np.ndarray:
        """How often each combination of ids occurs, without void: maps (H, W) -> (K,) or (K, K)."""
        size = self.num_labels + 1
        codes = ids[0].ravel()
        for more in ids[1:]:
            codes = codes.astype(np.int32) * size + more.ravel()
        # PyTorch's, which does not need a copy of 8 bytes a pixel
        counts = torch.bincount(torch.from_numpy(codes), minlength=size ** len(ids)).numpy()
        counts = counts.reshape((size,) * len(ids))
        return counts[(slice(self.num_labels),) * len(ids)]


def _as_tensor(label_map, what: str) -> torch.Tensor:
    array = as_label_array(label_map, what)
    if isinstance(array, torch.Tensor):
        return array
    is_wide = array.dtype.kind == "u" and array.itemsize > 1  # PyTorch computes with 8 bits of the unsigned types only
    # always a copy, as PyTorch takes neither read-only arrays (of PIL) nor negative strides
    return torch.from_numpy(array.astype(np.int64 if is_wide else array.dtype, order="C"))


def gathered(value) -> list:
    """The value of each process, in all processes; [value] in a single one."""
    if not is_distributed():
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def _ratios(hits: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """IoU from numbers of pixels, nan where there are none."""
    with np.errstate(invalid="ignore"):
        return hits / (truth + predicted - hits)


def _mean(values: np.ndarray, axis: int | None = None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is nan, as it should be
        return np.nanmean(values, axis=axis)


class BoundaryIoU(_ImageScore):
    """Boundary IoU of label maps (Cheng et al., CVPR 2021, arXiv 2103.16562, Eq. 3): errors near contours only.

    The IoU of two bands: pixels of the true, and pixels of the predicted mask of a class, each no farther than d pixels
    inside from its mask's own contour. As in the authors' code (bowenc0221/boundary-iou-api) distance is the larger of
    that in x and in y, d is `dilation_ratio` of the image's diagonal (at least 1 pixel), and the image's edge is a
    contour. Pixels are summed over all images before dividing, as for the IoU of semantic segmentation.

    Args:
        dilation_ratio: 0.02 in the paper.
    """

    def __init__(self, num_labels: int, ignore_index: int = 255, dilation_ratio: float = 0.02):
        if not 0 < dilation_ratio < 1:
            raise ValueError(f"dilation_ratio {dilation_ratio} is not a share of the diagonal in (0, 1), e.g. 0.02")
        self.dilation_ratio = dilation_ratio
        super().__init__(num_labels, ignore_index)

    def reset(self) -> None:
        """Forgets every map that was added; `compute` does it too."""
        self._counts = np.zeros((3, self.num_labels), np.int64)  # pixels of hits, truth, prediction

    def _add(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        distance = max(1, round(self.dilation_ratio * math.hypot(*truth.shape)))
        in_truth, in_prediction = _bands(truth, distance), _bands(prediction, distance)
        hits = in_truth & in_prediction & (truth == prediction)
        for counts, label_map, mask in zip(
            self._counts, (truth, truth, prediction), (hits, in_truth, in_prediction), strict=True
        ):
            counts += self._histogram(np.where(mask, label_map, self.num_labels))

    def compute(self) -> dict:
        """Scores of all maps since the last `compute`, in all processes.

        Returns:
            "mean_boundary_iou" (over the classes that occur) and "per_category_boundary_iou" (K,), nan for the others.
        """
        iou = _ratios(*sum(gathered(self._counts)))
        self.reset()
        return {"mean_boundary_iou": float(_mean(iou)), "per_category_boundary_iou": iou}


def _bands(label_map: np.ndarray, distance: int) -> np.ndarray:
    """(H, W) bool: whether another id, or the image's edge, is at most `distance` pixels away in x and in y.

    A square has one id only if each of its rows has, and its middle column has.
    """
    mixed_rows = _near_change(label_map[:, 1:] != label_map[:, :-1], distance, axis=1)
    changes = label_map[1:] != label_map[:-1]
    return _near_change(changes | mixed_rows[1:] | mixed_rows[:-1], distance, axis=0)


def _near_change(changes: np.ndarray, distance: int, axis: int) -> np.ndarray:
    """Whether a change between two pixels, or the end, is at most `distance` pixels away along the axis.

    Shape:
        changes: bool, n - 1 along the axis; returns: bool, n along the axis
    """
    beyond = [(0, 0), (0, 0)]
    beyond[axis] = (distance, distance)
    near = np.moveaxis(np.pad(changes, beyond, constant_values=True), axis, 0)  # whether one of the next `width` is one
    width = 1
    while width < 2 * distance:
        step = min(width, 2 * distance - width)
        near = near[:-step] | near[step:]
        width += step
    return np.moveaxis(near, 0, axis)


class SizeIoU(_ImageScore):
    """Mean IoU of small, medium and large objects, as Segmenter (arXiv 2105.05633) reports it in Table 4.

    The paper says neither where the sizes begin nor how it counts, so its numbers cannot be compared with these. Here
    an object is a connected region (8 neighbours) of one class in a label map; small are those of less than 32^2 pixels
    of the image, medium of less than 96^2, which are COCO's bounds. For a class and a size: the hits and misses are the
    pixels of true objects of that size; the false alarms are the pixels of predicted objects of that size where the
    truth is another class. So each pixel counts for one size, and the counts of the three sizes add up to those of the
    plain IoU. The mean goes over classes with true objects of the size.
    """

    def reset(self) -> None:
        """Forgets every map that was added; `compute` does it too."""
        # pixels of hits, of true objects and of false alarms, and number of true objects, by size and class
        self._counts = np.zeros((4, len(SIZES), self.num_labels), np.int64)

    def _add(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        true_sizes, number, area = self._sizes(truth)
        predicted_sizes, _, _ = self._sizes(prediction)
        hit = truth == prediction  # void too, which is no class and not counted
        self._counts[0] += self._by_size(true_sizes, np.where(hit, truth, self.num_labels).ravel())
        self._counts[1] += area
        self._counts[2] += self._by_size(predicted_sizes, np.where(hit, self.num_labels, prediction).ravel())
        self._counts[3] += number

    def _sizes(self, label_map: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(H * W,) the size of each pixel's object, and by size and class the numbers of objects and of pixels."""
        starts, lengths, roots = connected_runs(label_map)
        areas = np.bincount(roots, lengths, len(roots)).astype(np.int64)  # of an object at its root, else 0
        sizes = np.searchsorted(SIZE_BOUNDS, areas[roots], side="right").astype(np.uint8)
        ids = label_map.ravel()[starts]
        is_root = roots == np.arange(len(roots))
        number = self._by_size(sizes[is_root], ids[is_root])
        area = self._by_size(sizes, ids, lengths)
        return sizes.repeat(lengths), number, area

    def _by_size(self, sizes: np.ndarray, ids: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """(3, K) how many ids of each class there are in each size."""
        codes = torch.from_numpy(sizes.astype(np.int32) * (self.num_labels + 1) + ids)
        weights = None if weights is None else torch.from_numpy(weights)
        counts = torch.bincount(codes, weights, len(SIZES) * (self.num_labels + 1)).long().numpy()
        return counts.reshape(len(SIZES), -1)[:, : self.num_labels]

    def compute(self) -> dict:
        """Scores of all maps since the last `compute`, in all processes.

        Returns:
            by size ("small", "medium", "large"): "mean_iou", "objects" (their number in the truth) and
            "per_category_iou" (K,), nan for classes without true objects of the size.
        """
        hits, truth, false_alarms, objects = sum(gathered(self._counts))
        self.reset()
        iou = np.where(truth > 0, _ratios(hits, truth, hits + false_alarms), np.nan)
        return {
            size: {"mean_iou": float(_mean(row)), "objects": int(number.sum()), "per_category_iou": row}
            for size, row, number in zip(SIZES, iou, objects, strict=True)
        }


def connected_runs(label_map: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The connected regions (8 neighbours) of equal ids, as runs of equal pixels in a row.

    Shape:
        label_map: (H, W)
        returns: three (R,) arrays: position of the first pixel in the flattened map, number of pixels, and the run that
            stands for the region (the same for all of its runs, and itself one of them)
    """
    height, width = label_map.shape
    is_start = np.ones((height, width), bool)
    np.not_equal(label_map[:, 1:], label_map[:, :-1], out=is_start[:, 1:])
    is_start = is_start.ravel()
    starts = np.flatnonzero(is_start)
    lengths = np.diff(starts, append=height * width)
    ids = label_map.ravel()[starts]
    run_of_pixel = np.cumsum(is_start, dtype=np.int32) - 1

    # A run touches consecutive runs of the next row: those from its lower left to its lower right neighbour.
    upper = np.flatnonzero(starts < (height - 1) * width)
    column = starts[upper] % width
    below = starts[upper] - column + width
    first = run_of_pixel[below + np.maximum(column - 1, 0)]
    last = run_of_pixel[below + np.minimum(column + lengths[upper], width - 1)]
    touching = last - first + 1
    lower = np.arange(touching.sum()) + np.repeat(first - np.cumsum(touching) + touching, touching)
    upper = upper.repeat(touching)
    same = ids[upper] == ids[lower]
    upper, lower = upper[same], lower[same]

    # Union-find on all edges at once: each root hooks on to a smaller one, then every path is shortened to its root.
    roots = np.arange(len(starts))
    while len(upper):
        a, b = roots[upper], roots[lower]
        roots[np.maximum(a, b)] = np.minimum(a, b)
        while not np.array_equal(roots, shorter := roots[roots]):
            roots = shorter
        separate = roots[upper] != roots[lower]
        upper, lower = upper[separate], lower[separate]
    return starts, lengths, roots


class ImageScores(_ImageScore):
    """The mean IoU of every single image, and how certain the mean IoU of all of them is.

    The mean IoU of an image goes over the classes that its truth or its prediction has, as if it were the whole data
    set. The interval is that of the percentile bootstrap (Efron, 1979): N images are drawn from the N images with
    replacement, their pixels are summed and give a mean IoU, many times. It says what other images of the same kind
    could have given; if images resemble each other, as frames of a video, it is too narrow.

    Images are numbered in the order in which they are added; image j of process p of n is number p + j * n of the data
    set, as `hf_segtx.inference.evaluate` deals them out.

    Args:
        resamples: number of draws.
        confidence: share of the draws inside the interval.
        seed: of the draws.
    """

    def __init__(
        self,
        num_labels: int,
        ignore_index: int = 255,
        resamples: int = 1000,
        confidence: float = 0.95,
        seed: int = 0,
    ):
        self.resamples, self.confidence, self.seed = resamples, confidence, seed
        super().__init__(num_labels, ignore_index)

    def reset(self) -> None:
        """Forgets every map that was added; `compute` does it too."""
        self._images = []  # (2, K) an image: pixels of hits, and of truth or prediction

    def _add(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        confusion = self._histogram(truth, prediction)  # (K, K)
        hits = confusion.diagonal()
        union = confusion.sum(0) + confusion.sum(1) - hits
        self._images.append(np.stack([hits, union]).astype(np.int32))

    def compute(self) -> dict:
        """Scores of all maps since the last `compute`, in all processes.

        Returns:
            "image_iou" (N,), the mean IoU of each image, nan where all is void; their mean "mean_image_iou"; and
            "mean_iou_interval" (lowest, highest) of the mean IoU.

        Raises:
            ValueError: if no map was added.
        """
        shares = gathered(np.array(self._images).reshape(-1, 2, self.num_labels))
        self.reset()
        counts = np.zeros((sum(map(len, shares)), 2, self.num_labels), np.int32)
        if not len(counts):
            raise ValueError("nothing to compute; call `add_batch` before")
        for process, share in enumerate(shares):
            counts[process :: len(shares)] = share
        with np.errstate(invalid="ignore"):
            image_iou = _mean(counts[:, 0] / counts[:, 1], axis=1)
        draws = np.concatenate(list(self._draws(counts)))
        outside = (1 - self.confidence) / 2
        interval = np.nanquantile(draws, (outside, 1 - outside)) if np.isfinite(draws).any() else (math.nan, math.nan)
        return {
            "image_iou": image_iou,
            "mean_image_iou": float(_mean(image_iou)),
            "mean_iou_interval": (float(interval[0]), float(interval[1])),
        }

    def _draws(self, counts: np.ndarray) -> Iterator[np.ndarray]:
        """Mean IoU of the draws, a block of them at a time."""
        number = len(counts)
        rng = np.random.default_rng(self.seed)
        flat = counts.reshape(number, -1).astype(np.float64)  # sums of pixels stay exact
        block = max(1, 2**22 // number)  # 32 MB of random numbers
        for start in range(0, self.resamples, block):
            drawn = rng.integers(0, number, (min(block, self.resamples - start), number))
            codes = drawn + number * np.arange(len(drawn))[:, None]
            times = np.bincount(codes.ravel(), minlength=drawn.size).reshape(drawn.shape)
            hits, union = np.moveaxis((times @ flat).reshape(len(drawn), 2, -1), 1, 0)
            with np.errstate(invalid="ignore"):
                yield _mean(hits / union, axis=1)


class DataFingerprint:
    """A short text that tells data sets apart: a hash over the size and the pixels of every image and true label map.

    Does not depend on the order of the images, on where they are stored, on lossless file formats, or on the number of
    processes; a changed pixel, another mapping of the classes or a missing image changes it.
    """

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Forgets every image that was added; `compute` does it too."""
        self._sum = 0

    def add_batch(self, *, images: Sequence, references: Sequence) -> None:
        """Adds images, tensors or arrays (C, H, W), and their true label maps, (H, W) integers."""
        for image, reference in zip(images, references, strict=True):
            label_map = _as_tensor(reference, "reference").cpu().numpy().astype("<i2")
            digest = hashlib.blake2b(digest_size=8)
            for array in (np.asarray(image), label_map):
                digest.update(str(array.shape).encode())
                digest.update(np.ascontiguousarray(array))
            self._sum += int.from_bytes(digest.digest(), "little")

    def compute(self) -> str:
        """16 hexadecimal digits for all images since the last `compute`, in all processes."""
        total = sum(gathered(self._sum)) % 2**64
        self.reset()
        return f"{total:016x}"


def confusion_pairs(confusion_matrix: np.ndarray, names: Sequence[str], count: int = 10) -> list[dict]:
    """Which class is most often taken for which, by number of pixels.

    Args:
        confusion_matrix: (K, K) pixels, rows truth, columns prediction; of `MeanIoU.compute`.
        names: K class names.
        count: pairs at most.

    Returns: {"truth", "prediction", "pixels", "share_of_class", "share_of_errors"} a pair: the pixels as shares of all
        true pixels of the class and of all wrong pixels, [0, 1].
    """
    matrix = np.asarray(confusion_matrix)
    wrong = matrix * ~np.eye(len(matrix), dtype=bool)
    pairs = []
    for cell in np.argsort(-wrong, axis=None, kind="stable")[:count]:
        truth, prediction = divmod(int(cell), len(matrix))
        if pixels := int(wrong[truth, prediction]):
            pairs.append(
                {
                    "truth": names[truth],
                    "prediction": names[prediction],
                    "pixels": pixels,
                    "share_of_class": pixels / int(matrix[truth].sum()),
                    "share_of_errors": pixels / int(wrong.sum()),
                }
            )
    return pairs


def detail_table(boundary: dict, sizes: dict, names: Sequence[str]) -> str:
    """Boundary IoU and IoU by size of object of every class as a Markdown table, in per cent.

    Args:
        boundary: what `BoundaryIoU.compute` returned.
        sizes: what `SizeIoU.compute` returned.
        names: K class names.
    """
    columns = [boundary["per_category_boundary_iou"], *(scores["per_category_iou"] for scores in sizes.values())]
    means = [boundary["mean_boundary_iou"], *(scores["mean_iou"] for scores in sizes.values())]
    rows = [("class", "boundary IoU %", *(f"{size} IoU %" for size in sizes))]
    rows += [(name, *map(per_cent, scores)) for name, *scores in zip(names, *columns, strict=True)]
    rows += [("mean", *map(per_cent, means)), ("objects", "", *(str(scores["objects"]) for scores in sizes.values()))]
    return markdown_table(rows)
