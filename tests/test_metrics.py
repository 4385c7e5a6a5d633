"""The metric against a slow definition of mean IoU, the example that evaluate documents for `mean_iou`, and torch."""

import math
import pickle
import shutil
import warnings

import evaluate
import numpy as np
import pytest
import torch
import torch.multiprocessing
from transformers import EvalPrediction

from hf_segtx import metrics
from hf_segtx.metrics import MeanIoU, class_table


def slow_mean_iou(predictions, references, num_labels, ignore_index, reduce_labels=False, label_map=None):
    """The definition, class by class: intersection and union of the sets of pixels that count, nan for 0 / 0."""
    iou, accuracy, dice = [], [], []
    hits = pixels = 0
    pairs = []
    for prediction, reference in zip(predictions, references, strict=True):
        prediction, raw = (np.asarray(x).astype(int) for x in (prediction, reference))
        truth = raw.copy()
        for old, new in (label_map or {}).items():
            truth[raw == old] = new
        if reduce_labels:
            truth = np.where(np.isin(truth, (0, 255)), 255, truth - 1)
        pairs.append((prediction[truth != ignore_index], truth[truth != ignore_index]))
    for label in range(num_labels):
        both = sum(int(((p == label) & (t == label)).sum()) for p, t in pairs)
        either = sum(int(((p == label) | (t == label)).sum()) for p, t in pairs)
        true, predicted = (sum(int((pair[i] == label).sum()) for pair in pairs) for i in (1, 0))
        iou.append(both / either if either else math.nan)
        accuracy.append(both / true if true else math.nan)
        dice.append(2 * both / (true + predicted) if true + predicted else math.nan)
        hits, pixels = hits + both, pixels + true
    mean = lambda values: float(np.mean([v for v in values if not math.isnan(v)]))  # noqa: E731
    return {
        "mean_iou": mean(iou),
        "mean_accuracy": mean(accuracy),
        "overall_accuracy": hits / pixels,
        "mean_dice": mean(dice),
        "per_category_iou": iou,
        "per_category_accuracy": accuracy,
        "per_category_dice": dice,
    }


def assert_same_scores(results, expected):
    for name, value in expected.items():
        # both divide the same integers; only the order of summation of a mean may differ
        np.testing.assert_allclose(results[name], value, rtol=1e-14, err_msg=name)


def label_maps(num_labels, sizes=((5, 7), (16, 9), (40, 30)), cell=1, void=255, seed=0):
    """Predictions and references of several sizes with ids that repeat in squares of `cell` pixels, and void pixels."""
    rng = np.random.default_rng(seed)
    maps = [[], []]
    for height, width in sizes:
        shape = (math.ceil(height / cell), math.ceil(width / cell))
        truth = rng.integers(0, num_labels, shape)
        prediction = np.where(rng.random(shape) < 0.6, truth, rng.integers(0, num_labels, shape))
        truth[rng.random(shape) < 0.2] = void
        for collection, small in zip(maps, (prediction, truth), strict=True):
            collection.append(small.repeat(cell, 0).repeat(cell, 1)[:height, :width])
    return maps


