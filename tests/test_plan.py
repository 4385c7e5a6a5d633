"""`segtx plan`: its choice among known costs, its command, and one real measurement."""

import json
import shlex
from datetime import timedelta

import pytest

from hf_segtx.cli.plan import run
from hf_segtx.cli.training_flags import parse_training
from hf_segtx.data.labels import Labels
from hf_segtx.training import plan
from hf_segtx.training.setup import split_batch


FLAGS = [
    "--train_dir",
    "x",
    "--size",
    "b0",
    "--crop_size",
    "512",
    "--total_batch_size",
    "12",
    "--max_train_steps",
    "100",
]
LABELS = Labels.from_id2label({index: f"class {index}" for index in range(5)})


def costs(arguments, labels):
    """1 GB, and an image of 512x512 another 3, half of it in bf16, a third with checkpointing, which costs a third."""
    images = arguments.per_device_train_batch_size * arguments.crop_size[0] * arguments.crop_size[-1] / 512**2
    bf16, checkpointing = arguments.mixed_precision == "bf16", arguments.gradient_checkpointing
    memory = 1 + 3 * images / (2 if bf16 else 1) / (3 if checkpointing else 1)
    return plan.Step(memory, 0.3 * images * (4 / 3 if checkpointing else 1) * (2 / 3 if bf16 else 1), 0.1)


@pytest.mark.parametrize(
    ("flags", "memory", "expected"),
    [  # expected: crop, precision, checkpointing, micro-batch, seconds of the step
        ([], 100, ([512], "bf16", False, 12, 12 * 0.2 + 0.1)),
        ([], 12, ([512], "bf16", False, 6, 12 * 0.2 + 0.1)),  # seven would fit, six divide twelve
        (["--mixed_precision", "no"], 12, ([512], "no", False, 3, 12 * 0.3 + 0.1)),
        (["--mixed_precision", "no"], 3, ([512], "no", True, 2, 12 * 0.4 + 0.1)),
        (["--gradient_checkpointing"], 100, ([512], "bf16", True, 12, 12 * 0.8 / 3 + 0.1)),
        (["--mixed_precision", "no"], 1.7, ([384], "no", True, 1, 12 * 0.4 * 0.75**2 + 0.1)),
    ],
)
def test_proposal_is_the_fastest_that_fits(flags, memory, expected, monkeypatch, capsys):
    monkeypatch.setattr(plan, "measure_apart", costs)
    run([*FLAGS, *flags, "--num_labels", "5", "--memory_gb", str(memory)])
    command = capsys.readouterr().out.splitlines()
    crop, precision, checkpointing, micro_batch, seconds = expected
    assert f"{12 // micro_batch} x {micro_batch} images takes {seconds:.2f} s" in command[-2]
    assert f"100 steps take {timedelta(seconds=round(100 * seconds))} hours" in command[-2]
    chosen = parse_training(shlex.split(command[-1])[2:])  # what `segtx train` makes of it
    split_batch(chosen, num_processes=1, on_cpu=True)
    assert chosen.per_device_train_batch_size == micro_batch and chosen.gradient_accumulation_steps == 12 / micro_batch
    assert (chosen.crop_size, chosen.mixed_precision, chosen.gradient_checkpointing) == (crop, precision, checkpointing)


def test_several_processes_share_the_step(monkeypatch, capsys):
    monkeypatch.setattr(plan, "measure_apart", costs)
    flags = [*FLAGS, "--mixed_precision", "no", "--num_labels", "5", "--memory_gb", "8", "--num_processes", "3"]
    run(flags)
    *_, says, command = capsys.readouterr().out.splitlines()
    assert "a step of 2 x 2 images of each of 3 processes takes 1.30 s" in says  # 4 * 0.3 + 0.1
    assert "100 steps take 0:02:10 hours" in says
    launcher, words = command.split(" train ")
    assert launcher == "accelerate launch --num_processes 3 -m hf_segtx"
    chosen = parse_training(shlex.split(words))
    split_batch(chosen, num_processes=3, on_cpu=True)
    assert (chosen.per_device_train_batch_size, chosen.gradient_accumulation_steps) == (2, 2)
    with pytest.raises(ValueError, match="5 processes cannot share 12 images"):
        run([*flags, "--num_processes", "5"])


def test_what_cannot_be_planned_gets_a_clear_error(monkeypatch):
    monkeypatch.setattr(plan, "measure_apart", costs)
    with pytest.raises(ValueError, match="not even one image of 256x256 pixels fits into 0.5 GB"):
        run([*FLAGS, "--num_labels", "5", "--memory_gb", "0.5"])
    with pytest.raises(ValueError, match="add --num_images"):
        run(["--train_dir", "x", "--num_labels", "5"])


def test_epochs_are_counted_in_steps(monkeypatch, capsys):
    monkeypatch.setattr(plan, "measure_apart", costs)
    flags = ["--num_train_epochs", "2.5", "--total_batch_size", "12", "--num_labels", "5", "--num_images", "100"]
    run(["--train_dir", "x", "--memory_gb", "100", *flags])
    assert "5 classes, 23 steps of 12 images" in capsys.readouterr().out  # ceil(2.5 * ceil(100 / 12))


def test_a_step_is_measured_with_all_that_a_run_has():
    config = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}
    flags = ["--config_overrides", json.dumps(config), "--crop_size", "32", "64", "--loss", "focal + dice"]
    flags += ["--ema_decay", "0.9", "--class_weights", "auto", "--gradient_checkpointing", "--num_warmup_steps", "5"]
    flags += ["--train_dir", "x", "--per_device_train_batch_size", "2"]
    step = plan.measure(parse_training(flags), LABELS)
    assert step.memory > 0.05 and step.seconds > 0 and step.update_seconds > 0  # torch alone takes more than 50 MB


@pytest.mark.slow
def test_a_real_plan_in_processes_of_their_own(capsys):
    config = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}
    flags = ["--config_overrides", json.dumps(config), "--crop_size", "32", "--total_batch_size", "4"]
    run([*flags, "--mixed_precision", "no", "--max_train_steps", "10", "--train_dir", "x", "--num_labels", "5"])
    assert "a step of 1 x 4 images" in capsys.readouterr().out
