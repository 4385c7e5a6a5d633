"""Reliability against loops over pixels, the temperature against a grid and against one that is known."""

import copy
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from demo_models import save_model
from PIL import Image
from tiny import CASES
from torch.utils.data import Dataset

from hf_segtx import SegFormerImageProcessor, calibration, inference
from hf_segtx.calibration import Calibration, Reliability, calibrate, fitted_temperature, save_temperature
from hf_segtx.export.graph import Graph, GraphOptions, folded
from hf_segtx.inference import load_model, predict, segment


VOID = 255


def slow_error(confidences, hits, bins=15):
    """Guo et al., Eq. 2 and 3, pixel by pixel."""
    members = [[] for _ in range(bins)]
    for confidence, hit in zip(confidences, hits, strict=True):
        for m in range(1, bins + 1):
            if (m - 1) / bins < confidence <= m / bins:
                members[m - 1].append((confidence, hit))
    total = 0.0
    for pairs in members:
        if pairs:
            accuracy = sum(hit for _, hit in pairs) / len(pairs)
            confidence = sum(confidence for confidence, _ in pairs) / len(pairs)
            total += len(pairs) / len(confidences) * abs(accuracy - confidence)
    return total


def test_error_matches_the_definition():
    torch.manual_seed(0)
    confidence = torch.rand(3000).clamp(min=0.01)
    hits = torch.rand(3000) < 1 - confidence  # too sure of itself, and not sure enough
    shares = [Reliability(), Reliability()]  # of two processes
    for number, part in enumerate(range(0, 3000, 700)):
        shares[number % 2].add(confidence[part : part + 700], hits[part : part + 700])
    reliability = calibration._total(shares)
    assert reliability.error == pytest.approx(slow_error(confidence.double().tolist(), hits.tolist()), abs=1e-9)
    assert reliability.pixels.sum() == 3000 and reliability.accuracy == pytest.approx(hits.float().mean().item())
    assert reliability.mean_confidence == pytest.approx(confidence.double().mean().item())
    quarters = Reliability(bins=4)  # the last two are what rounding makes of 0 and 1
    quarters.add(torch.tensor([0.01, 0.25, 0.26, 0.5, 1.0, 0.0, 1.0000001]), torch.ones(7, dtype=torch.bool))
    assert quarters.pixels.tolist() == [3, 2, 0, 2]


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_temperature_matches_a_grid(sharpness):
    torch.manual_seed(1)
    logits = torch.randn(4000, 5) * 2
    labels = torch.distributions.Categorical(logits=logits).sample()
    logits *= sharpness
    grid = torch.logspace(-1, 1, 2001, dtype=torch.float64)
    losses = [torch.nn.functional.cross_entropy(logits / t, labels) for t in grid.float()]
    best = grid[int(torch.stack(losses).argmin())].item()
    found = fitted_temperature(logits, labels)
    assert found == pytest.approx(best, rel=2 * math.log(100) / 2000)  # a step of the grid, to either side
    assert found == pytest.approx(sharpness, rel=0.06)  # 4000 labels are drawn


def test_temperature_stays_in_its_range():
    logits = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
    assert fitted_temperature(logits, torch.tensor([0, 1])) == pytest.approx(0.1)  # never wrong
    assert fitted_temperature(logits, torch.tensor([1, 0])) == pytest.approx(10)  # never right
    counts = Reliability()
    counts.add(torch.ones(1), torch.ones(1, dtype=torch.bool))
    for temperature, is_end in ((0.10001, True), (0.11, False), (1, False), (9.9, False), (9.9999, True)):
        assert ("(an end of its range)" in str(Calibration(counts, counts, temperature))) == is_end


