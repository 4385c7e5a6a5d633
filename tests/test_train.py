"""`segtx train`: what comes out of a run, exact resume, accumulation, recipes, and what bad input gets."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    pipeline,
)

from hf_segtx.cli import main
from hf_segtx.cli.training_flags import parse_training
from hf_segtx.data.labels import Labels
from hf_segtx.data.scenes import SceneDataset
from hf_segtx.training import checkpoints, loop, setup
from hf_segtx.training.output_dir import RunLock, claim_output_dir, default_output_dir
from hf_segtx.training.recipes import as_recipe


ROOT = Path(__file__).resolve().parent.parent
CONFIG = {
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 16,
    "hidden_dropout_prob": 0.2,
    "drop_path_rate": 0.3,
}
# Six steps of two micro-batches of two scenes of 64x64 pixels; checkpoints after 2, 4, 6, evaluations after 3 and 6.
TINY = ["--config_overrides", json.dumps(CONFIG), "--crop_size", "64", "--max_train_samples", "10"]
TINY += ["--max_eval_samples", "3", "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"]
TINY += ["--max_train_steps", "6", "--evaluation_steps", "3", "--checkpointing_steps", "2", "--logging_steps", "1"]
TINY += ["--learning_rate", "1e-3", "--num_warmup_steps", "1"]


def run(*flags, **keywords):
    return loop.train(parse_training([*TINY, *map(str, flags)]), **keywords)


def command(*flags) -> int:
    """Exit status of `segtx train`."""
    return main(["train", *map(str, flags)])


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run: (its folder, its results)."""
    folder = tmp_path_factory.mktemp("run") / "out"
    return folder, run("--output_dir", folder)


# ---- what a run leaves


def test_run_leaves_loadable_models_and_results(finished):
    folder, results = finished
    for place in (folder, folder / "best", folder / "last"):
        model = AutoModelForSemanticSegmentation.from_pretrained(place)
        assert type(model).__name__ == "SegFormerForSemanticSegmentation"
        assert model.config.id2label[0] == "sky" and len(model.config.palette) == model.config.num_labels
        assert AutoImageProcessor.from_pretrained(place).do_resize is False
    assert weights(folder) == weights(folder / "last")
    assert json.loads((folder / "all_results.json").read_text()) == results
    assert [entry["step"] for entry in results["evaluations"]] == [3, 6]
    assert results["best_mean_iou"] == max(entry["mean_iou"] for entry in results["evaluations"])
    assert set(results["classes"]) == set(model.config.id2label.values())
    card = (folder / "README.md").read_text()
    assert f"{100 * results['mean_iou']:.2f}" in card and results["protocol"] in card
    with Image.open(folder / "predictions.png") as picture:
        assert picture.width > 300
    assert sorted(path.name for path in folder.glob("step_*")) == sorted({"step_6", f"step_{results['best_step']}"})
    assert not list(folder.glob(".partial*"))


def test_results_match_the_command_evaluate(finished, tmp_path):
    folder, results = finished
    flags = ["--max_eval_samples", "3", "--batch_size", "2", "--output_dir", str(tmp_path / "scores")]
    assert main(["evaluate", str(folder), *flags]) == 0
    again = json.loads((tmp_path / "scores" / "evaluation.json").read_text())
    for key in ("mean_iou", "mean_accuracy", "overall_accuracy", "protocol"):
        assert again[key] == results[key]
    for name, scores in results["classes"].items():
        assert {key: again["classes"][name][key] for key in scores} == scores


def test_best_model_at_end(finished, tmp_path):
    _, results = finished
    chosen = run("--output_dir", tmp_path / "out", "--load_best_model_at_end")
    assert chosen["mean_iou"] == results["best_mean_iou"]
    assert weights(tmp_path / "out") == weights(tmp_path / "out" / "best")


# ---- resume


class Kill(BaseException):
    """Stands in for SIGKILL: no handler knows it."""