@pytest.mark.parametrize("cell", [1, 6])  # noise is counted pixel by pixel, squares by runs
@pytest.mark.parametrize("num_labels", [1, 2, 11, 150, 301])
def test_matches_definition(num_labels, cell, monkeypatch):
    monkeypatch.setattr(metrics, "_BLOCK", 500)  # the last map is counted in several
    monkeypatch.setattr(metrics, "_NOISE_BLOCK", 200)
    void = 65535 if num_labels > 255 else 255
    predictions, references = label_maps(num_labels, cell=cell, void=void)
    metric = MeanIoU(num_labels=num_labels, ignore_index=void)
    for prediction, reference in zip(predictions, references, strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert len(metric) == 3
    results = metric.compute()
    assert_same_scores(results, slow_mean_iou(predictions, references, num_labels, void))
    assert results["confusion_matrix"].dtype == np.int64
    assert results["confusion_matrix"].sum() == sum(int((reference != void).sum()) for reference in references)
    truth, prediction = 0, num_labels - 1
    pairs = zip(predictions, references, strict=True)
    expected = sum(int(((p == prediction) & (r == truth)).sum()) for p, r in pairs)
    assert results["confusion_matrix"][truth, prediction] == expected  # rows are the truth


def test_matches_documented_example_of_evaluate():
    # The three pairs of maps and the result printed in the documentation of evaluate's `mean_iou`.
    predictions = [[[1, 2], [3, 4], [5, 255]], [[2, 7], [9, 2], [3, 6]], [[2, 2, 3], [8, 2, 4], [3, 255, 2]]]
    references = [[[0, 3], [5, 4], [6, 255]], [[1, 7], [9, 2], [3, 6]], [[1, 2, 2], [8, 2, 1], [3, 255, 1]]]
    results = MeanIoU().compute(
        predictions=[np.array(x) for x in predictions],
        references=[np.array(x) for x in references],
        num_labels=10,
        ignore_index=255,
        reduce_labels=False,
    )
    assert results["mean_iou"] == pytest.approx(0.4775, abs=1e-15)
    assert results["mean_accuracy"] == pytest.approx(0.5916666666666666, abs=1e-15)
    assert results["overall_accuracy"] == 10 / 19
    assert results["per_category_iou"].tolist() == [0, 0, 0.375, 0.4, 0.5, 0, 0.5, 1, 1, 1]


def test_matches_torch_one_hot_formulas():
    predictions, references = label_maps(6, sizes=[(50, 60)])
    prediction, reference = torch.tensor(predictions[0]), torch.tensor(references[0])
    valid = reference != 255
    one_hot = [torch.nn.functional.one_hot(x[valid], 6).double() for x in (prediction, reference)]
    hits = (one_hot[0] * one_hot[1]).sum(0)
    results = MeanIoU(num_labels=6).compute(predictions=predictions, references=references)
    np.testing.assert_allclose(results["per_category_iou"], hits / (one_hot[0] + one_hot[1]).clamp(max=1).sum(0))
    assert np.array_equal(results["confusion_matrix"], (one_hot[1].T @ one_hot[0]).numpy())


@pytest.mark.parametrize("numpy_type", ["uint8", "int16", "uint16", "int32", "uint32", "int64"])
def test_every_integer_type_and_container_counts_the_same(numpy_type):
    predictions, references = label_maps(7, sizes=[(12, 10)] * 3, cell=2)
    expected = slow_mean_iou(predictions, references, 7, 255)
    typed = [[x.astype(numpy_type) for x in predictions], [x.astype("uint8") for x in references]]
    tensors = [[torch.from_numpy(x) for x in maps] for maps in typed]
    inputs = [typed, tensors, [typed[0], tensors[1]], [tensors[0], typed[1]]]
    inputs += [[np.stack(typed[0]), np.stack(typed[1])], [tensors[0], np.stack(typed[1])]]  # arrays (B, H, W)
    inputs += [[[x[:, ::-1] for x in maps] for maps in typed]]  # not contiguous
    metric = MeanIoU(num_labels=7)
    for predictions, references in inputs:
        metric.add_batch(predictions=predictions, references=references)
        assert len(metric) == 3
        assert_same_scores(metric.compute(), expected)
    metric.add_batch(predictions=predictions[0], references=references[0])  # two arrays (H, W) are one map
    assert len(metric) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"num_labels": 5, "ignore_index": 255, "reduce_labels": True},
        {"num_labels": 6, "ignore_index": -100, "label_map": {255: -100}},
        {"num_labels": 6, "ignore_index": -100, "label_map": {255: 3}},
        {"num_labels": 6, "ignore_index": 255, "label_map": {1: 2, 2: 1, 5: 0}},
        {"num_labels": 6, "ignore_index": 255, "label_map": {300: 3, 4: 255, 5: 255}},
        {"num_labels": 9, "ignore_index": 255},
    ],
)
@pytest.mark.parametrize("given_to", ["constructor", "compute", "compute after adding", "compute after adding pixels"])
def test_settings_match_definition_wherever_they_are_given(settings, given_to, monkeypatch):
    if given_to == "compute after adding pixels":  # as on an accelerator
        monkeypatch.setattr(metrics, "_runs", lambda *maps: metrics._pixels(*map(torch.from_numpy, maps)))
    predictions, references = label_maps(6 - settings.get("reduce_labels", False))
    references = [np.where(x == 255, 255, x + settings.get("reduce_labels", False)) for x in references]
    references[0][0, :2] = 0, max(settings.get("label_map", [1]))
    inputs = {"predictions": predictions, "references": references}
    if given_to == "constructor":
        results = MeanIoU(**settings).compute(**inputs)
    elif given_to == "compute":
        results = MeanIoU().compute(**inputs, **settings)
    else:
        metric = MeanIoU()
        metric.add_batch(**inputs)
        results = metric.compute(**settings)
    assert_same_scores(results, slow_mean_iou(**inputs, **settings))


