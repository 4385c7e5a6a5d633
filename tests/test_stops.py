"""How a run ends before its end: signals, lost processes, weights that are not finite; and the advice it gives then."""

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
import torch
from test_train import ROOT, TINY, command, run, weights

from hf_segtx.cli import train as train_command
from hf_segtx.training import loop
from hf_segtx.training.machine import clear_errors, is_out_of_memory


def at_step(monkeypatch, actions: dict):
    """Calls functions in the middle of steps, by their numbers from 1."""
    original, calls = loop.loss_shares, []

    def shares(*inputs):
        calls.append(inputs)
        if len(calls) in actions:
            actions[len(calls)]()
        return original(*inputs)

    monkeypatch.setattr(loop, "loss_shares", shares)


def send(number: int):
    return lambda: os.kill(os.getpid(), number)


# ---- signals


def test_ctrl_c_saves_and_the_command_it_prints_goes_on(tmp_path, monkeypatch, capfd):
    run("--output_dir", tmp_path / "whole")
    with monkeypatch.context() as patch:
        at_step(patch, {5: send(signal.SIGINT)})  # no step that would be saved anyway
        assert command(*TINY, "--output_dir", tmp_path / "out") == 130
    assert os.readlink(tmp_path / "out" / "last") == "step_5"
    printed = capfd.readouterr().err
    assert "stopping after this step, with a checkpoint" in printed
    assert "stopped; to go on from the checkpoint step_5:" in printed
    words = printed.split("segtx train ")[1].split()
    assert command(*words) == 0
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_second_ctrl_c_ends_at_once(tmp_path, monkeypatch, capsys):
    def twice():
        send(signal.SIGINT)()
        send(signal.SIGINT)()  # a launcher's, in the same moment: no second one of the user
        time.sleep(1.1)
        send(signal.SIGINT)()

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        at_step(patch, {3: twice})
        assert command(*TINY, "--output_dir", tmp_path / "out") == 130
    assert os.readlink(tmp_path / "out" / "last") == "step_2"
    assert "to go on from the checkpoint step_2" in capsys.readouterr().err
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        at_step(patch, {1: twice})
        assert command(*TINY, "--output_dir", tmp_path / "new") == 130
    printed = capsys.readouterr().err
    assert "stopped before the first checkpoint; to start this run again:" in printed
    assert command(*printed.split("segtx train ")[1].split()) == 0  # which is true


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_before_the_first_step_ends_the_command(tmp_path, monkeypatch, capsys, number, status):
    original = loop.setup.read_data
    monkeypatch.setattr(loop.setup, "read_data", lambda *inputs: (send(number)(), original(*inputs))[1])
    assert command(*TINY, "--output_dir", tmp_path / "out") == status
    assert "stopped before the first step; nothing was written" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


GROUP = [*TINY, "--max_train_steps", "4000", "--evaluation_steps", "4000", "--checkpointing_steps", "4000"]
GROUP += ["--dataloader_num_workers", "2"]


def start_group(out, *launcher):
    """The command in a process group of its own, some steps on."""
    words = [sys.executable, "-m", *launcher, "hf_segtx", "train", *GROUP, "--output_dir", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, env=environment
    )
    for _ in range(600):
        if (out / "train.args").exists() or process.poll() is not None:
            break
        time.sleep(0.2)
    time.sleep(6)
    return process


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_to_the_process_group_saves(tmp_path, number, status):
    """As schedulers and terminals send it; the loader's processes get it, too."""
    process = start_group(tmp_path / "out")
    children = psutil.Process(process.pid).children()
    os.killpg(process.pid, number)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == status and "Traceback" not in text, text[-3000:]
    (saved,) = (tmp_path / "out").glob("step_*")
    assert f"to go on from the checkpoint {saved.name}:\npython -m hf_segtx train --recipe" in text
    assert len(children) == 2 and not psutil.wait_procs(children, timeout=20)[1]  # nobody stays behind