class Drawn(Dataset):
    """Noise, and labels drawn from the probabilities that a model gives; some of them void."""

    def __init__(self, model, processor, count=6, size=(64, 96)):
        rng = np.random.default_rng(3)
        self.items = []
        for index in range(count):
            image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
            (found,) = segment(model, processor, [image], return_scores=True)
            torch.manual_seed(index)
            label = torch.distributions.Categorical(found.probabilities.permute(1, 2, 0)).sample()
            label[torch.rand(size) < 0.1] = VOID
            self.items.append({"image": image, "label": label.to(torch.uint8).numpy(), "name": str(index)})

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def spread_out(model):
    """The logits of a random model hardly differ."""
    with torch.no_grad():
        model.decode_head.classifier.weight.mul_(30 if model.config.num_labels > 1 else 600)
    return model


def make_sharper(model, factor):
    with torch.no_grad():
        model.decode_head.classifier.weight.mul_(factor)
        model.decode_head.classifier.bias.mul_(factor)


@pytest.mark.parametrize("classes, window", [(4, None), (1, None), (4, 48)])
def test_known_temperature_is_found(classes, window, monkeypatch):
    monkeypatch.setattr(inference, "BLOCK_NUMEL", 4 * 96 * 30)  # rows in blocks
    torch.manual_seed(0)
    model = spread_out(CASES["segformer"].make_model(num_labels=classes))
    processor = SegFormerImageProcessor(do_resize=False, window_size=window, minimum_size=None)
    data = Drawn(model, processor)
    truly = calibrate(model, processor, data, progress=False)
    assert truly.temperature == pytest.approx(1, rel=0.03) and truly.before.error < 0.02  # 33,000 labels are drawn
    expected = segment(model, processor, [data[0]["image"]], return_scores=True, return_uncertainty=True)[0]
    make_sharper(model, 3)
    found = calibrate(model, processor, data, progress=False)
    assert found.temperature == pytest.approx(3 * truly.temperature, rel=1e-4)  # the same labels: rounding of float32
    assert found.before.error > 0.05 and found.after.error < 0.02
    assert found.before.pixels.sum() == sum((item["label"] != VOID).sum() for item in data)
    sharp = segment(model, processor, [data[0]["image"]], return_uncertainty=True)[0]
    processor.temperature = 3.0
    result = segment(model, processor, [data[0]["image"]], return_scores=True, return_uncertainty=True)[0]
    assert torch.equal(result.label_map, sharp.label_map)
    for name in ("probabilities", "confidence", "entropy"):  # those of the model before
        torch.testing.assert_close(getattr(result, name), getattr(expected, name), rtol=0, atol=1e-5)  # float32
    again = calibrate(model, processor, data, progress=False)
    assert again.before.error < 0.02 and again.temperature == found.temperature


def test_temperature_is_fitted_to_half_and_measured_on_the_other():
    """Three images of which the last two are labelled at random: the first's temperature does not suit them."""
    model = spread_out(CASES["segformer"].make_model())
    processor = SegFormerImageProcessor(do_resize=False)
    data = Drawn(model, processor, count=3)
    for item in data.items[1:]:
        item["label"] = np.random.default_rng(0).integers(0, 4, (64, 96), dtype=np.uint8)
    found = calibrate(model, processor, data, progress=False)
    confidences, hits = [], []
    halves = []
    for items in (data.items[:1], data.items[1:]):
        results = segment(model, processor, [item["image"] for item in items], return_scores=True)
        label = torch.cat([torch.from_numpy(item["label"]) for item in items]).long()
        logits = torch.cat([result.probabilities for result in results], 1).log()
        halves.append((logits[:, label != VOID].T, label[label != VOID]))
    for fitted, (logits, labels) in zip(halves, reversed(halves), strict=True):
        shares = (logits / fitted_temperature(*fitted)).softmax(1)
        confidences += shares.amax(1).tolist()
        hits += (shares.argmax(1) == labels).tolist()
    assert found.after.error == pytest.approx(slow_error(confidences, hits), abs=1e-3)  # a pixel in another bin
    assert found.after.error > 0.05
    del data.items[1:]
    single = calibrate(model, processor, data, progress=False)  # is its own other half
    assert single.after.pixels.sum() == single.before.pixels.sum() and single.after.error < 0.03