def test_ids_beyond_8_bits_before_num_labels_is_known():
    predictions, references = label_maps(700, cell=3)
    metric = MeanIoU()
    for prediction, reference in zip(predictions, references, strict=True):
        metric.add(prediction=prediction, reference=reference)
    expected = slow_mean_iou(predictions, references, 700, -100)
    assert len(metric._counts) == 1024**2  # memory: the next power of two, not more
    assert_same_scores(metric.compute(num_labels=700, ignore_index=-100), expected)
    for large in (4096, 5000):
        with pytest.raises(ValueError, match=rf"id {large} is outside \[0, 4096\).*give num_labels"):
            metric.add(prediction=np.array([[large]]), reference=np.array([[1]]))


@pytest.mark.parametrize("ignore_index", [-1, -100])
def test_negative_ignore_index_in_torch_labels(ignore_index):
    prediction, reference = torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1, ignore_index]])
    metric = MeanIoU(num_labels=2, ignore_index=ignore_index)
    results = metric.compute(predictions=[prediction], references=[reference])
    assert results["mean_iou"] == 1 and results["confusion_matrix"].tolist() == [[1, 0], [0, 1]]


def test_halves_add_up_and_compute_starts_afresh():
    predictions, references = label_maps(4)
    metric = MeanIoU(num_labels=4)
    metric.add_batch(predictions=predictions[:1], references=references[:1])
    metric = pickle.loads(pickle.dumps(metric))
    metric.add_batch(predictions=predictions[1:], references=references[1:])
    whole = metric.compute()
    assert_same_scores(whole, slow_mean_iou(predictions, references, 4, 255))
    assert len(metric) == 0
    with pytest.raises(ValueError, match="nothing to compute"):
        metric.compute()
    again = metric.compute(predictions=predictions, references=references)
    assert np.array_equal(again["confusion_matrix"], whole["confusion_matrix"])


def test_adding_in_inference_mode_and_outside():
    metric = MeanIoU(num_labels=2)
    with torch.inference_mode():
        metric.add(prediction=torch.zeros(2, 2).long(), reference=torch.zeros(2, 2).long())
    metric.add(prediction=torch.zeros(2, 2).long(), reference=torch.zeros(2, 2).long())
    assert metric.compute()["confusion_matrix"][0, 0] == 8


