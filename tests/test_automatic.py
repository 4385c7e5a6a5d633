"""hf_segtx.training: decisions, automatic, data_facts, report_page, automatic_run: rules, and runs that take them."""

import itertools
import json
import math
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import write_folder, write_sample

from hf_segtx.architectures import ARCHITECTURES
from hf_segtx.cli.training_flags import given_names, parse_training
from hf_segtx.data import load_data
from hf_segtx.training import automatic, automatic_run, decisions, loop, range_test, report_page
from hf_segtx.training.arguments import Arguments
from hf_segtx.training.automatic import Automatic
from hf_segtx.training.data_facts import DataFacts, file_channels, measure_facts
from hf_segtx.training.decisions import Speed
from hf_segtx.training.optim import make_schedule
from hf_segtx.training.recipes import as_recipe


FACTS = DataFacts(
    num_images=300,
    num_validation_images=50,
    height=360,
    width=480,
    smallest=(360, 480),
    largest=(360, 480),
    num_channels=3,
    is_deep=False,
    mean=[0.4, 0.4, 0.4],
    std=[0.2, 0.2, 0.2],
    class_names=["road", "car", "pole"],
    class_shares=[0.7, 0.28, 0.02],
    class_images=[1.0, 0.5, 0.1],
    void_share=0.0,
    object_sides=[200.0, 60.0, 8.0],
)
TINY = {
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1] * 4,
    "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 16,
}


def values(decisions):
    return {decision.name: decision.value for decision in decisions}


# ---- when a run decides anything


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--train_dir d", True),
        ("--dataset_name d --learning_rate 1e-3", True),
        ("--train_dir d --num_train_epochs 1", False),
        ("--train_dir d --max_train_steps=5", False),
        ("--train_dir d --max_train_steps 5 --time_budget 5m", True),
        ("--train_dir d --max_train_steps 5 --automatic", True),
        ("--train_dir d --automatic False", False),
        ("--train_dir d --recipe segformer_b0_camvid", False),
        ("--train_dir d --resume_from_checkpoint latest", False),
        ("--recipe segformer_b0_camvid --time_budget 5m", True),
        ("", False),
    ],
)
def test_what_is_explicit_decides_nothing(words, expected):
    assert parse_training(words.split()).automatic is expected


def test_given_names_are_those_written():
    assert given_names("--train_dir --x --learning-rate=1 --no_fused".split()) == {
        "train_dir",
        "learning_rate",
        "fused",
    }


# ---- rules


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("2d", 172800), ("1.5h", 5400)]
)
def test_seconds_of(text, seconds):
    assert decisions.seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "-5m", "0s", "5m1h", "soon"])
def test_seconds_of_what_is_no_time(text):
    with pytest.raises(ValueError, match="such as 30m"):
        decisions.seconds_of(text)


def test_images_are_shown_smaller_only_where_time_is_short():
    small, large = FACTS, replace(FACTS, height=1024, width=2048, largest=(1024, 2048))
    assert decisions.working_scale(small, 2000, 8000) == 1
    assert decisions.working_scale(large, 1e6, 8000) == 1
    # By hand: 8000 views of 1600 megapixels are 0.2 each, of 2.097 are 0.09537, the square of 0.3088.
    coarse = replace(large, object_sides=[200.0] * 3)
    assert decisions.working_scale(coarse, 1600, 8000) == pytest.approx(0.3088, abs=1e-3)
    assert decisions.working_scale(large, 1600, 8000) == pytest.approx(1.2 * 0.3088, abs=1e-3)  # poles of 8 pixels
    assert decisions.working_scale(coarse, 1600, 2000) == pytest.approx(2 * 0.3088, abs=1e-3)
    assert decisions.working_scale(coarse, 1, 8000) * 1024 == pytest.approx(192)


def test_crops_fit_into_the_images():
    for height, width, megapixels in itertools.product((90, 200, 360, 1024), (100, 480, 2048), (10, 400, 1e5)):
        facts = replace(FACTS, height=height, width=width, largest=(height, width))
        decided = values(decisions.decide_images(facts, megapixels, "segformer"))
        short = decided.get("image_size", [min(height, width)])[0]
        scale = short / min(height, width)
        assert scale <= 1 + 16 / short  # a multiple of 32 may be a little larger
        for crop, side in zip(decided["crop_size"], (height, width)):
            assert crop % 32 == 0 and 32 <= crop <= 512 and crop < side * scale + 32