def test_every_pixel_has_the_same_chance_to_be_in_the_sample():
    sample = calibration._Sample(4000, seed=0)
    for image in range(10):  # of 1000 pixels and 4 classes: a sixteenth of all has room
        sample.add(torch.zeros(1000, 4), torch.zeros(1000, dtype=torch.long), image)
        assert sample.share == 1 or image > 0
    counts = torch.cat([images for *_, images in sample.parts]).bincount(minlength=10)
    assert sample.share == 1 / 16 and counts.sum() * 4 <= 4000
    assert (counts - 1000 / 16).abs().max() < 4 * 8  # standard deviations of a binomial


def test_sample_is_bounded_and_says_the_same(capsys, monkeypatch):
    assert 4 * calibration.SAMPLED_LOGITS == 16 * 2**20  # bytes: what is held of any data set, unless it is said
    model = spread_out(CASES["segformer"].make_model())
    processor = SegFormerImageProcessor(do_resize=False)
    data = Drawn(model, processor)
    whole = calibrate(model, processor, data)
    shown = capsys.readouterr().err
    assert "calibration" in shown and "0/6 [" in shown and shown.endswith("\r")  # it is gone
    part = calibrate(model, processor, data, progress=False, sampled_logits=20_000)
    assert not capsys.readouterr().err
    assert 20_000 / 4 / 2.5 < part.after.pixels.sum() <= 20_000 / 4 < whole.after.pixels.sum()
    assert part.temperature == pytest.approx(whole.temperature, rel=0.1) and part.before.error == whole.before.error

    def of_two(share):  # the other one has kept every second pixel of what this one has
        if isinstance(share, Reliability):
            return [share]
        other = copy.deepcopy(share)
        other.thin(share.share / 2)
        counts.append(sum(len(labels) for _, labels, _ in share.parts))
        return [share, other]

    counts, process = [], SimpleNamespace(get_rank=lambda: 0, get_world_size=lambda: 2)
    for name, value in (("distributed", process), ("is_distributed", lambda: True), ("gathered", of_two)):
        monkeypatch.setattr(calibration, name, value)
    shared = calibrate(model, processor, data, progress=False, sampled_logits=20_000)
    assert counts[0] <= 20_000 / 2 / 4  # each process holds its part of them
    assert shared.after.pixels.sum() == pytest.approx(counts[0], rel=0.15)  # two halves; 4 standard deviations


@pytest.mark.parametrize("averaging", ["probabilities", "logits", "exp"])
def test_label_maps_do_not_depend_on_it(averaging):
    torch.manual_seed(0)
    model = spread_out(CASES["segformer"].make_model())
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    maps, confidences = [], []
    for temperature in (None, 0.2, 1, 2):
        processor = SegFormerImageProcessor(do_resize=False, averaging=averaging, temperature=temperature)
        views = {"scales": (0.75, 1.0), "flip": True}
        result = segment(model, processor, [image], **views, return_scores=True, return_uncertainty=True)[0]
        maps.append(result.label_map)
        confidences.append(result.confidence)
        torch.testing.assert_close(result.confidence, result.probabilities.gather(0, result.label_map[None])[0])
        torch.testing.assert_close(result.probabilities.sum(0), torch.ones(50, 70))
    assert all(torch.equal(label_map, maps[0]) for label_map in maps)
    assert torch.equal(confidences[0], confidences[2])
    assert (confidences[1] >= confidences[0] - 1e-6).all() and (confidences[3] <= confidences[0] + 1e-6).all()
    assert confidences[1].mean() > confidences[0].mean() + 0.05 > confidences[3].mean() + 0.08


