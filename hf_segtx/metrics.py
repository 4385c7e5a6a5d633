"""Mean IoU as a streaming `evaluate` metric on a confusion matrix.

Keys and values are those of evaluate's `mean_iou` (which follows mmsegmentation), with Dice and the confusion matrix
beside them. The file stands alone, so it also works as a Space and as `evaluate.load("path/to/metrics.py",
num_labels=19)`.

Differs from evaluate's `mean_iou`:
- Maps are counted when they are added and never stored: memory is one integer matrix, whatever the number of images.
- With `torch.distributed` the matrices of all processes are added up in `compute`, and every process gets the result.
- Ids outside the classes raise an error instead of falling silently out of the histograms.

How it counts: label maps are smooth, so a map is first cut into runs of pixels with the same (truth, prediction) pair;
only the ends of the runs are looked at, whatever the integer type, and each adds its length to its cell. Maps like
noise, with short runs, are counted pixel by pixel.

Shapes: (H, W) label map, any size and any integer type; K classes; S >= K raw ids (rows and columns that are held).
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from numbers import Integral, Real

import datasets
import evaluate
import numpy as np
import torch


_DESCRIPTION = """
Intersection over union (IoU) of a class is the number of pixels that prediction and truth have in common, over the
number that either has; the mean goes over the classes that occur. Accuracy, Dice and the confusion matrix come with it.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: list of (H, W) maps of class ids, or one (B, H, W) array; numpy, torch or PIL; any integer type
    references: the true maps, of the same sizes
    num_labels (`int`): number of classes K
    ignore_index (`int`): value of the references, after `label_map` and `reduce_labels`, that is not counted (255)
    nan_to_num (`float`, *optional*): replaces the nan of classes that do not occur, after the means were taken
    label_map (`dict`, *optional*): raw id -> id, applied to the references only
    reduce_labels (`bool`): subtracts 1 from the references, 0 becomes 255 (ADE20K). Default: False

Returns:
    dict of `mean_iou`, `mean_accuracy`, `overall_accuracy`, `mean_dice` (float, [0, 1]), `per_category_iou`,
    `per_category_accuracy`, `per_category_dice` (float64 array (K,), nan for a class that does not occur) and
    `confusion_matrix` (int64 array (K, K) of pixels, rows truth, columns prediction)