@pytest.mark.slow
def test_command_that_goes_on_has_the_launcher(tmp_path):
    """Two processes by torchrun: a signal to the launcher stops them, and what they print goes on."""
    out = tmp_path / "out"
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    process = start_group(out, *launcher)
    os.kill(process.pid, signal.SIGTERM)
    text, _ = process.communicate(timeout=120)
    (saved,) = out.glob("step_*")
    printed = text.split(f"to go on from the checkpoint {saved.name}:\n")[1].splitlines()[0]
    assert printed.startswith(f"python -m {' '.join(launcher)} hf_segtx train --recipe {out}/train.args ")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    again = subprocess.Popen(
        printed.split(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    lines = []
    for line in again.stdout:
        lines.append(line)
        if line.startswith("steps "):
            break
    again.terminate()
    again.communicate(timeout=120)
    assert f"steps {saved.name.removeprefix('step_')} to 4000 of 8 images on 2 x cpu" in lines[-1]


# ---- processes that are gone, and what they could not read


def test_reading_process_that_is_killed_gets_a_message(tmp_path, monkeypatch, capsys):
    def kill_a_worker():
        multiprocessing.active_children()[0].kill()

    with monkeypatch.context() as patch:
        at_step(patch, {3: kill_a_worker})
        start = time.monotonic()
        flags = ["--dataloader_num_workers", "2", "--max_train_steps", "60", "--evaluation_steps", "60"]
        assert command(*TINY, *flags, "--output_dir", tmp_path / "out") == 2
    assert time.monotonic() - start < 60
    printed = capsys.readouterr().err
    assert "a process that reads images is gone" in printed and "--dataloader_num_workers" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. \nmore"), OSError, "(pid 7) is killed"),
        (MemoryError(), OSError, "not enough memory (of the machine); lower per_device_train_batch_size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), OSError, "not enough memory (CUDA out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you"), OSError, "not enough memory"),
        (RuntimeError("a fault of ours"), RuntimeError, "a fault of ours"),
        (ValueError("Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
                    '  File "x.py", line 1\nValueError: x.png is cut off'), ValueError, "x.png is cut off"),
    ],
)  # fmt: skip
def test_what_torch_says_of_the_machine_becomes_clear(error, kind, message):
    with pytest.raises(kind) as caught, clear_errors():
        raise error
    assert message in str(caught.value) and "Traceback" not in str(caught.value)


def test_memory_that_is_really_lacking_is_recognized():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)


# ---- weights that are not finite


@pytest.mark.parametrize("step", [2, 6])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch, capsys, step):
    """The loss of the step was finite; the update was not. Step 2 has a checkpoint, step 6 is the last."""
    original, calls = loop.means, []

    def spoil(accelerator, *numbers):
        calls.append(numbers)
        if len(calls) == step:
            for model in accelerator._models:
                next(model.parameters()).data.fill_(math.inf)
        return original(accelerator, *numbers)

    monkeypatch.setattr(loop, "means", spoil)
    assert command(*TINY, "--output_dir", tmp_path / "out") == 2
    printed = capsys.readouterr().err
    assert f"after step {step} the weights are not finite (backbone" in printed and "--learning_rate" in printed
    out = tmp_path / "out"
    assert not (out / f"step_{step}").exists() and not (out / "model.safetensors").exists()
    assert not list(out.glob(".partial*"))


# ---- what the progress bar says


def test_loss_is_shown_from_the_first_step_on(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(loop.tqdm, "set_postfix", lambda bar, values, **_: shown.append((bar.n, values)))
    results = run("--logging_steps", "3", "--output_dir", tmp_path / "out")
    assert [step for step, _ in shown] == [0, 1, 2, 2, 5]  # before the bar moves
    first = [float(values["loss"]) for _, values in shown]
    assert all(math.isfinite(loss) for loss in first)
    assert [float(f"{entry['loss']:.3g}") for entry in results["losses"]] == [first[3], first[4]]


# ---- what of a checkpoint is lost


def test_checkpoint_without_its_random_numbers_is_not_resumed(tmp_path, capsys):
    """accelerate would go on without a word, and to other weights."""
    run("--output_dir", tmp_path)
    newest = max(tmp_path.glob("step_*"))
    os.truncate(newest / "training_state" / "random_states_0.pkl", 100)
    assert command(*TINY, "--output_dir", tmp_path, "--resume_from_checkpoint", "latest") == 2
    printed = capsys.readouterr().err
    assert f"{newest.name}/training_state/random_states_0.pkl is cut off" in printed and "earlier step_N" in printed


# ---- how it was started


@pytest.mark.parametrize(
    ("own", "environment", "launcher", "expected"),
    [
        ("/bin/python3.11 /venv/bin/segtx train", {}, "", "segtx train"),
        ("python examples/train.py", {}, "", "python examples/train.py"),
        ("/x/python -m hf_segtx train", {}, "", "python -m hf_segtx train"),
        ("/x/python -u -m hf_segtx train", {"ACCELERATE_MIXED_PRECISION": "no"},
         "/x/python /venv/bin/accelerate launch --num_processes 2 -m hf_segtx train",
         "accelerate launch --num_processes 2 -m hf_segtx train"),
        ("/x/python -u examples/train.py", {"TORCHELASTIC_RUN_ID": "1"},
         "/x/python /venv/bin/torchrun --nproc_per_node 2 examples/train.py",
         "torchrun --nproc_per_node 2 examples/train.py"),
        ("/x/python -m pytest", {}, "", "segtx train"),
    ],
)  # fmt: skip
def test_advice_names_the_way_the_command_was_started(own, environment, launcher, expected, monkeypatch):
    flags = ["--seed", "1"] if "pytest" not in own else []
    for name in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "orig_argv", [*own.split(), *flags])
    if launcher:
        text = "\0".join([*launcher.split(), *flags, ""])
        monkeypatch.setattr(train_command, "Path", lambda path: SimpleNamespace(read_text=lambda: text)
                            if str(path).startswith("/proc") else type(ROOT)(path))  # fmt: skip
    assert train_command._starting_command(["--seed", "1"]) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("said", "flags", "expected"), [("1", [], 1), ("", [], None),
                                                         ("", ["--num_cpu_threads_per_process", "1"], 1)])  # fmt: skip
def test_threads_are_those_the_user_says_under_a_launcher_too(tmp_path, said, flags, expected):
    """Without a word of the user `accelerate launch` says 1, or the number of cores that it counts."""
    (tmp_path / "threads.py").write_text(
        "import torch\nfrom accelerate import Accelerator\nfrom hf_segtx.training.machine import use_cores\n"
        "use_cores(Accelerator(cpu=True), None)\nprint('threads', torch.get_num_threads())\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"PYTHONPATH": str(ROOT)} | ({"OMP_NUM_THREADS": said} if said else {})
    words = [sys.executable, "-m", "accelerate.commands.launch", *flags, str(tmp_path / "threads.py")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert f"threads {expected or len(os.sched_getaffinity(0))}\n" in done.stdout