def test_rare_classes_get_weights():
    assert not decisions.decide_loss(replace(FACTS, class_shares=[0.4, 0.35, 0.25]))
    shares = [0.64, 0.32, 0.04, 0.0]
    decision = decisions.decide_loss(replace(FACTS, class_shares=shares, class_names=["a", "b", "pole", "d"]))[0]
    weights = [float(weight) for weight in decision.value]
    # By hand: 1 / sqrt(share) is 1.25, 1.768, 5, and their mean over the pixels 0.8 + 0.566 + 0.2 = 1.566.
    assert weights == pytest.approx([0.798, 1.129, 3.193, 63.9], rel=0.01) and "pole has 4.00%" in decision.reason
    assert sum(weight * share for weight, share in zip(weights, shares)) == pytest.approx(1, rel=0.01)
    parse_training(["--train_dir", "d", "--class_weights", *decision.value])  # is what the flag takes


def test_mirrors_and_colours_follow_names_and_channels():
    assert not decisions.decide_augmentation(FACTS, 100)
    pairs = replace(FACTS, class_names=["road", "left arm", "right arm"])
    assert not decisions.decide_augmentation(pairs, 100)  # they change places
    one = decisions.decide_augmentation(replace(FACTS, class_names=["road", "left lane", "pole"]), 100)
    assert values(one) == {"flip_probability": 0.0} and "left lane" in one[0].reason
    assert values(decisions.decide_augmentation(replace(FACTS, num_channels=5), 100)) == {"photometric": "none"}


def test_little_time_takes_no_dropout_and_no_changes_of_colour():
    few, many = (values(decisions.decide_augmentation(FACTS, passes)) for passes in (6, 100))
    assert few == {"photometric": "none"} and not many
    text = values(decisions.decide_dropout(Arguments(config_overrides='{"depths": [1]}'), "segformer", 6))
    overrides = json.loads(text["config_overrides"])
    assert overrides == {"drop_path_rate": 0, "classifier_dropout_prob": 0, "depths": [1]}
    assert not decisions.decide_dropout(Arguments(), "segformer", 100)
    assert not decisions.decide_dropout(Arguments(), "ocrnet", 6)  # has none
    for row in ARCHITECTURES.values():
        assert set(row.dropouts) <= vars(row.config()).keys()


def test_own_mean_and_deviation_where_the_usual_ones_cannot_be_meant():
    assert not decisions.decide_normalization(FACTS, has_weights=False)
    five = replace(FACTS, num_channels=5, is_deep=True, mean=[0.1] * 5, std=[0.0] * 5)
    decided = values(decisions.decide_normalization(five, has_weights=False))
    assert decided == {
        "image_mean": [0.1] * 5,
        "image_std": [0.001] * 5,
    }  # a channel without contrast is no division by 0


def test_batches_leave_time_for_steps():
    for megapixels in (1, 100, 400, 1600, 1e6):
        batch = values(decisions.decide_batch([240, 320], 300, megapixels))["per_device_train_batch_size"]
        assert batch in (4, 8, 16)
        assert batch == 4 or megapixels / (batch * 0.0768) >= decisions.WANTED_STEPS
    assert values(decisions.decide_batch([240, 320], 300, 1e6, 2))["total_batch_size"] == 32


def test_rates_come_from_the_table():
    table, started = decisions.rates_of("segformer", False), decisions.rates_of("segformer", True)
    random = values(decisions.decide_optimizer(table, 1000, table))
    assert random["learning_rate"] == 1.5e-3 and random["head_lr_multiplier"] == 1
    published = values(decisions.decide_optimizer(started, 160_000, table))
    assert published["learning_rate"] == 6e-5 and published["head_lr_multiplier"] == 10
    short = values(decisions.decide_optimizer(started, 1000, table))
    assert 6e-5 < short["learning_rate"] <= 8 * 6e-5
    head = short["learning_rate"] * short["head_lr_multiplier"]  # never above the rate for random weights
    assert head == pytest.approx(1.5e-3, rel=0.01)