def stop_at(monkeypatch, name: str, call: int, error: BaseException):
    """Lets the function `name` of the loop, wherever it is called, raise at its `call`-th call."""
    original, calls = getattr(loop, name), []

    def wrapper(*inputs, **keywords):
        calls.append(name)
        if len(calls) == call:
            raise error
        return original(*inputs, **keywords)

    for module in (loop, checkpoints):
        monkeypatch.setattr(module, name, wrapper, raising=False)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("loss_shares", 4),
        ("point", 3),  # between a checkpoint and the link to it
        pytest.param("loss_shares", 2, marks=pytest.mark.slow),  # before the first checkpoint
        pytest.param("save_checkpoint", 2, marks=pytest.mark.slow),
        pytest.param("save_final", 1, marks=pytest.mark.slow),
    ],
)
def test_resumed_run_matches_uninterrupted_one(finished, tmp_path, monkeypatch, name, call):
    folder, results = finished
    with monkeypatch.context() as patch, pytest.raises(Kill):
        stop_at(patch, name, call, Kill())
        run("--output_dir", tmp_path / "out")
    (tmp_path / "out" / ".partial-step_6").mkdir()  # what a kill in the middle of writing leaves
    torch.manual_seed(123)  # the global generators are somewhere else after a restart
    resumed = run("--output_dir", tmp_path / "out", "--resume_from_checkpoint", "latest")
    assert weights(tmp_path / "out") == weights(folder)  # bit for bit
    assert resumed["evaluations"] == results["evaluations"]
    assert os.readlink(tmp_path / "out" / "best") == f"step_{results['best_step']}"
    optimizers = [torch.load(place / "last/training_state/optimizer.bin") for place in (folder, tmp_path / "out")]
    for mine, theirs in zip(*(optimizer["state"].values() for optimizer in optimizers), strict=True):
        assert torch.equal(mine["exp_avg_sq"], theirs["exp_avg_sq"])


def test_resume_from_a_path_into_the_same_folder(finished, tmp_path):
    folder, _ = finished
    shutil.copytree(folder, tmp_path / "out", symlinks=True)
    best = tmp_path / "out" / "best"
    run("--resume_from_checkpoint", best)
    assert weights(tmp_path / "out") == weights(folder)


# Runs train.py to its end once, then again with 20 kills. Each run is a fork, which has everything imported. Half of
# the kills wait for a checkpoint that is being written, the others for one that is, and then for a random time.
KILLS = """
import os, random, shutil, signal, sys, time
from pathlib import Path
sys.path.insert(0, TESTS)
from test_train import TINY, command

folder, draw, torn = Path(sys.argv[1]), random.Random(0), 0
flags = [*TINY, "--max_train_steps", "40", "--checkpointing_steps", "1", "--evaluation_steps", "20"]
flags += ["--ema_decay", "0.9", "--save_total_limit", "2"]

def start(out, *more):
    child = os.fork()
    if child == 0:
        os._exit(command(*flags, "--output_dir", folder / out, *more))
    return child

def is_running(child):
    return os.waitpid(child, os.WNOHANG)[0] == 0

assert os.waitstatus_to_exitcode(os.waitpid(start("whole"), 0)[1]) == 0
out, kills = folder / "killed", 0
while kills < 20:
    known, writing = set(out.glob("step_*")), kills % 2 == 0
    resume = ["--resume_from_checkpoint", "latest"] if (out / "train.args").exists() else []
    child = start("killed", *resume, "--dataloader_num_workers", str(kills % 3))
    cleaned = False  # of what the last kill left
    while is_running(child):
        partial = list(out.glob(".partial-step_*"))
        cleaned = cleaned or not partial
        if cleaned and partial if writing else set(out.glob("step_*")) - known:
            break
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.02 if writing else 0.1))
    assert is_running(child), "the run ended before it could be killed 20 times"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    torn += bool(list(out.glob(".partial-step_*")))
    kills += 1
assert torn >= 5, f"only {torn} of 20 kills came while a checkpoint was written"
print("killed 20 times,", torn, "of them while a checkpoint was written")
assert os.waitstatus_to_exitcode(os.waitpid(start("killed", "--resume_from_checkpoint", "latest"), 0)[1]) == 0
"""


@pytest.mark.slow
def test_run_that_was_killed_20_times_matches_uninterrupted_one(tmp_path):
    """SIGKILL at random moments and while checkpoints are written; also with other numbers of worker processes."""
    (tmp_path / "script.py").write_text(KILLS.replace("TESTS", repr(str(ROOT / "tests"))))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(tmp_path / "script.py"), str(tmp_path)], check=True, env=environment)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert weights(killed) == weights(whole)
    assert (killed / "last/training_state/model.safetensors").read_bytes() == (
        whole / "last/training_state/model.safetensors"
    ).read_bytes()
    results = [json.loads((folder / "all_results.json").read_text()) for folder in (whole, killed)]
    assert results[0]["evaluations"] == results[1]["evaluations"]
    kept = ("step", "loss", "gradient_norm", "learning_rate")
    curves = [[[entry[key] for key in kept] for entry in result["losses"]] for result in results]
    assert curves[0] == curves[1]


