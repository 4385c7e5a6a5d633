"""The detailed scores against slow loops from their definitions, and against `MeanIoU` where they must agree."""

import math

import numpy as np
import pytest
import torch
import torch.multiprocessing
from PIL import Image

from hf_segtx.error_analysis import (
    BoundaryIoU,
    DataFingerprint,
    ImageScores,
    SizeIoU,
    confusion_pairs,
    connected_runs,
    detail_table,
)
from hf_segtx.metrics import MeanIoU


CLASSES, VOID = 5, 255


def label_maps(sizes=((40, 61), (33, 20), (7, 9)), cell=6, seed=0):
    """Predictions and references of several sizes, of squares and single pixels, with void pixels in the references."""
    rng = np.random.default_rng(seed)
    predictions, references = [], []
    for height, width in sizes:
        small = rng.integers(0, CLASSES - 1, (math.ceil(height / cell), math.ceil(width / cell)))  # the last never true
        truth = small.repeat(cell, 0).repeat(cell, 1)[:height, :width]
        prediction = np.roll(truth, (1, 2), (0, 1))
        noise = rng.random(truth.shape) < 0.03
        prediction[noise] = rng.integers(0, CLASSES, noise.sum())
        truth[rng.random(truth.shape) < 0.05] = VOID
        predictions.append(prediction)
        references.append(truth)
    return predictions, references


def slow_erosion(mask, distance):
    """The mask's pixels whose square neighbourhood of (2 * distance + 1)^2 pixels lies in the mask and in the image."""
    eroded = np.zeros_like(mask)
    for y in range(distance, mask.shape[0] - distance):
        for x in range(distance, mask.shape[1] - distance):
            eroded[y, x] = mask[y - distance : y + distance + 1, x - distance : x + distance + 1].all()
    return eroded


def slow_objects(mask):
    """The sets of pixels of a mask that hang together over the eight neighbours, by flood fill."""
    left = set(zip(*np.nonzero(mask), strict=True))
    while left:
        pending, found = [left.pop()], set()
        while pending:
            y, x = pending.pop()
            found.add((y, x))
            neighbours = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= neighbours
            pending += neighbours
        yield found


def mean_of_defined(values):
    return np.mean([value for value in values if not math.isnan(value)])


@pytest.mark.parametrize("ratio", [0.01, 0.05, 0.2])  # 1 pixel, a few, and more than the smallest map holds
def test_boundary_iou_matches_definition(ratio):
    predictions, references = label_maps()
    hits, union = np.zeros(CLASSES), np.zeros(CLASSES)
    for prediction, truth in zip(predictions, references, strict=True):
        distance = max(1, round(ratio * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2)))
        for label in range(CLASSES):
            masks = [truth == label, (prediction == label) & (truth != VOID)]
            bands = [mask & ~slow_erosion(mask, distance) for mask in masks]
            hits[label] += (bands[0] & bands[1]).sum()
            union[label] += (bands[0] | bands[1]).sum()
    metric = BoundaryIoU(CLASSES, dilation_ratio=ratio)
    metric.add_batch(predictions=predictions, references=references)
    scores = metric.compute()
    assert np.array_equal(scores["per_category_boundary_iou"], hits / union)
    assert scores["mean_boundary_iou"] == pytest.approx(np.mean(hits / union), rel=1e-14)  # order of summation


def test_boundary_iou_of_a_wide_band_is_the_iou():
    predictions, references = label_maps()
    metric = BoundaryIoU(CLASSES, dilation_ratio=0.9)  # every pixel is that near to the edge of the image
    metric.add_batch(predictions=predictions, references=references)
    expected = MeanIoU(num_labels=CLASSES).compute(predictions=predictions, references=references)
    assert np.array_equal(metric.compute()["per_category_boundary_iou"], expected["per_category_iou"])