@pytest.mark.parametrize("classes", [1, 2])
def test_label_maps_do_not_depend_on_it_where_classes_are_almost_equal(classes):
    """Their tempered probabilities are equal after rounding."""
    model = CASES["segformer"].make_model(num_labels=classes)
    with torch.no_grad():
        model.decode_head.classifier.weight.zero_()
        model.decode_head.classifier.bias.zero_()[-1] = 2e-7
    for temperature in (None, 10):
        processor = SegFormerImageProcessor(do_resize=False, temperature=temperature)
        result = segment(model, processor, [Image.new("RGB", (40, 40))], return_uncertainty=True)[0]
        assert (result.label_map == 1).all()


@pytest.mark.parametrize(
    "biases, views, averaging, odds",
    [
        ((0, 200), {}, "probabilities", -200),  # of one view the logits are at hand, where probabilities are 0
        ((0, 200), {"flip": True}, "probabilities", -104),  # what is less than the smallest float32, exp(-103.3)
        ((80, 200), {}, "exp", 0),  # more than exp(80) is taken for that
    ],
)
def test_very_sure_models_have_a_temperature_too(biases, views, averaging, odds):
    model = CASES["segformer"].make_model(num_labels=2)
    with torch.no_grad():
        model.decode_head.classifier.weight.zero_()
        model.decode_head.classifier.bias.copy_(torch.tensor(biases))
    processor = SegFormerImageProcessor(do_resize=False, temperature=10.0, averaging=averaging)
    result = segment(model, processor, [Image.new("RGB", (40, 40))], return_scores=True, **views)[0]
    wanted = torch.full((40, 40), 1 / (1 + math.exp(-odds / 10)))
    torch.testing.assert_close(result.probabilities[0], wanted, rtol=1e-4, atol=0)  # float32


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("runtime", ["onnx", "openvino", "torch"])
def test_exported_confidence_has_it(classes, runtime):
    model = spread_out(CASES["segformer"].make_model(num_labels=classes))
    options = GraphOptions(("label_map", "logits", "confidence"), temperature=2.5)
    inputs = torch.randn(1, 3, 64, 96)
    label_map, logits, confidence = Graph(folded(model), options, False, runtime)(inputs)
    large = torch.nn.functional.interpolate(logits, (64, 96), mode="bilinear")
    large = torch.cat([torch.zeros_like(large), large], 1) if classes == 1 else large
    shares = (large / 2.5).softmax(1)
    torch.testing.assert_close(confidence, shares.amax(1), rtol=0, atol=1e-5)  # float32
    assert torch.equal(label_map.long(), large.argmax(1))


def test_it_is_saved_beside_all_else(tmp_path):
    folder = save_model(tmp_path / "model", size={"shortest_edge": 64}, window_size=64)
    model, before = load_model(folder)
    assert before.temperature is None
    file = folder / "preprocessor_config.json"
    save_temperature(folder, 1.23456789)
    _, after = load_model(folder)
    assert after.to_dict() == before.to_dict() | {"temperature": 1.2346}
    settings = json.loads(file.read_text())
    assert settings["temperature"] == 1.2346
    assert file.read_text() == json.dumps(settings, indent=2, sort_keys=True) + "\n"  # as transformers writes it
    image = Image.new("RGB", (90, 70))
    assert torch.equal(predict(model, before, [image])[0], predict(model, after, [image])[0])


@pytest.mark.parametrize("value", [0, 0.09, 11, -1, "2", True, float("nan"), [1.5]])
def test_impossible_temperatures_are_refused(value):
    with pytest.raises(ValueError, match="temperature is .*; give a number, 0.1 to 10"):
        SegFormerImageProcessor(temperature=value)


def test_what_cannot_be_calibrated():
    model = CASES["segformer"].make_model()
    processor = SegFormerImageProcessor(do_resize=False)
    data = Drawn(model, processor, count=1)
    data.items[0]["label"][:] = VOID
    with pytest.raises(ValueError, match="no valid pixel"):
        calibrate(model, processor, data, progress=False)
    with pytest.raises(ValueError, match="object has no temperature"):
        calibrate(model, object(), data)