@pytest.mark.slow
def test_streamed_run_resumes_exactly(tmp_path, monkeypatch):
    """Parquet shards read in place, with and without worker processes; killed in the second epoch."""
    import datasets
    from datasets.table import embed_table_storage

    scenes = SceneDataset(12, seed=1, size=(80, 96))
    masks = [Image.fromarray(item["label"].astype("uint8")) for item in scenes]
    rows = [{"image": item["image"], "label": mask} for item, mask in zip(scenes, masks, strict=True)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    data = tmp_path / "shards"
    (data / "data").mkdir(parents=True)
    for split, start, stop in (("train-00000-of-00002", 0, 5), ("train-00001-of-00002", 5, 10), ("validation", 10, 12)):
        table = datasets.Dataset.from_list(rows[start:stop], features=features).with_format("arrow")
        table = table.map(embed_table_storage, batched=True).with_format(None)
        table.to_parquet(data / "data" / f"{split}.parquet", batch_size=2)  # row groups of two
    (data / "id2label.json").write_text(json.dumps(scenes.labels.id2label))
    flags = ["--dataset_name", data, "--streaming"]
    results = run(*flags, "--output_dir", tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Kill):
        stop_at(patch, "loss_shares", 4, Kill())
        run(*flags, "--output_dir", tmp_path / "out")
    flags += ["--dataloader_num_workers", "2", "--resume_from_checkpoint", "latest"]
    resumed = run(*flags, "--output_dir", tmp_path / "out")
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
    assert resumed["evaluations"] == results["evaluations"]


# ---- steps


def plain_model(arguments, labels):
    """The model of the arguments without what depends on how images are spread: batch statistics and dropout."""
    model, processor = setup.build_model(arguments, labels)
    norm = model.decode_head.norm.eval()
    norm.train = lambda mode=True: norm  # stays so
    for module in model.modules():
        if "Drop" in type(module).__name__:
            module.forward = lambda x: x
    return model, processor


def test_accumulation_matches_big_batch(tmp_path):
    """Scenes have different numbers of void pixels, so means of means would differ."""
    flags = ["--max_train_steps", "3", "--optimizer", "sgd", "--class_weights", *"12131415", "--label_smoothing", "0.1"]
    states = []
    for batch, accumulation in ((1, 4), (4, 1)):
        out = tmp_path / str(batch)
        size = ["--per_device_train_batch_size", batch, "--gradient_accumulation_steps", accumulation]
        run(*flags, *size, "--output_dir", out, build_model=plain_model)
        states.append(torch.load(out / "last/training_state/optimizer.bin")["state"])
    for mine, theirs in zip(*(state.values() for state in states), strict=True):
        # float32 sums in another order, after three steps
        torch.testing.assert_close(mine["momentum_buffer"], theirs["momentum_buffer"], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("flag", ["--gradient_checkpointing", "--no_channels_last"])
def test_what_saves_memory_or_time_gives_the_same_weights(tmp_path, flag):
    flags = ["--max_train_steps", "2", "--max_grad_norm", "1"]
    run(*flags, "--output_dir", tmp_path / "a")
    run(*flags, "--output_dir", tmp_path / "b", flag)
    mine, theirs = (AutoModelForSemanticSegmentation.from_pretrained(tmp_path / name) for name in "ab")
    for (name, a), b in zip(mine.state_dict().items(), theirs.state_dict().values(), strict=True):
        # the same operations once more, or in another order; batch norm statistics are updated twice
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_averaged_weights_are_evaluated_saved_and_resumed(finished, tmp_path, monkeypatch):
    """Decay 0 averages nothing: the run is the one without. Else it is another one, which resumes exactly."""
    folder, _ = finished
    run("--output_dir", tmp_path / "zero", "--ema_decay", "0")
    assert weights(tmp_path / "zero") == weights(folder)
    flags = ["--ema_decay", "0.9"]
    results = run("--output_dir", tmp_path / "whole", *flags)
    assert weights(tmp_path / "whole") != weights(folder)
    with monkeypatch.context() as patch, pytest.raises(Kill):
        stop_at(patch, "loss_shares", 4, Kill())
        run("--output_dir", tmp_path / "out", *flags)
    resumed = run("--output_dir", tmp_path / "out", "--resume_from_checkpoint", "latest", *flags)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
    assert resumed["evaluations"] == results["evaluations"]


NEEDS_PEFT = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")


@pytest.mark.parametrize("tune", ["frozen", pytest.param("lora", marks=NEEDS_PEFT)])
def test_tuning_a_part_leaves_the_rest(finished, tmp_path, monkeypatch, tune):
    """The saved model has no adapters; its backbone is the start's, or with lora differs in linear layers only."""
    folder, _ = finished
    flags = ["--model_name_or_path", folder, "--tune", tune, "--freeze", "decode_head.norm", "--config_overrides", "{}"]
    run("--output_dir", tmp_path / "whole", *flags)
    start, end = (AutoModelForSemanticSegmentation.from_pretrained(place) for place in (folder, tmp_path / "whole"))
    changed = {name for name, value in end.state_dict().items() if not torch.equal(value, start.state_dict()[name])}
    linear = {name for name, module in end.named_modules() if isinstance(module, torch.nn.Linear)}
    backbone = {name.rpartition(".")[0] for name in changed if name.startswith("backbone.")}
    assert "decode_head.classifier.weight" in changed and "decode_head.norm.running_mean" not in changed
    assert backbone == ({name for name in linear if name.startswith("backbone.")} if tune == "lora" else set())
    with monkeypatch.context() as patch, pytest.raises(Kill):
        stop_at(patch, "loss_shares", 4, Kill())
        run("--output_dir", tmp_path / "out", *flags)
    run("--output_dir", tmp_path / "out", "--resume_from_checkpoint", "latest", *flags)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_trains_transformers_segformer(tmp_path):
    """Another model in the same loop, as the comparison of the two needs it."""

    def build(arguments, labels):
        _, processor = setup.build_model(arguments, labels)
        config = SegformerConfig(**CONFIG, id2label=labels.id2label, label2id=labels.label2id)
        return SegformerForSemanticSegmentation(config), processor

    results = run("--max_train_steps", "1", "--output_dir", tmp_path / "out", build_model=build)
    assert 0 <= results["mean_iou"] <= 1


def test_starts_from_a_model_with_other_classes(finished, tmp_path):
    folder, _ = finished
    data = make_folder(tmp_path / "data")
    flags = ["--model_name_or_path", folder, "--train_dir", data, "--validation_dir", data, "--max_train_steps", "1"]
    run(*flags, "--output_dir", tmp_path / "out", "--config_overrides", "{}")
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "wall", 1: "door"}


def test_one_class_is_named_by_the_pipeline_and_scored(tmp_path):
    data = make_folder(tmp_path / "data")
    (data / "classes.json").write_text('{"classes": [{"id": 1, "name": "door"}], "ignore_index": 255}')
    (data / "id2label.json").unlink(missing_ok=True)
    flags = ["--train_dir", data, "--validation_dir", data, "--max_train_steps", "1", "--output_dir", tmp_path / "out"]
    results = run(*flags)
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out")
    assert model.config.num_labels == 1 and model.decode_head.classifier.out_channels == 1
    assert model.config.id2label == {0: "background", 1: "door"} and list(results["classes"]) == ["background", "door"]
    answers = pipeline("image-segmentation", model=str(tmp_path / "out"))(str(next((data / "images").iterdir())))
    assert answers and {answer["label"] for answer in answers} <= {"background", "door"}


# ---- recipes


def test_command_line_overrides_recipe_and_recipe_is_written_back(tmp_path):
    recipe = tmp_path / "a.args"
    recipe.write_text("--learning_rate 1e-4  # why\n--crop_size 240 320\n--config_overrides '{\"a\": 1}' --compile\n")
    arguments = parse_training(["--recipe", str(recipe), "--learning_rate", "5"])
    assert (arguments.learning_rate, arguments.crop_size, arguments.compile) == (5.0, [240, 320], True)
    assert json.loads(arguments.config_overrides) == {"a": 1}
    recipe.write_text(as_recipe(arguments))
    assert parse_training(["--recipe", str(recipe)]) == arguments


# ---- trackers


def read_tensorboard(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "out" / "hf_segtx")).Reload()
    losses, scores = events.Scalars("loss"), events.Scalars("mean_iou")
    return [event.value for event in losses], [event.value for event in scores], len(events.Images("predictions"))