def test_range_test_finds_where_the_loss_was_lowest():
    """A loss that stays at 2, falls to 1 at a rate of 1e-2, and rises again; a wild first loss does not count."""
    rates = range_test.range_rates(60)
    assert rates[0] == pytest.approx(1e-6) and rates[-1] == pytest.approx(1e-1)
    curve = [2 - max(0.0, 1 - abs(math.log10(rate / 1e-2)) / 2) for rate in rates]
    assert 1e-2 <= 3 * range_test.suitable_rate([0.9, *curve[1:]], 60) < 2e-2  # the average lags by some steps
    assert range_test.suitable_rate([*curve[:50], math.nan], 60) == range_test.suitable_rate(curve[:50], 60)


@pytest.mark.slow
def test_rates_that_nobody_wrote_down_are_measured(tmp_path, fast, monkeypatch):
    """Of SegFormer without its row's rates, on two fields of colours, which it can learn."""
    write_folder(tmp_path, count=12, size=(64, 64))
    for file in (tmp_path / "images").iterdir():
        mask = np.array(Image.open(tmp_path / "masks" / f"{file.stem}.png"))
        Image.fromarray(np.stack([mask * 60, 255 - mask * 60, mask * 0], -1).astype(np.uint8)).save(file)
    monkeypatch.setitem(ARCHITECTURES, "segformer", ARCHITECTURES["segformer"]._replace(random_rates=None))
    monkeypatch.setattr(automatic.plan, "in_new_process", lambda function, *arguments: function(*arguments))
    arguments = Arguments(train_dir=str(tmp_path), config_overrides=json.dumps(TINY))
    decided = {decision.name: decision for decision in automatic.configure(arguments, {"config_overrides"}).decisions}
    assert "range test of 60 steps" in decided["learning_rate"].reason
    assert 1e-4 < arguments.learning_rate < 3e-2  # lower ones change nothing in so few steps; the highest is 1e-1
    short = automatic._measure_rates(arguments, Automatic(seconds=60.0), Speed("no", 0.1, 1e-6, 0.1))
    assert short.learning_rate == 1e-4 and "no time" in short.source
    monkeypatch.setattr(automatic.plan, "in_new_process", lambda *arguments: None)
    killed = automatic._measure_rates(arguments, Automatic(), Speed("no", 0.1, 0.2, 0.1))
    assert killed.learning_rate == 1e-4 and "memory" in killed.source


def test_shares_held_out():
    for num_images, share in ((12, 0.25), (39, 0.25), (40, 0.15), (2000, 0.15), (10_000, 0.03)):
        assert values(decisions.decide_held_out(num_images))["train_val_split"] == share


def test_starts_with_the_smallest_size_on_a_cpu():
    assert values(decisions.decide_start(Arguments(), 300, True)) == {"architecture": "segformer", "size": "b0"}
    assert values(decisions.decide_start(Arguments(architecture="ocrnet"), 300, True)) == {"size": "hrnet_w18_small"}
    assert values(decisions.decide_start(Arguments(), 7200, False))["size"] == "b1"
    assert not decisions.decide_start(Arguments(model_name_or_path="a"), 300, True)
    for name, row in ARCHITECTURES.items():
        row.config.from_size(values(decisions.decide_start(Arguments(architecture=name), 300, True))["size"])


def test_weights_that_cannot_be_had_are_said():
    """Tests run offline, with an empty cache."""
    b0 = Arguments(architecture="segformer", size="b0")
    decision = automatic.weights_in_reach(b0, 3)
    assert decision.value is None and "nvidia/mit-b0 is not in the cache" in decision.reason
    assert "sees 3 channels, not 5" in automatic.weights_in_reach(b0, 5).reason
    assert "none are listed" in automatic.weights_in_reach(Arguments(architecture="setr", size="base"), 3).reason


def test_weights_in_the_cache_are_taken(monkeypatch):
    monkeypatch.setattr(automatic, "try_to_load_from_cache", lambda name, file: f"/cache/{name}/{file}")
    decision = automatic.weights_in_reach(Arguments(architecture="segformer", size="b2"), 3)
    assert decision.value == "nvidia/mit-b2" and "cache" in decision.reason


def test_precision_is_the_faster_one_by_a_margin():
    fast, slow = Speed("bf16", 1.0, 2.0, 1.0), Speed("no", 1.5, 1.33, 1.0)
    assert values(decisions.decide_precision([fast, slow])) == {"mixed_precision": "bf16"}
    assert values(decisions.decide_precision([fast, slow._replace(megapixels=1.95)])) == {"mixed_precision": "no"}
    assert not decisions.decide_precision([fast])  # the only one that fits, or that was asked for


