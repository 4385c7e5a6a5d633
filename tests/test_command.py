"""The command `segtx`: what it answers at once, what it says of mistakes, and that all commands name things alike."""

import argparse
import ast
import importlib
import json
import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from hf_segtx.cli import COMMANDS, flags, main, usage
from hf_segtx.data.scenes import SceneDataset
from hf_segtx.inference import load_model
from hf_segtx.training.recipes import recipe_names


ROOT = Path(__file__).parents[1]
SCRIPTS = {"check": "check_dataset", "prepare": "prepare_dataset"}  # those that are called otherwise than the command


def segtx(*words, **environment) -> tuple[subprocess.CompletedProcess, float]:
    """`python -m hf_segtx` in a process of its own, and the processor time that it took in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "hf_segtx", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_and_misspelt_flags_are_answered_within_a_second():
    """Measured are about 0.1 s; importing torch alone takes more than the second that is allowed."""
    for words, status, said in [
        (["--help"], 0, "usage: segtx COMMAND"),
        ([], 2, "usage: segtx COMMAND"),
        (["trian"], 2, "'trian' is not a command of segtx; did you mean `segtx train`?"),
        (["recipes"], 0, "segformer_b0_ade20k_512"),
        *((([command, "--help"]), 0, f"usage: segtx {command} ") for command in COMMANDS),
        *((([command, "--hlep"]), 2, f"--hlep: not a flag of `segtx {command}`") for command in COMMANDS),
    ]:
        done, seconds = segtx(*words)
        assert done.returncode == status, (words, done.stderr)
        assert said in (done.stderr if status else done.stdout), words
        assert "Traceback" not in done.stderr and seconds < 1, (words, seconds)
        assert bool(done.stderr) == bool(status) and done.stderr.count("error:") == (status > 0 and bool(words))


@pytest.fixture
def parsers(monkeypatch):
    """The parser of each command."""

    class Known(Exception):
        pass

    def stop(self, args=None, namespace=None):
        raise Known(self)

    found = {}
    for command in COMMANDS:
        monkeypatch.setattr(flags.FlagParser, "parse_known_args", stop)
        with pytest.raises(Known) as stopped:
            importlib.import_module(f"hf_segtx.cli.{command}").run([])
        found[command] = stopped.value.args[0]
    return found


def test_all_commands_name_things_alike(parsers):
    options = {command: parser._option_string_actions for command, parser in parsers.items()}
    for command in ("evaluate", "predict", "convert", "explain", "export"):
        first = next(action for action in parsers[command]._actions if not action.option_strings)
        assert first.dest == "model", command
    for command in COMMANDS.keys() - {"recipes", "plan"}:
        assert "--output_dir" in options[command], command
    for command in ("train", "check", "prepare"):
        assert {"--train_dir", "--validation_dir", "--dataset_name"} <= set(options[command])
    kinds: dict[str, tuple] = {}
    for command, actions in options.items():
        for name, action in actions.items():
            if name in ("-h", "--help", "--output_dir", "--format"):  # the last two depend on what is written
                continue
            if command == "demo" and name in ("--static", "--push_to_hub"):  # a folder, and the name of a Space
                continue
            kind = (action.type, action.nargs, tuple(action.choices or ()))
            assert kinds.setdefault(name, kind) == kind, f"{name} of {command} is another than that of other commands"


def test_help_has_a_sentence_for_everything(parsers):
    for command, parser in parsers.items():
        for action in parser._actions:
            if action.help is not argparse.SUPPRESS and action.dest != "help":
                assert action.help and action.help.rstrip("%)").endswith("."), (command, action.dest)
        for line in parser.description.splitlines():
            if line.startswith("    segtx "):
                words = shlex.split(line.strip().removesuffix("\\"), comments=True)
                assert words[1] in COMMANDS, line


def test_usage_fits_the_terminal():
    assert all(len(line) <= 100 for line in usage().splitlines())
    modules = {file.stem for file in (ROOT / "hf_segtx/cli").glob("*.py")}
    assert set(COMMANDS) == modules - {"__init__", "flags", "model_flags", "training_flags"}


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"recipes"}))
def test_script_is_the_command(command):
    """The scripts of examples/ are how people start under a launcher; their own folder hides no library."""
    if not (ROOT / f"examples/{SCRIPTS.get(command, command)}.py").exists():
        pytest.skip("a command without a script")
    words = [sys.executable, str(ROOT / f"examples/{SCRIPTS.get(command, command)}.py"), "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == segtx(command, "--help")[0].stdout


def test_reader_that_goes_away_is_no_error():
    command = f"{shlex.quote(sys.executable)} -m hf_segtx recipes | head -n 1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("recipe ") and done.stderr == ""


@pytest.mark.parametrize(
    "error, status, said",
    [
        (ValueError("learning_rate is -1"), 2, "error: learning_rate is -1\n"),
        (FileNotFoundError("nowhere"), 2, "error: nowhere\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (KeyboardInterrupt("; x stays"), 130, "interrupted; x stays\n"),
        (MemoryError(), 2, "error: out of memory (MemoryError); take smaller"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), 2, "error: out of memory (CUDA out of memory.); take"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you"), 2, "error: out of memory (DefaultCPU"),
    ],
)
def test_what_users_can_cure_is_said_in_a_line(monkeypatch, capsys, error, status, said):
    def run(words):
        raise error

    monkeypatch.setattr("hf_segtx.cli.recipes.run", run)
    assert main(["recipes"]) == status
    assert capsys.readouterr().err.startswith(said)


def test_faults_of_ours_are_not_hidden(monkeypatch):
    for error in (TypeError("ours"), RuntimeError("ours"), KeyError("ours")):

        def run(words, error=error):
            raise error

        monkeypatch.setattr("hf_segtx.cli.recipes.run", run)
        with pytest.raises(type(error), match="ours"):
            main(["recipes"])


def test_interrupted_commands_say_what_there_is(monkeypatch, capsys, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_segtx.cli.predict.load", interrupt)
    assert main(["predict", "m", str(tmp_path / "x.png"), "--output_dir", str(tmp_path / "out")]) == 130
    assert f"interrupted; results that were written are in {tmp_path / 'out'}" in capsys.readouterr().err
    monkeypatch.setattr("hf_segtx.data.parquet.write_parquet", interrupt)
    assert main(["prepare", "--train_dir", "x", "--output_dir", "y"]) == 130
    assert "y is not complete yet, the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate m", "check --train_dir x", "prepare --train_dir x", "convert m"])
def test_file_in_the_place_of_the_output_is_named(command, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file/below"):
        assert main([*command.split(), "--output_dir", str(place)]) == 2
        assert f"{tmp_path / 'file'} is not a folder; choose another" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_switches_and_words_with_dashes(capsys):
    parser = flags.FlagParser("test", "")
    parser.add_argument("model", help="A model.")
    parser.add_argument("--fast", nargs="?", const=True, default=False, type=flags._truth)
    parser.add_argument("--batch_size", type=int)
    for words, model, fast in (
        (["--fast", "outputs/run"], "outputs/run", True),  # is no value of the switch
        (["outputs/run", "--fast"], "outputs/run", True),
        (["--fast", "no", "outputs/run"], "outputs/run", False),
        (["--fast=true", "outputs/run"], "outputs/run", True),
    ):
        arguments = parser.parse_args([*words, "--batch-size", "3"])
        assert (arguments.model, arguments.fast, arguments.batch_size) == (model, fast, 3)
    for words, said in (
        (["--batch_siez", "3"], "did you mean --batch_size?"),  # said before the model that is missing
        (["m", "--batch_size", "x"], "argument --batch_size: invalid int value: 'x'"),
        (["m", "--fast=maybe"], "'maybe' is neither True nor False"),
        (["m", "extra"], "extra: not a flag of `segtx test`"),
    ):
        with pytest.raises(ValueError, match=said.replace("?", r"\?")):
            parser.parse_args(words)


# ------------------------------------------------------------------------------------------------------------ commands


def test_recipes_are_listed_with_data_and_score(capsys):
    assert main(["recipes"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["recipe", "data", "set", "mean", "IoU"]
    assert [line.split()[0] for line in lines] == recipe_names()
    assert {file.stem for file in (ROOT / "examples/recipes").glob("*.args")} == set(recipe_names())
    assert next(line for line in lines if line.startswith("setr_pup_camvid ")).endswith(" 29.15 % (measured here)")
    assert next(line for line in lines if line.startswith("ocrnet_hrnet_w48_lip_473 ")).split(maxsplit=1)[
        1
    ].split() == ("LIP, 20 classes 56.48 % (validation, flips)".split())
    assert main(["recipes", "lip"]) == 0
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert shown == [name for name in recipe_names() if "_lip_" in name] and len(shown) > 3
    assert main(["recipes", "setr_pup_camvid"]) == 0
    assert capsys.readouterr().out == (ROOT / "examples/recipes/setr_pup_camvid.args").read_text()
    assert main(["recipes", "setr_pup_camvd"]) == 2
    assert "did you mean setr_pup_camvid?" in capsys.readouterr().err


def write_data(folder: Path, count: int, seed: int = 0) -> Path:
    """Scenes as a folder of data."""
    scenes = SceneDataset(count, seed=seed)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for index in range(count):
        scenes[index]["image"].save(folder / f"images/{index}.png")
        Image.fromarray(scenes[index]["label"]).save(folder / f"masks/{index}.png")
    (folder / "id2label.json").write_text(json.dumps(scenes.labels.id2label))
    return folder


def test_check_writes_its_findings(tmp_path, capsys):
    train, validation = (write_data(tmp_path / name, 4, seed) for seed, name in enumerate(("train", "val")))
    words = ["check", "--train_dir", str(train), "--validation_dir", str(validation), "--num_workers", "0"]
    words += ["--output_dir", str(tmp_path / "out")]
    assert main(words) == 0
    assert "(0 errors" in capsys.readouterr().out
    assert Image.open(tmp_path / "out/overlays.png").width > 0
    assert set(json.loads((tmp_path / "out/check.json").read_text())["splits"]) == {"training", "validation"}
    Image.fromarray(np.full((96, 96), 99, np.uint8)).save(train / "masks/2.png")
    assert main(words) == 1
    assert "verdict: do not train on these data yet" in capsys.readouterr().out
    assert main(["check"]) == 2
    assert "give --train_dir, --validation_dir or --dataset_name" in capsys.readouterr().err


def test_convert_makes_a_folder_with_the_same_logits(tmp_path, capsys):
    sizes = {"depths": [1] * 4, "hidden_sizes": [32, 64, 160, 256], "num_attention_heads": [1, 2, 5, 8]}
    theirs = SegformerForSemanticSegmentation(SegformerConfig(**sizes, decoder_hidden_size=256, num_labels=3)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    (tmp_path / "classes.json").write_text('["road", "sky", "tree"]')
    words = ["convert", str(tmp_path / "theirs"), "--output_dir", str(tmp_path / "ours")]
    words += ["--classes_file", str(tmp_path / "classes.json")]
    assert main(words) == 0
    assert "SegFormerForSemanticSegmentation" in capsys.readouterr().out
    ours, _ = load_model(tmp_path / "ours")
    assert ours.config.id2label == {0: "road", 1: "sky", 2: "tree"}
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():  # float32 in another order of operations
        torch.testing.assert_close(ours(pixel_values).logits, theirs(pixel_values).logits, rtol=1e-4, atol=1e-5)
    (tmp_path / "two.json").write_text('["road", "sky"]')
    for changed, said in (
        ([], "holds a model already; choose another folder"),
        (
            ["--output_dir", str(tmp_path / "new"), "--config_overrides", "[1]"],
            "--config_overrides [1] is no JSON object",
        ),
        (["--output_dir", str(tmp_path / "new"), "--classes_file", str(tmp_path / "two.json")], "names 2 classes, the"),
    ):
        assert main([*words, *changed]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_library_speaks_of_parameters_and_not_of_flags(parsers):
    """But for what reads and writes files of flags, tells users of a command, or is a script of its own."""
    names = {name for parser in parsers.values() for name in parser._option_string_actions if name.startswith("--")}
    excepted = {
        "training/recipes.py",
        "training/automatic.py",
        "data/parquet.py",
        "demo/space.py",
        "export/page.py",
        "runtime/segment.py",
    }
    found = []
    for file in (ROOT / "hf_segtx").rglob("*.py"):
        place = file.relative_to(ROOT / "hf_segtx").as_posix()
        if place in excepted or place.startswith("cli/"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words = names & set(re.findall(r"--[a-z_]+", node.value))
                found += [f"{place}:{node.lineno}: {word}" for word in words]
    assert not found