def read_wandb(folder: Path):
    data = next(folder.glob("wandb/offline-run-*/run-*.wandb")).read_bytes()
    found = [re.findall(key + rb"\x82\x01.([\d.]+)", data, re.DOTALL) for key in (rb"\x04loss", rb"\x08mean_iou")]
    losses, scores = ([float(value) for value in values[::2]] for values in found)  # in history and summary
    return losses, scores, len(list(folder.glob("wandb/offline-run-*/files/media/images/predictions*.png")))


def read_mlflow(folder: Path):
    import mlflow

    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    losses, scores = (mlflow.MlflowClient().get_metric_history(run.info.run_id, key) for key in ("loss", "mean_iou"))
    pictures = list(folder.glob("**/images/predictions*.png"))
    return [metric.value for metric in losses], [metric.value for metric in scores], len(pictures)


def read_trackio(folder: Path):
    import sqlite3

    rows = sqlite3.connect(folder / "trackio" / "hf_segtx.db").execute("select metrics from metrics order by id")
    entries = [json.loads(text) for (text,) in rows]
    values = {key: [entry[key] for entry in entries if key in entry] for key in ("loss", "mean_iou", "predictions")}
    return values["loss"], values["mean_iou"], len(values["predictions"])


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_trackers_get_scalars_and_pictures_and_no_token(tmp_path, monkeypatch, tracker):
    """As the tracker itself stored them, against what the run returns."""
    monkeypatch.chdir(tmp_path)
    settings = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "TRACKIO_DIR": str(tmp_path / "trackio")}
    for name, value in (settings | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}).items():
        monkeypatch.setenv(name, value)
    pytest.importorskip(tracker)
    token = "hf_" + "s3cret" * 5
    monkeypatch.setattr(sys, "argv", ["train.py", "--token", token, f"--hub_token={token}"])
    flags = ["--with_tracking", "--report_to", tracker, "--token", token, "--output_dir", tmp_path / "out"]
    results = run(*flags, "--max_train_steps", "4", "--evaluation_steps", "2")
    losses, scores, pictures = globals()[f"read_{tracker}"](tmp_path)
    assert losses == pytest.approx([entry["loss"] for entry in results["losses"]])  # to float32
    assert scores == pytest.approx([entry["mean_iou"] for entry in results["evaluations"]])
    assert pictures == 2
    for file in filter(Path.is_file, tmp_path.rglob("*")):
        assert token.encode() not in file.read_bytes(), file