"""

_CITATION = """
@article{everingham2015pascal,
  title = {The PASCAL Visual Object Classes Challenge: A Retrospective},
  author = {Everingham, Mark and Eslami, S. M. Ali and Van Gool, Luc and Williams, Christopher K. I. and Winn, John and
            Zisserman, Andrew},
  journal = {International Journal of Computer Vision},
  volume = {111},
  pages = {98--136},
  year = {2015}
}
"""

_BLOCK = 1 << 19  # pixels whose runs are searched at once on the CPU: stays in its caches
_NOISE_BLOCK = 1 << 16  # pixels counted one by one at once: 8 times as many bytes
_DEVICE_BLOCK = 1 << 24  # pixels at once on an accelerator: bounds the temporary memory
_ONES = np.ones(_NOISE_BLOCK, np.int64)  # the lengths of runs of one pixel
_SMALLEST_SIDE = 256  # the matrix holds every 8-bit raw id from the start
_LARGEST_KNOWN_SIDE = 16384  # classes and raw ids of a `label_map` that may be held: 2 GB
_LARGEST_SIDE = 4096  # and grows up to here (134 MB) for larger ids while `num_labels` is not known
_CLASS, _VOID, _UNKNOWN = 0, 1, 2  # what a raw reference id can be


class MeanIoU(evaluate.Metric):
    """Mean IoU, pixel accuracy and Dice of label maps.

    `num_labels` and the rest may also be given to `compute`, as with evaluate's `mean_iou`; given here, wrong ids are
    reported by the call that adds them. The matrix lies on the device of the first predictions.

    In a loop with several processes every process adds its own images and **all** of them call `compute`. Predictions
    that were gathered before give the same scores (only the counts of the matrix are multiplied by the number of
    processes). For Trainer see `compute_metrics`.

    Args:
        num_labels: number of classes K.
        ignore_index: value of the references that is not counted.
        nan_to_num, label_map, reduce_labels: see `compute`.
        kwargs: of `evaluate.Metric`.

    Raises:
        ValueError: for a setting of another type or out of its bounds.

    Example:
        >>> metric = MeanIoU(num_labels=3)
        >>> metric.add(prediction=np.array([[0, 1], [1, 1]]), reference=np.array([[0, 0], [1, 255]]))
        >>> metric.compute()["per_category_iou"]
        array([0.5, 0.5, nan])
    """

    def __init__(
        self,
        num_labels: int | None = None,
        ignore_index: int = 255,
        nan_to_num: float | None = None,
        label_map: dict[int, int] | None = None,
        reduce_labels: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self._defaults = {
            "num_labels": num_labels,
            "ignore_index": ignore_index,
            "nan_to_num": nan_to_num,
            "label_map": label_map,
            "reduce_labels": reduce_labels,
        }
        _check_settings(**self._defaults)
        self.reset()

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()}),
            reference_urls=["https://huggingface.co/spaces/evaluate-metric/mean_iou"],
        )

    def __len__(self) -> int:
        return self._number_of_maps

    def reset(self) -> None:
        """Forgets every map that was added; `compute` does it too."""
        self._counts = None  # (S * S,) int64: pixels by raw reference id and prediction
        self._outside = None  # (2, 2) int64: lowest and highest wrong reference and prediction outside of the matrix
        self._number_of_maps = 0
        self._side = _SMALLEST_SIDE  # S
        self._configure(self._defaults)

    def add(self, *, prediction=None, reference=None, **kwargs) -> None:
        """Counts one (H, W) map.

        Raises:
            ValueError: as `add_batch`.
        """
        self.add_batch(predictions=[prediction], references=[reference], **kwargs)

    def add_batch(self, *, predictions=None, references=None, **kwargs) -> None:
        """Counts a batch of maps, which may be of different sizes.

        Raises:
            ValueError: if numbers or sizes of the maps differ, if a map is not of integers, or (given `num_labels`) if
                a pixel that counts has an id outside [0, num_labels). The maps before the wrong one have been counted.
                On an accelerator it is `compute` that raises for an id: `add` does not wait for what is computed there.
        """
        if kwargs:
            raise ValueError(f"unknown inputs {sorted(kwargs)}; the inputs are predictions and references")
        if predictions is None or references is None:
            raise ValueError("predictions and references must both be given")
        if hasattr(predictions, "shape") and hasattr(references, "shape"):
            predictions, references = [predictions], [references]  # two arrays are counted as one map
        predictions, references = list(predictions), list(references)
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions but {len(references)} references; give one for each")
        for prediction, reference in zip(predictions, references, strict=True):
            prediction, reference = as_label_array(prediction, "prediction"), as_label_array(reference, "reference")
            if prediction.shape != reference.shape:
                raise ValueError(
                    f"prediction of shape {tuple(prediction.shape)} for a reference of shape {tuple(reference.shape)}; "
                    "make it at the reference's size (`target_sizes` of post_process_semantic_segmentation)"
                )
            self._count(prediction, reference)
            self._number_of_maps += 1 if prediction.ndim < 3 else len(prediction)

    def compute(self, *, predictions=None, references=None, **settings) -> dict:
        """Scores of all maps since the last `compute`, in all processes.

        Raises:
            ValueError: if nothing was added, `num_labels` was never given, or a pixel that counts has an id outside
                [0, num_labels).
        """
        unknown = settings.keys() - self._defaults.keys()
        if unknown:
            raise ValueError(f"unknown arguments {sorted(unknown)}; `compute` knows {sorted(self._defaults)}")
        settings = self._defaults | {name: value for name, value in settings.items() if value is not None}
        if settings["num_labels"] is None:
            raise ValueError("num_labels is not known; give it to `MeanIoU(num_labels=...)` or to `compute`")
        if settings != self._defaults:
            _check_settings(**settings)
        else:
            settings = self._defaults  # 3.0 is equal to 3, but no index
        processes = torch.distributed.get_world_size() if is_distributed() else 1
        if processes == 1 and self.num_process > 1:
            raise ValueError(f"num_process is {self.num_process}, but torch.distributed is not initialised to add them")
        try:
            if predictions is not None or references is not None:
                self._configure(settings)
                self.add_batch(predictions=predictions, references=references)
            if processes == 1 and self._counts is None:
                raise ValueError("nothing to compute; call `add` or `add_batch` before")
            return _scores(self._sum_over_processes() if processes > 1 else self._matrix(), **settings)
        finally:
            self.reset()

    def compute_metrics(self, evaluation, compute_result: bool = True) -> dict[str, float]:
        """For `Trainer(compute_metrics=...)`, with `batch_eval_metrics=True` (else all maps are held).

        `preprocess_logits_for_metrics` must turn logits into label maps. Trainer has gathered the batch of all
        processes already (padded with -100 where sizes differ), so they are not added up again.

        Returns: the four means, when `compute_result`.
        """
        references = as_label_array(evaluation.label_ids, "reference")
        padding = references == -100
        if padding.any():
            references = references.clone() if isinstance(references, torch.Tensor) else references.copy()
            references[padding] = self._defaults["ignore_index"]
        self.add_batch(predictions=evaluation.predictions, references=references)
        if not compute_result:
            return {}
        scores = _scores(self._matrix(), **self._defaults)
        self.reset()
        return {name: float(value) for name, value in scores.items() if np.ndim(value) == 0}

    def _matrix(self) -> np.ndarray:
        """(S, S) counts of this process."""
        self._refuse_outside()
        return self._counts.cpu().numpy().reshape(self._side, self._side)

    def _configure(self, settings: dict) -> None:
        """Sets what the ids mean while maps are counted, and makes room for them."""
        self._settings = settings
        ids = [settings["num_labels"] or 0, *map(int, settings["label_map"] or ())]
        self._set_side(max(self._side, max(ids) + 1))

    def _set_side(self, side: int) -> None:
        """Enlarges the matrix to (S, S) and makes the table of what each raw reference id is."""
        settings = self._settings
        if self._counts is not None:
            self._counts = _padded(self._counts, side)
        self._side = side
        self._is_identity = settings["num_labels"] is None or not (settings["label_map"] or settings["reduce_labels"])
        self._kinds = np.full(side + 2, _UNKNOWN, np.int8)  # two more for ids above and below the matrix
        self._kinds[:side] = _CLASS if settings["num_labels"] is None else _kinds_of_raw_ids(side, **settings)[0]

    @torch.inference_mode(False)  # a matrix made in inference mode could not be updated outside of it
    def _count(self, prediction, reference) -> None:
        """Adds a pair of maps of equal shape to the matrix."""
        device = prediction.device if isinstance(prediction, torch.Tensor) else torch.device("cpu")
        if self._counts is None:
            self._counts = torch.zeros(self._side**2, dtype=torch.int64, device=device)
        if device.type == "cpu":
            prediction = np.asarray(prediction)
            reference = np.asarray(reference.cpu() if isinstance(reference, torch.Tensor) else reference)
        else:
            reference = torch.as_tensor(reference).to(device, non_blocking=True)
        prediction, reference = prediction.reshape(-1), reference.reshape(-1)
        if device.type != "cpu" and self._settings["num_labels"] is not None:
            self._count_without_waiting(prediction, reference)
            return
        for ids, truth, lengths in (_runs if device.type == "cpu" else _pixels)(prediction, reference):
            inside = self._check(ids, truth)
            if inside is not None:
                ids, truth, lengths = ids[inside], truth[inside], lengths[inside]
            truth *= self._side
            truth += ids
            cells, lengths = (torch.as_tensor(x, device=self._counts.device) for x in (truth, lengths))
            self._counts.scatter_add_(0, cells, lengths)

    def _count_without_waiting(self, prediction: torch.Tensor, reference: torch.Tensor) -> None:
        """The same on an accelerator, which would have to finish all its work before it could be asked about ids.

        So ids that are no class are refused by `compute`: those inside of the matrix are found there, of the others
        the lowest and highest are kept. Shape: prediction, reference: (N,)
        """
        side, ignore_index = self._side, self._settings["ignore_index"]
        kinds = torch.as_tensor(self._kinds).to(reference.device, non_blocking=True)
        if self._outside is None:
            self._outside = torch.zeros(2, 2, dtype=torch.int64, device=reference.device)
        for ids, truth, _ in _pixels(prediction, reference):
            is_void = kinds[truth.clip(-1, side)] == _VOID
            if not 0 <= ignore_index < side:
                is_void |= truth == ignore_index
            outside = [(values < 0) | (values >= side) for values in (truth, ids)]
            inside = ~(outside[0] | outside[1])
            self._counts.scatter_add_(0, (truth * side + ids).where(inside, 0), inside.long())
            wrong = [values.where(is_outside & ~is_void, 0) for values, is_outside in zip((truth, ids), outside)]
            lowest, highest = (torch.stack([bound(values) for values in wrong]) for bound in (torch.amin, torch.amax))
            self._outside = torch.stack(
                [torch.minimum(self._outside[:, 0], lowest), torch.maximum(self._outside[:, 1], highest)], dim=1
            )

    def _refuse_outside(self) -> None:
        """Raises for what `_count_without_waiting` kept."""
        if self._outside is not None:
            for what, (lowest, highest) in zip(("reference", "prediction"), self._outside.tolist()):
                if lowest < 0 or highest > 0:
                    _raise_for_id(highest or lowest, what, **self._settings)

    def _check(self, ids, truth):
        """Raises for ids that are no class; returns which pixels lie inside the matrix, None for all.

        Before `num_labels` is known, the matrix grows instead. Void pixels may lie outside.
        """
        num_labels, ignore_index = self._settings["num_labels"], self._settings["ignore_index"]
        lowest_id, highest_id, lowest_truth, highest_truth = _extremes(ids, truth)
        bound = num_labels or self._side
        wrong_ids = lowest_id < 0 or highest_id >= bound
        if not wrong_ids and lowest_truth >= 0 and highest_truth < bound and self._is_identity:
            return None
        kinds = self._kinds if isinstance(truth, np.ndarray) else torch.as_tensor(self._kinds, device=truth.device)
        kinds = kinds[truth.clip(-1, self._side)]  # the last two entries stand for "above" and "below" (-1)
        if not 0 <= ignore_index < self._side:
            kinds[truth == ignore_index] = _VOID
        unknown = kinds == _UNKNOWN
        if unknown.any():
            self._grow_or_raise(truth[unknown], "reference")
            return self._check(ids, truth)
        if wrong_ids:
            outside = ((ids < 0) | (ids >= bound)) & (kinds != _VOID)
            if outside.any():
                self._grow_or_raise(ids[outside], "prediction")
                return self._check(ids, truth)
        if min(lowest_id, lowest_truth) >= 0 and max(highest_id, highest_truth) < self._side:
            return None
        return (ids >= 0) & (ids < self._side) & (truth >= 0) & (truth < self._side)

    def _grow_or_raise(self, values, what: str) -> None:
        """Makes room for raw ids beyond the matrix, or explains why they are wrong."""
        lowest, highest = int(values.min()), int(values.max())
        num_labels = self._settings["num_labels"]
        if num_labels is not None:
            _raise_for_id(highest if highest >= num_labels else lowest, what, **self._settings)
        if lowest < 0 or highest >= _LARGEST_SIDE:
            raise ValueError(
                f"{what} id {lowest if lowest < 0 else highest} is outside [0, {_LARGEST_SIDE}), all that is held "
                "before num_labels is known; give num_labels and ignore_index to `MeanIoU` itself"
            )
        self._set_side(1 << highest.bit_length())

    def _sum_over_processes(self) -> np.ndarray:
        """(S, S) counts of all processes; S is the largest of theirs."""
        self._refuse_outside()
        on_cpu = torch.distributed.get_backend() in ("gloo", "mpi")
        device = torch.device("cpu") if on_cpu else torch.accelerator.current_accelerator()
        side = torch.tensor(self._side, device=device)
        torch.distributed.all_reduce(side, torch.distributed.ReduceOp.MAX)
        if self._counts is None:  # this process got no image
            self._counts = torch.zeros(self._side**2, dtype=torch.int64)
        counts = _padded(self._counts.to(device), int(side))
        torch.distributed.all_reduce(counts)
        return counts.cpu().numpy().reshape(int(side), int(side))


def class_table(results: dict, names: list[str]) -> str:
    """The scores of every class as a Markdown table that is also readable as plain text.

    Args:
        results: what `MeanIoU.compute` returned.
        names: K class names.

    Returns: a row per class with IoU, accuracy, Dice and share of the true pixels in per cent ("-" for what is not
        defined), their means, and the names of classes that are in no reference.
    """
    if len(names) != len(results["per_category_iou"]):
        raise ValueError(f"{len(names)} names for {len(results['per_category_iou'])} classes; give one name each")
    pixels = np.asarray(results["confusion_matrix"]).sum(axis=1)
    columns = [results[f"per_category_{score}"] for score in ("iou", "accuracy", "dice")]
    columns.append(pixels / max(pixels.sum(), 1))
    rows = [("class", "IoU %", "accuracy %", "Dice %", "pixels %")]
    rows += [(name, *map(per_cent, scores)) for name, *scores in zip(names, *columns, strict=True)]
    rows += [("mean", *(per_cent(results[f"mean_{score}"]) for score in ("iou", "accuracy", "dice")), "")]
    rows += [("all pixels", "", per_cent(results["overall_accuracy"]), "", "")]
    table = markdown_table(rows)
    never = np.isnan(columns[0])
    false_alarm = (pixels == 0) & ~never
    for which, meaning in (
        (never, "neither in the references nor predicted, left out of the means"),
        (false_alarm, "in no reference but predicted, which makes their IoU 0 and lowers the mean"),
    ):
        if which.any():
            table += f"\n{meaning}: {', '.join(name for name, is_it in zip(names, which, strict=True) if is_it)}"
    return table


def markdown_table(rows: list[tuple[str, ...]]) -> str:
    """Rows of texts, the first one the head, as a table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [rows[0], ("-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])), *rows[1:]]
    cells = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in lines)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def per_cent(value: float) -> str:
    """Two digits, or "-" for nan."""
    return "-" if np.isnan(value) else f"{100 * value:.2f}"


def is_distributed() -> bool:
    """Whether this process is one of several."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _check_settings(*, num_labels, ignore_index, nan_to_num, label_map, reduce_labels) -> None:
    """Raises ValueError for what is of another type or out of its bounds; warns of an ignored class."""
    if num_labels is not None:
        _check_number("num_labels", num_labels, 1, _LARGEST_KNOWN_SIDE)
    _check_number("ignore_index", ignore_index, -(2**31), 2**31 - 1)
    if nan_to_num is not None and (isinstance(nan_to_num, bool) or not isinstance(nan_to_num, Real)):
        raise ValueError(f"nan_to_num is {nan_to_num!r}; give a number, or None to keep nan")
    if not isinstance(reduce_labels, bool | np.bool_):
        raise ValueError(f"reduce_labels is {reduce_labels!r}; give True or False")
    if not isinstance(label_map, Mapping | None):
        raise ValueError(f"label_map is {label_map!r}; give a dict of raw ids and what they become, such as {{7: 0}}")
    for raw, new in (label_map or {}).items():
        is_text = isinstance(raw, str) and raw.removeprefix("-").isdecimal()  # as keys are in JSON
        _check_number("label_map: the raw id", int(raw) if is_text else raw, -(2**31), _LARGEST_KNOWN_SIDE - 1)
        _check_number(f"label_map: the id of {raw}", new, -(2**31), 2**31 - 1)
    if num_labels is None:
        return
    if reduce_labels and num_labels > 255:
        raise ValueError(
            f"reduce_labels turns 0 and 255 into 255, which is a class, as num_labels is {num_labels}; it is for at "
            "most 255 classes: give label_map {0: ignore_index, 1: 0, 2: 1, ...} instead"
        )
    if 0 <= ignore_index < num_labels:
        warnings.warn(
            f"ignore_index {ignore_index} is also a class, as num_labels is {num_labels}: its pixels are left out, and "
            "with them the false alarms of the other classes, whose IoU turns into recall; use a value that is no "
            "class, such as 255",
            stacklevel=3,
        )


def _check_number(name: str, value, least: int, most: int) -> None:
    """Raises ValueError for what is no whole number or out of bounds."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}; give a whole number, {least} to {most}")