def test_size_iou_matches_definition(monkeypatch):
    monkeypatch.setattr("hf_segtx.error_analysis.SIZE_BOUNDS", (12, 60))  # so that small maps have all sizes
    predictions, references = label_maps()
    hits, truth_pixels, false_alarms, objects = np.zeros((4, 3, CLASSES))
    for prediction, truth in zip(predictions, references, strict=True):
        for label in range(CLASSES):
            for pixels in slow_objects(truth == label):
                size = (len(pixels) >= 12) + (len(pixels) >= 60)
                objects[size, label] += 1
                truth_pixels[size, label] += len(pixels)
                hits[size, label] += sum(prediction[place] == label for place in pixels)
            for pixels in slow_objects((prediction == label) & (truth != VOID)):
                size = (len(pixels) >= 12) + (len(pixels) >= 60)
                false_alarms[size, label] += sum(truth[place] != label for place in pixels)
    metric = SizeIoU(CLASSES)
    metric.add_batch(predictions=predictions, references=references)
    for scores, hit, true, wrong, number in zip(
        metric.compute().values(), hits, truth_pixels, false_alarms, objects, strict=True
    ):
        expected = [h / (t + w) if t else math.nan for h, t, w in zip(hit, true, wrong, strict=True)]
        assert np.array_equal(scores["per_category_iou"], expected, equal_nan=True)
        assert scores["mean_iou"] == pytest.approx(mean_of_defined(expected), rel=1e-14)  # order of summation
        assert scores["objects"] == number.sum()
    assert np.isnan(expected[-1]) and false_alarms[:, -1].any()  # predicted only: in no mean
    matrix = MeanIoU(num_labels=CLASSES).compute(predictions=predictions, references=references)["confusion_matrix"]
    assert np.array_equal(hits.sum(0), matrix.diagonal())  # the three sizes add up to the whole
    assert np.array_equal(truth_pixels.sum(0), matrix.sum(1))
    assert np.array_equal(false_alarms.sum(0), matrix.sum(0) - matrix.diagonal())


@pytest.mark.parametrize(
    "pixels, size",
    [(1023, "small"), (1024, "medium"), (9215, "medium"), (9216, "large")],  # COCO: small < 32^2 <= medium < 96^2
)
def test_size_bounds_are_those_of_coco(pixels, size):
    """One object of a known number of pixels: full rows and a part of one; exactly one size has it."""
    truth = np.zeros((130, 130), np.uint8)
    rows, rest = divmod(pixels, 96)
    truth[:rows, :96] = 1
    truth[rows, :rest] = 1
    assert (truth == 1).sum() == pixels
    metric = SizeIoU(2, ignore_index=0)
    metric.add_batch(predictions=[truth], references=[truth])
    objects = {name: scores["objects"] for name, scores in metric.compute().items()}
    assert objects == {name: int(name == size) for name in ("small", "medium", "large")}


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2), (30, 41)])
@pytest.mark.parametrize("values", [1, 2, 4])
def test_connected_runs_match_flood_fill(shape, values):
    label_map = np.random.default_rng(values).integers(0, values, shape, dtype=np.uint8)
    starts, lengths, roots = connected_runs(label_map)
    regions = {}
    for start, length, root in zip(starts.tolist(), lengths.tolist(), roots.tolist(), strict=True):
        regions.setdefault(root, set()).update(divmod(start + i, shape[1]) for i in range(length))
    expected = [frozenset(pixels) for value in range(values) for pixels in slow_objects(label_map == value)]
    assert {frozenset(pixels) for pixels in regions.values()} == set(expected)
    assert all(roots[root] == root for root in regions)


def test_connected_runs_of_a_spiral():
    """One long thin region: the deepest tree for the union-find."""
    side = 65
    label_map = np.zeros((side, side), np.uint8)
    y, x, dy, dx = 0, 0, 0, 1
    for length in [side, *(n for n in range(side - 1, 0, -2) for _ in range(2))]:
        for _ in range(length):
            label_map[y, x] = 1
            ahead = y + 2 * dy, x + 2 * dx
            blocked = not (0 <= y + dy < side and 0 <= x + dx < side)
            blocked |= 0 <= ahead[0] < side and 0 <= ahead[1] < side and label_map[ahead] == 1
            if blocked:
                break
            y, x = y + dy, x + dx
        dy, dx = dx, -dy
    starts, lengths, roots = connected_runs(label_map)
    inside = label_map.ravel()[starts] == 1
    assert len(set(roots[inside])) == 1 and lengths[inside].sum() == label_map.sum() > side * side // 3