def test_absent_classes_and_all_void():
    reference, void = np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8)
    metric = MeanIoU(num_labels=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = metric.compute(predictions=[reference], references=[reference])
        assert results["mean_iou"] == 1 and np.isnan(results["per_category_iou"][1])
        results = metric.compute(predictions=[reference], references=[void])
        assert np.isnan(results["mean_iou"]) and np.isnan(results["overall_accuracy"])
        results = metric.compute(predictions=[reference], references=[reference], nan_to_num=0)
        assert results["mean_iou"] == 1 and results["per_category_iou"].tolist() == [1, 0]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ignore_index": 1000},
        {"ignore_index": -100},
        {"reduce_labels": True},
        {"label_map": {7: 2, 1: 255}, "ignore_index": -100},
    ],
)
def test_counting_without_waiting_gives_the_same(settings, monkeypatch):
    """As on an accelerator, here on the CPU."""
    generator = np.random.default_rng(0)
    ignored = 0 if "reduce_labels" in settings else settings.get("ignore_index", 255)
    raw = [1, 2, 3, 7 if "label_map" in settings else 1, 255 if "reduce_labels" in settings else ignored, ignored]
    references = [generator.choice(raw, (5, 6)) for _ in range(3)]
    predictions = [generator.integers(0, 4, (5, 6)) for _ in range(3)]
    predictions[0][references[0] == ignored] = 4000  # counts nowhere
    metric = MeanIoU(num_labels=4, **settings)
    if "label_map" in settings:
        predictions[0][references[0] == 1] = 5000  # as little: void by the map, where 1 is 255
        metric = MeanIoU(num_labels=4, ignore_index=255, label_map=settings["label_map"])
        references = [np.where(reference == ignored, 255, reference) for reference in references]
    expected = metric.compute(predictions=predictions, references=references)
    monkeypatch.setattr(metrics, "_DEVICE_BLOCK", 12)  # of 30 pixels

    def count(self, prediction, reference):
        if self._counts is None:
            self._counts = torch.zeros(self._side**2, dtype=torch.int64)
        self._count_without_waiting(*(torch.from_numpy(values).reshape(-1) for values in (prediction, reference)))

    monkeypatch.setattr(MeanIoU, "_count", count)
    for name, value in metric.compute(predictions=predictions, references=references).items():
        np.testing.assert_array_equal(value, expected[name])
    for values, number, what in (
        (predictions, 4, "prediction id 4"),
        (predictions, -1, "prediction id -1"),
        (predictions, 300, "prediction id 300"),
        (references, 5000, "reference id 5000"),
        (references, -7, "reference id -7"),
    ):
        wrong = [value.copy() for value in values]
        wrong[1][...] = number
        maps = {"predictions": predictions, "references": references}
        maps |= {"predictions": wrong} if values is predictions else {"references": wrong}
        with pytest.raises(ValueError, match=what):
            metric.compute(**maps)
    with pytest.raises(ValueError, match="prediction id 4000"):  # 255 is a class here
        MeanIoU(num_labels=4, label_map={255: 1}).compute(predictions=[np.array([4000])], references=[np.array([255])])
    many = MeanIoU(num_labels=300, ignore_index=-1).compute(
        predictions=[np.array([1, 299])], references=[np.array([299, 298])]
    )
    assert many["confusion_matrix"][[299, 298], [1, 299]].tolist() == [1, 1]


def test_on_an_accelerator_no_value_is_waited_for():
    """A tensor on the meta device has no values: whatever asks for one, or for the number of some, raises."""
    maps = torch.zeros(4, 5, dtype=torch.long, device="meta")
    metric = MeanIoU(num_labels=3)
    for _ in range(2):
        metric.add(prediction=maps, reference=maps)
    assert len(metric) == 2
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):  # so it would be seen
        metric.compute()