# ---- bad input


def make_folder(folder: Path, ids=(0, 1), names=("wall", "door")) -> Path:
    """Two images of 64x64 pixels with masks of `ids`."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (64, 64), (90 * number, 10, 10)).save(folder / "images" / f"{number}.png")
        mask = Image.new("L", (64, 64), ids[0])
        mask.paste(ids[1], (0, 0, 32, 64))
        mask.save(folder / "masks" / f"{number}.png")
    (folder / "id2label.json").write_text(json.dumps(dict(enumerate(names))))
    return folder


def test_bad_input_gets_a_message(tmp_path, capsys):
    """Exit status 2 and one message that says what is wrong and what to do; nothing of a traceback."""
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    wrong = make_folder(tmp_path / "wrong", ids=(0, 7))
    out, slide = ["--output_dir", tmp_path / "new"], ["--eval_mode", "slide", "--window_size"]
    cases = [
        (["--output_dir", tmp_path / "file/out"], "choose another --output_dir"),
        (["--output_dir", tmp_path / "full"], "--overwrite_output_dir"),
        ([*out, "--resume_from_checkpoint", "latest"], "there is no run to resume"),
        ([*out, "--resume_from_checkpoint", tmp_path / "full"], "it has no config.json"),
        ([*out, "--recipe", tmp_path / "no.args"], "there is no recipe"),
        ([*out, "--leraning_rate", "1"], "did you mean --learning_rate?"),
        ([*out, "--crop_size", "1", "2", "3"], "--crop_size"),
        ([*out, "--logging_steps", "0"], "--logging_steps is 0; it must be at least 1"),
        ([*out, "--num_train_epochs", "0"], "--num_train_epochs is 0.0; it must lie in (0, 1e9]"),
        ([*out, "--loss", "focal(beta=1)"], "focal takes gamma=NUMBER"),
        ([*out, "--checkpointing_steps", "often"], "a number of steps, or 'epoch'"),
        ([*out, "--num_warmup_steps", "100"], "lower --num_warmup_steps"),
        ([*out, "--class_weights", "1", "2"], "give one each"),
        ([*out, "--with_tracking", "--report_to", "nothing"], "not installed"),
        ([*out, "--size", "b9"], "unknown SegFormer size"),
        ([*out, "--config_overrides", "{"], "--config_overrides { is not JSON"),
        ([*out, "--config_overrides", "[1]"], "--config_overrides [1] is no JSON object"),
        ([*out, "--config_overrides", '{"drop_pat_rate": 0}'], "does not know; did you mean drop_path_rate?"),
        ([*out, "--config_overrides", '{"num_labels": 3}'], "which data and architecture decide; omit it"),
        ([*out, "--auxiliary_loss_weight", "0.4"], "SegFormerConfig has no auxiliary heads"),
        ([*out, "--config_name", tmp_path / "full"], "is a folder without a config.json"),
        ([*out, "--model_revision", "x"], "--model_revision x is for --model_name_or_path"),
        ([*out, "--num_channels", "4"], "--image_mean has 3 values, [0.485, 0.456, 0.406], for 4 channels"),
        ([*out, "--image_size", "64", "32"], "--image_size is [64, 32]; give the shortest edge, then the longest"),
        ([*out, "--resize_mode", "squash"], "--resize_mode squash is for --image_size; add it"),
        ([*out, "--resize_mode", "long", "--image_size", "32", "64"], "with --resize_mode long, give the longest edge"),
        ([*out, "--scale_step", "2"], "--scale_step 2.0 leaves one factor of --scale_range"),
        ([*out, "--aspect_range", "2", "1"], "--aspect_range is [2.0, 1.0]; give smallest and largest factor"),
        ([*out, "--max_class_share", "0"], "--max_class_share is 0.0; it must lie in (0, 1]"),
        ([*out, "--flip_probability", "1.5"], "--flip_probability is 1.5; it must lie in [0, 1]"),
        ([*out, "--photometric", "none", "--photometric_strength", "2"], "--photometric_strength is for"),
        ([*out, "--window_size", "32"], "are for --eval_mode slide"),
        ([*out, *slide, "64", "--window_stride", "65"], "--window_stride (65, 65) for --window_size (64, 64)"),
        ([*out, *slide, "5"], "minimum_size"),
        ([*out, "--crop_size", "7"], "--crop_size [7] does not suit the network"),
        ([*out, "--tune", "frozen", "--freeze", "decode_head"], "--freeze leaves nothing to train"),
        ([*out, "--freeze", "stem"], "--freeze stem: there is no such module"),
        ([*out, "--lr_scheduler_type", "greedy"], "invalid choice: 'greedy'"),
        ([*out, "--class_weights", "auto", "1"], "give a number for each class, or 'auto' alone"),
        ([*out, "--train_dir", ""], "--train_dir is empty; omit it"),
        ([*out, "--cache_gigabytes", "99999"], "--cache_gigabytes 99999.0 cannot be had"),
        ([*out, "--train_dir", tmp_path / "nowhere"], "there is no such folder"),
        ([*out, "--train_dir", wrong, "--validation_dir", wrong], "value 7"),
        ([*out, "--model_name_or_path", tmp_path / "full"], "it has no config.json"),
        ([*out, "--push_to_hub"], "Hub"),
    ]
    for flags, message in cases:
        assert command(*TINY, *flags) == 2, flags
        printed = capsys.readouterr().err
        assert message in printed and "Traceback" not in printed, (flags, printed)
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"


def test_pictures_that_cannot_be_read_are_left_out_and_listed(tmp_path, capsys):
    """With --on_error skip in training and in validation; else the run ends before its first step and names them."""
    folders = [make_folder(tmp_path / name) for name in ("train", "val")]
    for folder in folders:
        (folder / "images" / "0.png").write_bytes(b"no picture")
    flags = [*TINY, "--train_dir", folders[0], "--validation_dir", folders[1], "--output_dir", tmp_path / "out"]
    flags = [str(flag) for flag in [*flags, "--max_train_steps", "2"]]
    assert command(*flags) == 2
    assert "train/images/0.png" in capsys.readouterr().err
    assert command(*flags, "--on_error", "skip") == 0
    listed = capsys.readouterr().out.partition("left out, 2 in all:\n")[2].splitlines()
    assert ["train/images/0.png" in listed[0], "val/images/0.png" in listed[1]] == [True, True]
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["skipped_samples"] == listed


def test_overwriting_deletes_only_the_earlier_run(finished, tmp_path):
    folder, _ = finished
    shutil.copytree(folder, tmp_path / "out", symlinks=True)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    run("--max_train_steps", "1", "--output_dir", tmp_path / "out", "--overwrite_output_dir")
    assert sorted(path.name for path in (tmp_path / "out").glob("step_*")) == ["step_1"]
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_resuming_another_plan_is_refused(finished, tmp_path):
    folder, _ = finished
    flags = ["--max_train_steps", "7", "--seed", "1", "--logging_steps", "3"]
    with pytest.raises(ValueError) as error:
        run("--output_dir", folder, "--resume_from_checkpoint", "latest", *flags)
    message = str(error.value)
    assert "total_steps: 6 there, 7 here" in message and "seed: 0 there, 1 here" in message
    assert "learning_rate" not in message and "logging_steps" not in message


def test_full_disk_leaves_the_last_checkpoint_whole(finished, tmp_path, monkeypatch, capsys):
    folder, _ = finished
    flags = [*TINY, "--output_dir", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        original = checkpoints.json.dumps

        def full(value, **options):
            if isinstance(value, dict) and value.get("step") == 4:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(value, **options)

        patch.setattr(checkpoints.json, "dumps", full)
        assert command(*flags) == 2
    message = capsys.readouterr().err
    assert "No space left" in message and "MB are free there; make room and go on from" in message
    assert "step_3" in message
    assert not list((tmp_path / "out").glob(".partial*"))
    assert command(*flags, "--resume_from_checkpoint", "latest") == 0
    assert weights(tmp_path / "out") == weights(folder)


def test_interrupt_says_how_to_go_on(finished, tmp_path, monkeypatch, capsys):
    folder, _ = finished
    with monkeypatch.context() as patch:
        stop_at(patch, "loss_shares", 4, KeyboardInterrupt())
        assert command(*TINY, "--output_dir", tmp_path / "out") == 130
    words = capsys.readouterr().err.split(" --recipe ")[1].split()
    assert command("--recipe", *words) == 0  # as printed
    assert weights(tmp_path / "out") == weights(folder)


def model_with_bad_steps(bad_steps):
    """For `build_model`: a model whose loss and batch norm statistics are nan at the given calls (from 1)."""

    def build(arguments, labels):
        model, processor = setup.build_model(arguments, labels)
        forward, calls = model.forward, []

        def wrapper(**inputs):
            output = forward(**inputs)
            calls.extend([inputs] * model.training)
            if model.training and len(calls) in bad_steps:
                model.decode_head.norm.running_mean.data.fill_(torch.nan)
                output.loss = output.loss * torch.nan
            return output

        model.forward = wrapper
        return model, processor

    return build


def test_step_with_a_loss_that_is_not_finite_is_left_out(tmp_path):
    out = tmp_path / "out"
    flags = ["--gradient_accumulation_steps", "1", "--evaluation_steps", "6"]
    results = run(*flags, "--output_dir", out, build_model=model_with_bad_steps({2, 3, 5}))
    assert results["skipped_steps"] == 3
    assert [entry["step"] for entry in results["losses"]] == [1, 4, 6]
    model = AutoModelForSemanticSegmentation.from_pretrained(out)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_too_many_bad_steps_in_a_row_stop_the_run_and_name_the_files(tmp_path):
    data = make_folder(tmp_path / "data")
    flags = ["--train_dir", data, "--validation_dir", data, "--max_skipped_steps", "2"]
    flags += ["--gradient_accumulation_steps", "1", "--per_device_train_batch_size", "1", "--max_train_steps", "20"]
    with pytest.raises(ValueError, match="not finite in 2 steps in a row.*masks/0.png, .*masks/1.png"):
        run(*flags, "--output_dir", tmp_path / "out", build_model=model_with_bad_steps({2, 4, 5}))


def test_preemption_saves_and_says_how_to_go_on(finished, tmp_path, monkeypatch, capsys):
    """SIGTERM in the middle of a step: the step is finished and saved, and the resumed run matches."""
    folder, _ = finished
    with monkeypatch.context() as patch:
        original, calls = loop.loss_shares, []

        def shares(*inputs):
            calls.append(inputs)
            if len(calls) == 5:  # no step that would be saved anyway
                os.kill(os.getpid(), signal.SIGTERM)
            return original(*inputs)

        patch.setattr(loop, "loss_shares", shares)
        assert command(*TINY, "--output_dir", tmp_path / "out") == 128 + signal.SIGTERM
    assert os.readlink(tmp_path / "out" / "last") == "step_5"
    words = capsys.readouterr().err.split(" --recipe ")[1].splitlines()[0].split()
    assert command("--recipe", *words) == 0
    assert weights(tmp_path / "out") == weights(folder)


def test_early_stopping(tmp_path):
    """Weights that do not change have the first evaluation as their best; two more, and it ends."""
    flags = ["--evaluation_steps", "1", "--learning_rate", "0", "--max_train_steps", "9"]
    flags += ["--early_stopping_patience", "2", "--metric_for_best_model", "overall_accuracy"]
    results = run(*flags, "--output_dir", tmp_path / "out", build_model=plain_model)
    assert [entry["step"] for entry in results["evaluations"]] == [1, 2, 3]
    assert (results["step"], results["best_step"]) == (3, 1)


def test_total_batch_is_split_over_processes_and_micro_batches():
    for total, processes, at_most, expected in (
        (16, 1, 8, (8, 2)),
        (16, 2, 8, (8, 1)),
        (12, 1, 8, (6, 2)),
        (16, 4, 32, (4, 1)),
        (7, 1, 4, (1, 7)),
    ):
        words = ["--total_batch_size", str(total), "--per_device_train_batch_size", str(at_most)]
        arguments = parse_training(words)
        setup.split_batch(arguments, processes, on_cpu=True)
        assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == expected
    with pytest.raises(ValueError, match="cannot be shared by 3 processes"):
        setup.split_batch(arguments, 3, on_cpu=True)


def test_class_weights_from_the_data():
    """Two classes on half of the pixels each: the weights of both are 1 / ln(1.52)."""
    labels = Labels.from_id2label({0: "a", 1: "b"})
    data = [{"label": [[0, 1, 255], [1, 0, 255]]}] * 3
    arguments = parse_training(["--class_weights", "auto"])
    weights = setup.count_class_weights(arguments, data, labels)
    assert weights == pytest.approx([2.3883, 2.3883], abs=1e-4)


def test_without_an_output_dir_a_new_numbered_one_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    locks = [RunLock() for _ in range(3)]
    for expected, lock in zip(("segformer_scenes", "segformer_scenes_2"), locks, strict=False):
        folder = claim_output_dir(parse_training([]), lock)
        assert folder == Path("outputs") / expected
        lock.release()
        (folder / "train.args").write_text("")
    resumed = claim_output_dir(parse_training(["--resume_from_checkpoint", "latest"]), locks[2])
    locks[2].release()
    assert resumed == Path("outputs/segformer_scenes_2")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", "segformer_scenes"),
        ("--architecture setr", "setr_scenes"),
        ("--train_dir my/photos/train --architecture ocrnet", "ocrnet_photos"),
        ("--dataset_name user/streets --model_name_or_path nvidia/mit-b0", "mit-b0_streets"),
        ("--train_dir / --model_name_or_path outputs/run/best", "run_data"),
    ],
)
def test_the_default_output_dir_is_named_after_model_and_data(flags, expected):
    assert default_output_dir(parse_training(flags.split())) == f"outputs/{expected}"


def test_models_of_other_libraries_are_refused_before_the_training(tmp_path):
    """Their losses would leave out class weights and whatever else is set."""
    (tmp_path / "config.json").write_text('{"model_type": "upernet"}')
    with pytest.raises(ValueError, match="is a upernet of another library.*Trainer"):
        setup.read_data(parse_training(["--model_name_or_path", str(tmp_path)]), check=False)
    for config in ({"model_type": "segformer"}, {"model_type": "segtx_setr"}, {"model_type": "new", "auto_map": {}}):
        setup.check_start("model", config)