def test_image_scores_match_mean_iou_of_each_image():
    predictions, references = label_maps()
    references.append(np.full((4, 4), VOID))
    predictions.append(np.zeros((4, 4), int))
    metric = ImageScores(CLASSES)
    metric.add_batch(predictions=predictions, references=references)
    scores = metric.compute()
    expected = [
        MeanIoU(num_labels=CLASSES).compute(predictions=[prediction], references=[reference])["mean_iou"]
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    np.testing.assert_allclose(scores["image_iou"], expected, rtol=1e-14)  # order of summation
    assert math.isnan(scores["image_iou"][-1])
    assert scores["mean_image_iou"] == pytest.approx(mean_of_defined(expected), rel=1e-14)


def test_interval_matches_drawing_images_one_by_one():
    predictions, references = label_maps(sizes=[(12, 15)] * 7)
    metric = ImageScores(CLASSES, resamples=40, confidence=0.8, seed=3)
    metric.add_batch(predictions=predictions, references=references)
    draws = []
    for drawn in np.random.default_rng(3).integers(0, 7, (40, 7)):
        chosen = [[maps[i] for i in drawn] for maps in (predictions, references)]
        draws.append(MeanIoU(num_labels=CLASSES).compute(predictions=chosen[0], references=chosen[1])["mean_iou"])
    low, high = metric.compute()["mean_iou_interval"]
    assert (low, high) == pytest.approx(tuple(np.quantile(draws, (0.1, 0.9))), rel=1e-12)  # order of summation


def test_interval_covers_the_truth_as_often_as_it_says():
    """Many small data sets of images whose mean IoU is known: accuracies drawn from a known distribution."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        metric = ImageScores(2, resamples=300)
        right = rng.integers(20, 81, 40)  # of 100 pixels, in one class; the other class never occurs in the truth
        predictions = [np.concatenate([np.zeros(n, int), np.ones(100 - n, int)])[None] for n in right]
        metric.add_batch(predictions=predictions, references=[np.zeros((1, 100), int)] * 40)
        low, high = metric.compute()["mean_iou_interval"]
        covered += low <= 0.25 <= high  # IoU of class 0 is 1/2 in the mean, that of class 1 is 0
    # nominal 95 %; the percentile bootstrap of 40 images is slightly too narrow, and 200 trials scatter by 1.5 %
    assert 0.89 <= covered / 200 <= 0.99


def test_fingerprint_tells_data_apart():
    _, references = label_maps()
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (3, *reference.shape), dtype=np.uint8) for reference in references]

    def fingerprint(images, maps):
        metric = DataFingerprint()
        metric.add_batch(images=images, references=maps)
        return metric.compute()

    original = fingerprint(images, references)
    assert len(original) == 16
    small = [np.arange(36, dtype=np.uint8).reshape(3, 3, 4)], [np.arange(12).reshape(3, 4)]
    assert fingerprint(*small) == "dbc65b116b440234"  # must never change: it stands on cards
    assert original == fingerprint(images[::-1], references[::-1])
    assert original == fingerprint([torch.from_numpy(x) for x in images], references)
    assert original == fingerprint(images, [torch.from_numpy(x.astype(np.uint8)) for x in references])
    assert original == fingerprint(images, [x.T for x in [y.T.copy() for y in references]])  # other strides
    changed, other = [x.copy() for x in references], [x.copy() for x in images]
    changed[1][3, 4] += 1
    other[2][1, 3, 4] += 1
    others = [(images, changed), (other, references), (images[:2], references[:2])]
    others += [(images + images[:1], references + references[:1]), (images[1:] + images[:1], references)]
    others += [(images, [x.reshape(1, -1) for x in references])]
    assert len({original, *(fingerprint(*each) for each in others)}) == 7


def test_confusion_pairs_match_sorting_by_hand():
    matrix = np.array([[50, 7, 0], [9, 20, 2], [0, 0, 0]])
    assert confusion_pairs(matrix, ["sky", "road", "car"], 2) == [
        {"truth": "road", "prediction": "sky", "pixels": 9, "share_of_class": 9 / 31, "share_of_errors": 0.5},
        {"truth": "sky", "prediction": "road", "pixels": 7, "share_of_class": 7 / 57, "share_of_errors": 7 / 18},
    ]
    assert len(confusion_pairs(matrix, ["sky", "road", "car"])) == 3  # those that never happen are left out
    assert confusion_pairs(np.diag([1, 2]), ["sky", "road"]) == []


def test_detail_table():
    predictions, references = label_maps()
    boundary, sizes = BoundaryIoU(CLASSES), SizeIoU(CLASSES)
    for metric in (boundary, sizes):
        metric.add_batch(predictions=predictions, references=references)
    table = detail_table(boundary.compute(), sizes.compute(), ["sky", "road", "car", "bus", "pole"]).splitlines()
    assert [cell.strip() for cell in table[0].split("|")[1:-1]] == [
        "class", "boundary IoU %", "small IoU %", "medium IoU %", "large IoU %",
    ]  # fmt: skip
    assert table[-1].startswith("| objects ") and table[-2].startswith("| mean ") and len(table) == 2 + CLASSES + 2
    assert table[6].replace(" ", "").startswith("|pole|0.00|-|")


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "int64", "torch", "PIL", "transposed", "mirrored"])
def test_every_container_counts_the_same(kind):
    predictions, references = label_maps()
    convert = {
        "torch": torch.from_numpy,
        "PIL": lambda x: Image.fromarray(x.astype(np.uint8)),
        "transposed": lambda x: x.T.copy().T,
        "mirrored": lambda x: x[:, ::-1].copy()[:, ::-1],
    }.get(kind, lambda x: x.astype(kind))
    for make in (BoundaryIoU, SizeIoU, ImageScores):
        results = []
        for change in (lambda x: x, convert):
            metric = make(CLASSES)
            metric.add_batch(predictions=list(map(change, predictions)), references=list(map(change, references)))
            results.append(str(metric.compute()))
        assert results[0] == results[1]


@pytest.mark.parametrize("make", [BoundaryIoU, SizeIoU, ImageScores])
def test_more_classes_than_8_bits(make):
    """With 300 classes of which five are used, the scores are those of five classes."""
    predictions, references = label_maps()
    results = []
    for classes in (CLASSES, 300):
        metric = make(classes, ignore_index=-100)
        metric.add_batch(predictions=predictions, references=[np.where(x == VOID, -100, x) for x in references])
        results.append(metric.compute())
    for few, many in zip(*(result.values() for result in results), strict=True):
        if isinstance(few, dict):
            few, many = few["mean_iou"], many["mean_iou"]
        many = many[: len(few)] if np.ndim(few) else many
        np.testing.assert_allclose(few, many, rtol=1e-14)  # order of summation


@pytest.mark.parametrize("make", [BoundaryIoU, SizeIoU, ImageScores])
def test_wrong_input_is_named(make):
    good = np.zeros((4, 5), int)
    metric = make(3)
    for prediction, reference, message in (
        (good + 3, good, r"prediction id 3 is outside the classes \[0, 3\)"),
        (good, good - 1, "reference id -1 is outside .* ignore_index is 255"),
        (good, good[:2], r"shape \(4, 5\) for a reference of shape \(2, 5\)"),
        (good * 1.0, good, "float64, not integer"),
    ):
        with pytest.raises(ValueError, match=message):
            metric.add_batch(predictions=[prediction], references=[reference])
    with pytest.raises(ValueError, match="1 predictions but 2 references"):
        metric.add_batch(predictions=[good], references=[good, good])
    with pytest.raises(ValueError, match="num_labels is 1.*sigmoid"):
        make(1)
    metric.add_batch(predictions=[good + 77], references=[np.full((4, 5), 255)])  # under void anything may stand


def test_settings_out_of_bounds_are_named():
    with pytest.raises(ValueError, match=r"dilation_ratio 2 .*\(0, 1\)"):
        BoundaryIoU(3, dilation_ratio=2)
    with pytest.raises(ValueError, match="nothing to compute"):
        ImageScores(3).compute()


def _score_share(rank, store, path):
    """One of two processes; the data set has three images, so the second has one fewer."""
    torch.set_num_threads(1)  # OpenMP's threads do not survive the fork
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    predictions, references = label_maps()
    results = []
    for make in (BoundaryIoU, SizeIoU, ImageScores):
        metric = make(CLASSES)
        metric.add_batch(predictions=predictions[rank::2], references=references[rank::2])
        results.append(metric.compute())
    metric = DataFingerprint()
    metric.add_batch(images=predictions[rank::2], references=references[rank::2])
    results.append(metric.compute())
    torch.save(results, f"{path}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_match_one(tmp_path):
    arguments = (tmp_path / "store", tmp_path)
    # fork: importing the libraries twice more would take ten seconds
    torch.multiprocessing.start_processes(_score_share, arguments, nprocs=2, start_method="fork")
    predictions, references = label_maps()
    expected = []
    for make in (BoundaryIoU, SizeIoU, ImageScores):
        metric = make(CLASSES)
        metric.add_batch(predictions=predictions, references=references)
        expected.append(metric.compute())
    metric = DataFingerprint()
    metric.add_batch(images=predictions, references=references)
    expected.append(metric.compute())
    for rank in range(2):
        assert str(torch.load(tmp_path / f"{rank}.pt", weights_only=False)) == str(expected)