def as_label_array(label_map, what: str):
    """A torch tensor as it is, anything else (numpy, PIL, lists) as a numpy array; integers only."""
    array = label_map if isinstance(label_map, torch.Tensor) else np.asarray(label_map)
    if isinstance(array, torch.Tensor):
        is_integer = not (array.is_floating_point() or array.is_complex())
    else:
        is_integer = array.dtype.kind in "iub"
    if not is_integer:
        raise ValueError(f"{what} is of type {array.dtype}, not integer; give class ids, e.g. the logits' argmax")
    return array


def _runs(prediction: np.ndarray, reference: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Runs of pixels with equal (prediction, reference): their two ids and their lengths, three (R,) int64, in pieces.

    Shape: prediction, reference: (N,), any integer type
    """
    for start in range(0, len(prediction), _BLOCK):
        ids, truth = prediction[start : start + _BLOCK], reference[start : start + _BLOCK]
        is_end = np.ones(len(ids), bool)
        np.not_equal(ids[1:], ids[:-1], out=is_end[:-1])
        is_end[:-1] |= truth[1:] != truth[:-1]
        if 4 * np.count_nonzero(is_end) < len(ids):
            ends = np.flatnonzero(is_end)
            lengths = ends.copy()
            lengths[0] += 1
            lengths[1:] -= ends[:-1]
            yield ids[ends].astype(np.int64), truth[ends].astype(np.int64), lengths
        else:  # measured: finding so many runs costs more than it saves
            for noise in range(0, len(ids), _NOISE_BLOCK):
                piece = ids[noise : noise + _NOISE_BLOCK].astype(np.int64)
                yield piece, truth[noise : noise + _NOISE_BLOCK].astype(np.int64), _ONES[: len(piece)]


def _pixels(prediction: torch.Tensor, reference: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Like `_runs`, every pixel a run: on an accelerator atomic additions are cheaper than finding runs."""
    for start in range(0, len(prediction), _DEVICE_BLOCK):
        ids = prediction[start : start + _DEVICE_BLOCK].long()
        yield ids, reference[start : start + _DEVICE_BLOCK].to(torch.int64, copy=True), torch.ones_like(ids)


def _extremes(ids, truth) -> tuple[int, int, int, int]:
    """Lowest and highest id of both, with one synchronisation."""
    extremes = (ids.min(), ids.max(), truth.min(), truth.max())
    return tuple(extremes if isinstance(ids, np.ndarray) else torch.stack(extremes).tolist())


def _padded(counts: torch.Tensor, side: int) -> torch.Tensor:
    """A copy of the flat (s, s) counts with zeros up to (side, side)."""
    old = math.isqrt(len(counts))
    padded = counts.new_zeros(side, side)
    padded[:old, :old] = counts.view(old, old)
    return padded.flatten()


def _kinds_of_raw_ids(side: int, *, num_labels, ignore_index, label_map, reduce_labels, **_):
    """Kind and class of the raw reference ids 0 .. side-1, two (side,) integer arrays."""
    raw = np.arange(side)
    ids = raw.copy()
    for old, new in (label_map or {}).items():
        ids[raw == int(old)] = new
    if reduce_labels:
        ids = np.where((ids == 0) | (ids == 255), 255, ids - 1)
    kinds = np.where((ids >= 0) & (ids < num_labels), _CLASS, _UNKNOWN)
    kinds[ids == ignore_index] = _VOID
    return kinds, ids


def _raise_for_id(value: int, what: str, *, num_labels, ignore_index, reduce_labels, **_):
    cure = "has the model another number of classes?"
    if what == "reference":
        cure = f"only ignore_index {ignore_index} may lie outside"
        cure += " (reduce_labels turns 0 into 255)" if reduce_labels else "; is reduce_labels or a label_map missing?"
    raise ValueError(f"{what} id {value} is outside the classes [0, {num_labels}); {cure}")


def _scores(counts: np.ndarray, *, num_labels: int, nan_to_num: float | None, **settings) -> dict:
    """The result of `MeanIoU.compute` from counts (S, S) by raw reference id and prediction."""
    kinds, ids = _kinds_of_raw_ids(len(counts), num_labels=num_labels, **settings)
    unknown = np.flatnonzero((kinds == _UNKNOWN) & counts.any(axis=1))
    if len(unknown):
        _raise_for_id(int(unknown[-1]), "reference", num_labels=num_labels, **settings)
    counts, ids = counts[kinds == _CLASS], ids[kinds == _CLASS]
    wrong = np.flatnonzero(counts[:, num_labels:].any(axis=0))
    if len(wrong):
        _raise_for_id(int(wrong[-1]) + num_labels, "prediction", num_labels=num_labels, **settings)
    confusion = np.zeros((num_labels, num_labels), np.int64)
    columns = min(num_labels, counts.shape[1])
    for row, pixels in zip(ids, counts, strict=True):  # a label_map may send several raw ids to one class
        confusion[row, :columns] += pixels[:columns]

    hits, truth, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nanmean of nothing is nan, as it should be
        iou, accuracy, dice = hits / (truth + predicted - hits), hits / truth, 2 * hits / (truth + predicted)
        scores = {
            "mean_iou": np.nanmean(iou),
            "mean_accuracy": np.nanmean(accuracy),
            "overall_accuracy": hits.sum() / truth.sum(),
            "mean_dice": np.nanmean(dice),
            "per_category_iou": iou,
            "per_category_accuracy": accuracy,
            "per_category_dice": dice,
        }
    if nan_to_num is not None:
        scores = {name: np.nan_to_num(value, nan=nan_to_num) for name, value in scores.items()}
    return scores | {"confusion_matrix": confusion}