def test_wrong_input_is_named():
    good = np.zeros((2, 3), np.uint8)
    metric = MeanIoU(num_labels=3)
    cases = [
        (good + 3, good, r"prediction id 3 is outside the classes \[0, 3\); has the model another number of classes"),
        (good.astype(int) - 1, good, "prediction id -1 is outside"),
        (good, good + 7, r"reference id 7 is outside the classes \[0, 3\); only ignore_index 255 .* or a label_map"),
        (good, good + 3, "reference id 3 is outside"),
        (good, good + np.array([[4], [6]]), "reference id 6 is outside"),
        (good, good.astype(int) - 1, "reference id -1 is outside"),
        (good, good.astype(np.int64) + 1000, "reference id 1000 is outside"),
        (good, good.astype(int) - 100, "reference id -100 is outside"),
        (good, good[:1], r"shape \(2, 3\) for a reference of shape \(1, 3\)"),
        (good[:1], good, r"shape \(1, 3\) for a reference of shape \(2, 3\)"),
        (good.astype(np.float32), good, "float32, not integer"),
        (torch.zeros(2, 3), good, "float32, not integer"),
    ]
    for prediction, reference, message in cases:
        with pytest.raises(ValueError, match=message):
            metric.add(prediction=prediction, reference=reference)
    with pytest.raises(ValueError, match="1 predictions but 2 references"):
        metric.add_batch(predictions=[good], references=[good, good])
    with pytest.raises(ValueError, match="2 predictions but 1 references"):
        metric.add_batch(predictions=np.stack([good, good]), references=[good])
    for one in ({"predictions": [good]}, {"references": [good]}):
        for function in (metric.add_batch, metric.compute):
            with pytest.raises(ValueError, match="both be given"):
                function(**one)
    with pytest.raises(ValueError, match="reference id 1 is outside"):  # is said by `add`, as it is class 7
        MeanIoU(num_labels=3, label_map={1: 7}).add(prediction=good, reference=good + 1)
    with pytest.raises(ValueError, match=r"reference id 9 .* \(reduce_labels turns 0 into 255\)"):
        MeanIoU(num_labels=3, reduce_labels=True).add(prediction=good, reference=good + 9)
    with pytest.raises(ValueError, match="prediction id 4000"):  # 255 is a class here
        MeanIoU(num_labels=3, label_map={255: 1}).add(prediction=good.astype(int) + 4000, reference=good + 255)
    with pytest.raises(ValueError, match=r"unknown arguments \['num_classes'\]"):
        metric.compute(predictions=[good], references=[good], num_classes=3)
    with pytest.raises(ValueError, match="num_labels is not known"):
        MeanIoU().compute(predictions=[good], references=[good])
    for settings, message in (
        *(({"num_labels": value}, f"num_labels is {value!r}; .* 1 to 16384") for value in (0, "3", 3.0, True, 100000)),
        *(({"ignore_index": value}, f"ignore_index is {value!r}; .* -2147483648 to") for value in (None, "255", 2**31)),
        ({"label_map": {2: 1.5}}, "label_map: the id of 2 is 1.5; give a whole number"),
        ({"label_map": {100000: 1}}, "label_map: the raw id is 100000; .* to 16383"),
        ({"label_map": {"x": 1}}, "label_map: the raw id is 'x'"),
        ({"label_map": [1, 0]}, r"label_map is \[1, 0\]; give a dict"),
        ({"nan_to_num": "0"}, "nan_to_num is '0'; give a number"),
        ({"reduce_labels": "false"}, "reduce_labels is 'false'; give True or False"),
        ({"num_labels": 300, "ignore_index": -100, "reduce_labels": True}, "num_labels is 300; .* give label_map"),
    ):
        with pytest.raises(ValueError, match=message):
            MeanIoU(**settings)
        if None not in settings.values():
            with pytest.raises(ValueError, match=message):
                MeanIoU().compute(predictions=[good], references=[good], **{"num_labels": 3, **settings})
    ids = np.array([[0, 4, 6, 5]])
    for what in ("prediction", "reference"):  # found in `compute` when it is told there
        late = MeanIoU()
        late.add(**({"prediction": 0 * ids, "reference": 0 * ids} | {what: ids}))
        with pytest.raises(ValueError, match=f"{what} id 6 is outside"):
            late.compute(num_labels=3)
    # a prediction where the truth is void does not matter
    results = metric.compute(predictions=[np.array([[200, 0]])], references=[np.array([[255, 0]])])
    assert results["mean_iou"] == 1


