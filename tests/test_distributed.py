"""`segtx train` on several processes (gloo, CPU): what one process computes, and written by one of them.

NCCL, and FSDP2 as `accelerate launch` starts it, need GPUs; here FSDP2 shards the model over CPU processes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig
from test_train import ROOT, run
from transformers import AutoModelForSemanticSegmentation


# 16 images a step, however they are spread; 5 validation images, which neither 2 nor 4 processes share evenly.
FLAGS = ["--total_batch_size", "16", "--max_eval_samples", "5", "--max_train_samples", "40", "--max_train_steps", "4"]
FLAGS += ["--optimizer", "sgd", "--learning_rate", "0.1", "--logging_steps", "1", "--evaluation_steps", "4"]

SCRIPT = """
import os, pathlib, sys
sys.path.insert(0, TESTS)
import PIL.Image
import test_distributed
from test_train import plain_model, run
if int(os.environ["RANK"]) > 0:  # only the first process may write, but for accelerate's random states
    def refuse(*inputs, **keywords):
        raise AssertionError("a file written by another process than the first")
    pathlib.Path.write_text = PIL.Image.Image.save = os.replace = refuse
if os.environ.get("FSDP_VERSION"):
    test_distributed.shard_on_cpu()
for flags in FLAG_LISTS:
    run(*flags, build_model=plain_model)
"""


def shard_on_cpu():
    """Lets accelerate shard on CPU processes, too; it has the mode for accelerators only."""
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    original = AcceleratorState.__init__

    def init(self, *inputs, fsdp_plugin=None, **keywords):
        original(self, *inputs, fsdp_plugin=fsdp_plugin, **keywords)
        fsdp_plugin = fsdp_plugin or vars(self).get("fsdp_plugin")  # later instances share the state of the first
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    AcceleratorState.__init__ = init


def launch(processes: int, folder: Path, flag_lists: list[list], **environment) -> None:
    """Runs a training once for each list of flags, in each of the processes."""
    script = folder / f"script_{processes}.py"
    lists = [[str(word) for word in flags] for flags in flag_lists]
    script.write_text(SCRIPT.replace("TESTS", repr(str(ROOT / "tests"))).replace("FLAG_LISTS", repr(lists)))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    finished = subprocess.run([*launcher, str(script)], env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-5000:]


def results(folder: Path) -> tuple[list[float], dict]:
    """Losses and gradient norms of the steps, and all_results.json."""
    values = json.loads((folder / "all_results.json").read_text())
    return [entry[key] for entry in values["losses"] for key in ("loss", "gradient_norm")], values


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """A run with the whole batch at once, and one whose weights stay as they are."""
    from test_train import plain_model

    folder = tmp_path_factory.mktemp("one")
    for name, flags in (("run", []), ("still", ["--learning_rate", "0"])):
        run(*FLAGS, "--per_device_train_batch_size", 16, *flags, "--output_dir", folder / name, build_model=plain_model)
    return folder


def assert_same_run(folder: Path, expected: Path) -> None:
    curve, expected_curve = results(folder)[0], results(expected)[0]
    assert len(curve) == 8
    # float32 sums over 16 images in another order, four steps long
    torch.testing.assert_close(torch.tensor(curve), torch.tensor(expected_curve), rtol=1e-4, atol=1e-5)
    states = [torch.load(place / "last/training_state/optimizer.bin")["state"] for place in (folder, expected)]
    for mine, theirs in zip(*(state.values() for state in states), strict=True):
        torch.testing.assert_close(mine["momentum_buffer"], theirs["momentum_buffer"], atol=1e-5, rtol=1e-3)


def test_four_accumulated_micro_batches_match_one_batch(one_process, tmp_path):
    from test_train import plain_model

    out = tmp_path / "out"
    run(*FLAGS, "--per_device_train_batch_size", 4, "--output_dir", out, build_model=plain_model)
    assert results(out)[1]["arguments"].count("--gradient_accumulation_steps 4") == 1
    assert_same_run(out, one_process / "run")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_match_one(one_process, tmp_path, processes):
    """Losses, gradients and scores; the first process alone writes. Four processes with two micro-batches each."""
    size = ["--per_device_train_batch_size", 8 if processes == 2 else 2]
    flag_lists = [[*FLAGS, *size, "--output_dir", tmp_path / "run"]]
    flag_lists += [[*FLAGS, *size, "--learning_rate", "0", "--output_dir", tmp_path / "still"]]
    launch(processes, tmp_path, flag_lists)
    assert_same_run(tmp_path / "run", one_process / "run")
    # With the same weights the same scores: each image counted once, none twice to fill a batch.
    mine, theirs = (results(folder / "still")[1] for folder in (tmp_path, one_process))
    assert mine["mean_iou"] == pytest.approx(theirs["mean_iou"], abs=1e-9)
    assert mine["classes"] == theirs["classes"]


@pytest.mark.slow
def test_sharded_model_matches_one_process(one_process, tmp_path):
    """FSDP2: the same losses; saved whole; resumed after a stop."""
    sharded = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
    sharded |= {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT", "FSDP_RESHARD_AFTER_FORWARD": "true"}
    flags = [*FLAGS, "--per_device_train_batch_size", 8, "--checkpointing_steps", 2, "--save_total_limit", 3]
    launch(2, tmp_path, [[*flags, "--output_dir", tmp_path / "run"]], **sharded)
    torch.testing.assert_close(
        torch.tensor(results(tmp_path / "run")[0]), torch.tensor(results(one_process / "run")[0]), rtol=1e-4, atol=1e-5
    )
    whole, sharded_model = (
        AutoModelForSemanticSegmentation.from_pretrained(folder / "run").state_dict()
        for folder in (one_process, tmp_path)
    )
    for name, value in whole.items():
        torch.testing.assert_close(sharded_model[name], value, rtol=1e-3, atol=1e-5)
    resume = [*flags, "--output_dir", tmp_path / "run", "--resume_from_checkpoint", tmp_path / "run" / "step_2"]
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    launch(2, tmp_path, [resume], **sharded)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_what_is_wrong_is_said_once(tmp_path):
    """By the main process, for all; each ends with exit status 2."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "hf_segtx"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [*launcher, "train", "--size", "b9", "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.stderr.count("error: unknown SegFormer size 'b9'") == 1
    assert "exitcode  : 2" in done.stderr and "exitcode  : 1 " not in done.stderr


@pytest.mark.parametrize("file", sorted((ROOT / "examples/accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_configuration_is_known(file):
    """Every key is one of the installed accelerate."""
    config = ClusterConfig.from_yaml_file(file)
    text = file.read_text()
    assert f"--config_file examples/accelerate/{file.name}" in text
    assert config.mixed_precision in ("no", "bf16")