# ---- time


@pytest.mark.parametrize(
    ("left", "step", "evaluation"), [(280, 0.25, 5), (280, 2, 30), (60, 0.1, 0.5), (7000, 0.3, 12), (40, 3, 10)]
)
def test_planned_steps_fill_the_time(left, step, evaluation):
    length = decisions.plan_length(left, step, evaluation, elapsed=20)
    assert 1 <= length.first_evaluation <= length.evaluation <= length.total
    evaluations = {
        *range(length.evaluation, length.total + 1, length.evaluation),
        length.first_evaluation,
        length.total,
    }
    used = length.total * step + (len(evaluations) + 2) * evaluation
    if left > 12 * evaluation and length.total > 10:
        assert 0.8 * left < used < 1.07 * left  # the first evaluation comes on top of those that are evenly spread
    # With the schedule that is decided, the rate does not yet fall at the first evaluation.
    rates = decisions.rates_of("segformer", is_pretrained=False)
    share = values(decisions.decide_optimizer(rates, length.total))["lr_decay_share"]
    assert length.first_evaluation <= max(1, (1 - share) * length.total)


def test_settled_steps_fill_what_is_left():
    for step_seconds, evaluation_seconds, evaluation_steps in ((0.25, 5, 200), (1.0, 2, 30), (0.01, 0.5, 1000)):
        total = decisions.steps_that_fit(50, 200, step_seconds, evaluation_seconds, evaluation_steps)
        used = (total - 50) * (step_seconds + evaluation_seconds / evaluation_steps)
        used += decisions.REPORT_EVALUATIONS * evaluation_seconds
        assert 200 - 2 * step_seconds - 0.01 < used <= 200 + 1e-6


@pytest.mark.parametrize("total", [60, 90, 400])
def test_settled_steps_leave_earlier_rates_as_they_were(total):
    """The rates up to the step at which the total changes are those of a run that had this total from its start."""
    clock = Automatic(seconds=1e9)
    arguments = Arguments(evaluation_steps=1000, max_train_steps=200, num_warmup_steps=10, lr_scheduler_type="wsd")
    arguments.lr_decay_share = 0.75
    at = 50
    assert clock.is_adjustable(arguments, at, 200) and not clock.is_adjustable(arguments, at + 1, 200)
    before = rates(arguments, 200)
    clock.seconds = (total - at + 0.5 + clock.elapsed()) / automatic.USED_SHARE
    clock.take(arguments, automatic.settled_steps(clock, arguments, at, 1.0, 0.0))
    assert abs(arguments.max_train_steps - total) <= 1
    assert rates(arguments, arguments.max_train_steps)[: at + 1] == before[: at + 1]