def test_warns_when_ignore_index_is_a_class():
    reference, prediction = np.array([[0, 0, 1, 1]]), np.array([[1, 0, 1, 0]])
    with pytest.warns(UserWarning, match="ignore_index 0 is also a class.*recall") as warned:
        results = MeanIoU(num_labels=2, ignore_index=0).compute(predictions=[prediction], references=[reference])
    assert [warning.filename for warning in warned] == [__file__]  # once, at the caller's line
    assert results["per_category_iou"][1] == 0.5  # the recall of class 1; its IoU is 1/3
    with pytest.warns(UserWarning, match="ignore_index 1 is also a class"):
        MeanIoU().compute(predictions=[prediction], references=[reference], num_labels=2, ignore_index=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for ignore_index in (-1, 2):
            MeanIoU(num_labels=2, ignore_index=ignore_index)


def test_loads_from_file_and_folder(tmp_path):
    predictions, references = label_maps(3)
    (tmp_path / "segmentation_iou").mkdir()
    shutil.copy(metrics.__file__, tmp_path / "segmentation_iou" / "segmentation_iou.py")
    for path in (metrics.__file__, str(tmp_path / "segmentation_iou")):
        metric = evaluate.load(path, num_labels=3)
        results = metric.compute(predictions=predictions, references=references)
        assert_same_scores(results, slow_mean_iou(predictions, references, 3, 255))
    combined = evaluate.combine([metric]).compute(predictions=predictions, references=references)
    assert combined["mean_iou"] == results["mean_iou"]


def test_compute_metrics_for_trainer():
    predictions, references = label_maps(4, sizes=[(8, 8)] * 4)
    metric = MeanIoU(num_labels=4)
    expected = metric.compute(predictions=predictions, references=references)
    padded = np.stack(references)
    padded[padded == 255] = -100  # Trainer's filling, where the images of two processes differ in size
    for i, is_last in ((0, False), (2, True)):
        batch = EvalPrediction(torch.from_numpy(np.stack(predictions[i : i + 2])), torch.from_numpy(padded[i : i + 2]))
        results = metric.compute_metrics(batch, compute_result=is_last)
        assert bool(results) == is_last
    assert results == {name: expected[name] for name in results} and len(results) == 4
    assert all(type(value) is float for value in results.values())
    assert metric.compute_metrics(EvalPrediction(np.stack(predictions), padded)) == results
    with pytest.raises(ValueError, match="reference id -101 is outside"):  # -100 alone is filling
        metric.compute_metrics(EvalPrediction(np.stack(predictions), np.where(padded == -100, -101, padded)))


def _evaluate_share(rank, store, path):
    """One of two processes. The second has nothing in the third run, and larger ids than the first in the last."""
    torch.set_num_threads(1)  # OpenMP's threads do not survive the fork
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    predictions, references = label_maps(5)
    metric = MeanIoU(num_labels=5)
    results = []
    for mine in (slice(rank, None, 2), slice(rank, None, 2), slice(0, 3 * (1 - rank))):
        metric.add_batch(predictions=predictions[mine], references=references[mine])
        results.append(metric.compute())
    late = MeanIoU()
    late.add(prediction=np.array([[700 * rank]]), reference=np.array([[700 * rank]]))
    results.append(late.compute(num_labels=701))
    torch.save(results, f"{path}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_match_one(tmp_path):
    arguments = (tmp_path / "store", tmp_path)
    # fork: importing the libraries twice more would take ten seconds
    torch.multiprocessing.start_processes(_evaluate_share, arguments, nprocs=2, start_method="fork")
    predictions, references = label_maps(5)
    expected = MeanIoU(num_labels=5).compute(predictions=predictions, references=references)
    for rank in range(2):
        *results, late = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        for result in results:
            assert_same_scores(result, expected)
        assert late["confusion_matrix"].sum() == 2 and late["confusion_matrix"][700, 700] == 1
    with pytest.raises(ValueError, match="torch.distributed is not initialised"):
        MeanIoU(num_labels=5, num_process=2).compute(predictions=predictions, references=references)


def test_class_table():
    results = MeanIoU(num_labels=3).compute(predictions=[np.array([[0, 1, 1]])], references=[np.array([[0, 0, 1]])])
    assert class_table(results, ["sky", "traffic sign", "bus"]).splitlines() == [
        "| class        | IoU % | accuracy % | Dice % | pixels % |",
        "| ------------ | ----: | ---------: | -----: | -------: |",
        "| sky          | 50.00 |      50.00 |  66.67 |    66.67 |",
        "| traffic sign | 50.00 |     100.00 |  66.67 |    33.33 |",
        "| bus          |     - |          - |      - |     0.00 |",
        "| mean         | 50.00 |      75.00 |  66.67 |          |",
        "| all pixels   |       |      66.67 |        |          |",
        "neither in the references nor predicted, left out of the means: bus",
    ]
    results = MeanIoU(num_labels=3).compute(predictions=[np.array([[0, 1, 1]])], references=[np.array([[0, 0, 0]])])
    assert class_table(results, ["sky", "traffic sign", "bus"]).endswith(
        "left out of the means: bus\n"
        "in no reference but predicted, which makes their IoU 0 and lowers the mean: traffic sign"
    )
    for truth, share in ((0, "100.00"), (255, "0.00")):
        results = MeanIoU(num_labels=3).compute(predictions=[np.array([[0]])], references=[np.array([[truth]])])
        assert class_table(results, ["sky", "traffic sign", "bus"]).splitlines()[2].endswith(f"| {share:>8} |")
    with pytest.raises(ValueError, match="2 names for 3 classes"):
        class_table(results, ["sky", "bus"])
    with pytest.raises(ValueError, match="shorter"):
        metrics.markdown_table([("class", "IoU %"), ("sky",)])