def rates(arguments: Arguments, total: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = make_schedule("wsd", optimizer, arguments.num_warmup_steps, total, decay_share=arguments.lr_decay_share)
    found = []
    for _ in range(total):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


# ---- facts


def test_facts_of_drawn_images(tmp_path):
    for number in range(4):
        mask = np.zeros((40, 60), np.uint8)
        mask[:, 30:] = 2
        mask[4:8, 4:8] = 1  # 16 pixels, in a region of its own
        mask[:, 59] = 9  # void
        image = np.full((40, 60, 3), 51 * number, np.uint8)
        image[:, ::2] += 10
        write_sample(tmp_path, f"{number}", image, mask)
    write_folder(tmp_path, count=0)
    train, _, _ = load_data(train_dir=str(tmp_path), validation_dir=str(tmp_path))
    facts = measure_facts(train, 3)
    assert (facts.num_images, facts.num_validation_images, facts.height, facts.width) == (4, 3, 40, 60)
    assert facts.class_names == ["road", "car", "tree"] and facts.num_channels == 3 and not facts.is_deep
    valid = 40 * 59
    assert facts.class_shares == pytest.approx([(40 * 30 - 16) / valid, 16 / valid, 40 * 29 / valid])
    assert facts.class_images == [1, 1, 1] and facts.void_share == pytest.approx(1 / 60)
    assert facts.object_sides == pytest.approx([math.sqrt(40 * 30 - 16), 4, math.sqrt(40 * 29)])
    assert facts.smallest_object() == ("car", 4)
    assert facts.mean == pytest.approx([(51 * 1.5 + 5) / 255] * 3, abs=1e-3)


@pytest.mark.parametrize("channels", [3, 5])
def test_channels_are_found_in_the_file(tmp_path, channels):
    write_folder(tmp_path, count=2)
    if channels != 3:
        for file in (tmp_path / "images").iterdir():
            file.unlink()
        for number in range(2):
            np.save(tmp_path / "images" / f"{number:03}.npy", np.zeros((channels, 24, 32), np.uint16))
    train, _, _ = load_data(train_dir=str(tmp_path), validation_dir=str(tmp_path), check=False)
    assert file_channels(train) == channels


# ---- what is said while it runs, and after


def curve(*scores):
    return [{"step": 10 * (index + 1), "mean_iou": score} for index, score in enumerate(scores)]


def falling(count):
    return [{"step": 2 * (index + 1), "loss": 1 / (index + 1)} for index in range(count)]


def test_warns_where_curves_part():
    assert "mean IoU is 30.0%" in report_page.curves_part(curve(0.2, 0.4, 0.35, 0.3), falling(20))
    assert report_page.curves_part(curve(0.2, 0.4, 0.35, 0.41), falling(20)) is None  # it came back
    rising = [{"step": entry["step"], "loss": -entry["loss"]} for entry in falling(20)]
    assert report_page.curves_part(curve(0.2, 0.4, 0.35, 0.3), rising) is None  # the loss has risen, too


def test_warns_of_classes_at_zero():
    iou = np.array([0.8, np.nan, 0.0])
    assert "pole (2.00% of the pixels, in 30 training images)" in report_page.classes_at_zero(iou, 60, 100, FACTS)
    assert report_page.classes_at_zero(iou, 40, 100, FACTS) is None  # too early
    assert report_page.classes_at_zero(np.array([0.8, 0.1, 0.01]), 60, 100, FACTS) is None


def findings(class_iou, training_iou=0.5, small=0.5, large=0.5):
    sizes = {
        name: {"mean_iou": iou, "objects": 10} for name, iou in (("small", small), ("medium", 0.5), ("large", large))
    }
    confusion = np.diag([100, 100, 100])
    return report_page.Findings(np.array(class_iou), confusion, sizes, training_iou, [], None)


def test_advice_follows_what_was_measured():
    flat = curve(0.5, 0.5, 0.5)
    settings = {"is_pretrained": True, "image_scale": 1.0}
    even = findings([0.5, 0.5, 0.5])
    assert report_page.advise(even, flat, FACTS, **settings) == []
    assert report_page.advise(even, curve(0.3, 0.4, 0.5), FACTS, **settings)[0].startswith("More time")
    assert "More images of pole" in report_page.advise(findings([0.7, 0.7, 0.1]), flat, FACTS, **settings)[0]
    assert "does not carry over" in report_page.advise(findings([0.5] * 3, 0.9), flat, FACTS, **settings)[0]
    assert (
        "image_size"
        in report_page.advise(
            findings([0.5] * 3, small=0.1, large=0.8), flat, FACTS, is_pretrained=True, image_scale=0.5
        )[0]
    )
    taken = findings([0.5] * 3)
    taken.confusion[2] = [60, 0, 40]
    assert "60% of the pixels of pole are taken for road" in report_page.advise(taken, flat, FACTS, **settings)[0]


# ---- runs


@pytest.fixture
def fast(monkeypatch):
    """Speeds are not measured, which takes processes of their own."""
    speed = Speed("no", 0.1, 0.2, 0.1)
    monkeypatch.setattr(automatic, "measure_speeds", lambda arguments, labels: [speed])


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data", count=12, size=(64, 64))


def test_given_arguments_stay(folder, fast):
    arguments = Arguments(train_dir=str(folder), crop_size=[32], learning_rate=0.5, time_budget="2m")
    decided = automatic.configure(arguments, {"train_dir", "crop_size", "learning_rate"}, show=lambda text: None)
    assert arguments.crop_size == [32] and arguments.learning_rate == 0.5
    assert not {"crop_size", "learning_rate"} & decided.reasons.keys()
    assert arguments.size == "b0" and arguments.architecture == "segformer" and arguments.time_budget is None
    assert all(decision.reason for decision in decided.decisions)
    assert {decision.name for decision in decided.decisions} <= vars(arguments).keys()


def test_recipe_with_reasons_is_the_same_run(folder, fast, tmp_path):
    arguments = Arguments(train_dir=str(folder), time_budget="2m")
    decided = automatic.configure(arguments, {"train_dir"}, show=lambda text: None)
    file = tmp_path / "train.args"
    file.write_text(as_recipe(arguments, decided.reasons))
    again = parse_training(["--recipe", str(file)])
    assert replace(again, automatic=None) == arguments
    assert automatic.frozen_decisions(file, again).reasons == decided.reasons
    assert "# learning_rate: recipe segformer_b0_camvid\n--learning_rate 0.0015\n" in file.read_text()


def test_five_channels_of_sixteen_bits(tmp_path, fast):
    write_folder(tmp_path, count=8)
    for file in (tmp_path / "images").iterdir():
        file.unlink()
        array = np.random.default_rng(0).integers(0, 65536, (5, 24, 32)).astype(np.uint16)
        np.save(file.with_suffix(".npy"), array)
    arguments = Arguments(train_dir=str(tmp_path), time_budget="2m")
    automatic.configure(arguments, {"train_dir"}, show=lambda text: None)
    assert arguments.num_channels == 5 and arguments.photometric == "none" and arguments.backbone_weights is None
    assert arguments.image_mean == pytest.approx([0.5] * 5, abs=0.02)


@pytest.mark.slow
def test_run_settles_its_steps_once_and_can_be_repeated(folder, fast, tmp_path, monkeypatch):
    """The total changes at the first evaluation; the run from the recipe, and a resumed one, have the same weights.

    A step takes 0.2 s and an evaluation one, by a clock that no other program on the machine slows down.
    """
    clock = SimpleNamespace(seconds=0.0, perf_counter=lambda: clock.seconds)
    for module in (automatic, automatic_run, loop):
        monkeypatch.setattr(module, "time", clock)

    def takes(method, seconds):
        def timed(self, *arguments):
            clock.seconds += seconds
            return method(self, *arguments)

        return timed

    monkeypatch.setattr(loop.TrainingRun, "step", takes(loop.TrainingRun.step, 0.2))
    monkeypatch.setattr(loop.TrainingRun, "evaluate", takes(loop.TrainingRun.evaluate, 1.0))

    def arguments(**more):
        small = {"config_overrides": json.dumps(TINY), "crop_size": [32], "logging_steps": 1}
        return Arguments(train_dir=str(folder), **small, **more)

    first = arguments(time_budget="20s", output_dir=str(tmp_path / "first"))
    given = {"train_dir", "crop_size", "config_overrides", "logging_steps", "output_dir"}
    decided = automatic.configure(first, given, show=lambda text: None)
    planned = first.max_train_steps
    run = automatic_run.AutomaticRun(first, automatic=decided)
    results = run.run()
    assert run.steps.total != planned and results["step"] <= run.steps.total
    assert 0.8 * 20 < decided.elapsed() <= 20  # the part of the report, which takes no time here, is left over
    recipe = tmp_path / "first" / "train.args"
    assert f"--max_train_steps {run.steps.total}" in recipe.read_text()
    second = parse_training(["--recipe", str(recipe), "--output_dir", str(tmp_path / "second")])
    frozen = automatic.frozen_decisions(recipe, second, {"output_dir"})
    automatic_run.AutomaticRun(second, automatic=frozen).run()
    third = replace(second, output_dir=str(tmp_path / "third"))
    stopped = automatic_run.AutomaticRun(third, automatic=frozen)
    stop = threading.Event()
    stop.set()
    with pytest.raises(loop.Stopped):
        stopped.run(stop)
    third = replace(third, resume_from_checkpoint="latest")
    automatic_run.AutomaticRun(third, automatic=automatic.frozen_decisions(recipe, third)).run()
    names = ("first", "second", "third")
    weights = {(tmp_path / name / "last" / "model.safetensors").read_bytes() for name in names}
    assert len(weights) == 1
    page = (tmp_path / "first" / "report.html").read_text()
    assert "What was decided" in page and "learning_rate" in page and "data:image/jpeg;base64" in page
    assert 'src="http' not in page and "href" not in page  # nothing outside of it
    results = json.loads((tmp_path / "first" / "all_results.json").read_text())
    assert {"decisions", "warnings", "advice"} <= results.keys()
    assert "# learning_rate: " in (tmp_path / "first" / "README.md").read_text()
