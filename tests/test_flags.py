"""Dataclasses as flags: against transformers' parser, what users may write, what they hear, and how soon."""

import json
import subprocess
import sys
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from typing import Literal, get_type_hints

import pytest
from transformers import HfArgumentParser

from hf_segtx.architectures import ARCHITECTURES
from hf_segtx.cli.flags import FlagParser, as_flags
from hf_segtx.cli.training_flags import parse_training
from hf_segtx.resources import resource_folder
from hf_segtx.settings import check_settings, setting
from hf_segtx.training.arguments import ARCHITECTURE_NAMES, Arguments, check_arguments
from hf_segtx.training.recipes import as_recipe, find_recipe


@dataclass
class Settings:
    """Some of each kind."""

    rate: float = setting(0.5, "A number, as is `plain` or other_rate.", "[0, 1)")
    other_rate: float | None = setting(None, "Maybe a number.", "(0, inf)")
    steps: int = setting(3, "A whole number.", "[1, 10]")
    sizes: list[int] = setting([], "One or two.", "[1, inf)", "1-2")
    pair: list[float] = setting([1.0, 2.0], "Two.", "(0, 100]", "2")
    kind: Literal["a", "b"] = setting("a", "A word.")
    name: str | None = setting(None, "A text.")
    plain: bool = setting(False, "A switch.")
    usual: bool = setting(True, "A switch that is on.")


def parse(dataclass_, words):
    parser = FlagParser("x", "What it does.")
    parser.add_dataclass(dataclass_)
    return parser.values_of(dataclass_, parser.parse_args(words))


def without_help(dataclass_):
    """The same fields without our metadata, which transformers' parser would hand to argparse."""
    hints = get_type_hints(dataclass_)
    columns = []
    for option in fields(dataclass_):
        is_made = option.default_factory is not MISSING
        default = {"default_factory": option.default_factory} if is_made else {"default": option.default}
        columns.append((option.name, hints[option.name], field(**default)))
    return make_dataclass("Plain", columns)


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--rate 0.25 --steps 7 --kind b --name x",
        "--rate=0.25 --other_rate 1e-3 --sizes 3 --pair 3 4",
        "--other-rate 5 --sizes 1 2",
        "--plain --usual",
        "--plain True --usual False",
        "--plain no --no_usual",
        "--no-usual --plain 1",
        "--rate 0.1 --rate 0.2 --plain --plain False",
    ],
)
def test_words_mean_what_they_mean_to_transformers_parser(words):
    (expected,) = HfArgumentParser(without_help(Settings)).parse_args_into_dataclasses(words.split())
    assert vars(parse(Settings, words.split())) == vars(expected)


def test_a_recipe_means_what_it_means_to_transformers_parser():
    for file in sorted(resource_folder("recipes").glob("*.args"))[::9]:
        arguments = parse_training(["--recipe", str(file)])
        words = as_recipe(arguments).replace("'", "").split("\n") if arguments.config_overrides is None else None
        if words is not None:
            flat = [word for line in words for word in line.split()]
            (expected,) = HfArgumentParser(without_help(Arguments)).parse_args_into_dataclasses(flat)
            expected.automatic = arguments.automatic  # which the command decides
            assert vars(arguments) == vars(expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--rat 0.1", "--rat: not a flag of `segtx x`, or not a value of the flag before it; did you mean --rate?"),
        ("--other-rat 1", "did you mean --other_rate?"),
        ("--zzzzz", "`segtx x --help` lists the flags"),
        ("lonely", "lonely: not a flag"),
        ("--rate", "expected one argument"),
        ("--rate x", "invalid float value: 'x'"),
        ("--steps 1.5", "invalid int value"),
        ("--kind c", "choose from"),
        ("--plain maybe", "maybe: not a flag"),
        ("--plain=maybe", "neither True nor False"),
        ("--rate nan", "--rate is nan; it must lie in [0, 1)"),
        ("--rate 1", "--rate is 1.0; it must lie in [0, 1)"),
        ("--other_rate inf", "--other_rate is inf; it must be above 0"),
        ("--other_rate 0", "--other_rate is 0.0; it must be above 0"),
        ("--steps 11", "--steps is 11; it must lie in [1, 10]"),
        ("--sizes 1 2 3", "--sizes has 3 values, [1, 2, 3]; give 1 or 2"),
        ("--sizes 1 0", "--sizes is 0; it must be at least 1"),
        ("--pair 1", "--pair has 1 values, [1.0]; give 2"),
        ("--name=", "--name is empty; omit it, or give a text"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_flag(words, message):
    with pytest.raises(ValueError) as error:
        parse(Settings, words.split())
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 2.5}, "steps is 2.5; it must be a whole number"),
        ({"steps": True}, "steps is True; it must be a whole number"),
        ({"steps": None}, "steps is None; it must be a whole number"),
        ({"rate": "0.1"}, "rate is '0.1'; it must be a number"),
        ({"sizes": 3}, "sizes is 3; it must be a list"),
        ({"pair": []}, "pair is empty; give 2"),
        ({"kind": "c"}, "kind is 'c'; it must be 'a' or 'b'"),
        ({"plain": 1}, "plain is 1; it must be True or False"),
        ({"name": 7}, "name is 7; it must be a text"),
    ],
)
def test_settings_of_programs_are_checked_for_their_types(values, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        check_settings(Settings(**values))


def test_help_is_in_groups_and_names_flags(capsys):
    parser = FlagParser("x", "What it does.\n\n    as it is")
    parser.add_dataclass(Settings)
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    text = capsys.readouterr().out
    assert "What it does.\n\n    as it is" in text and "\nSome of each kind:\n" in text
    assert "A number, as is --plain or --other_rate. Default: 0.5." in " ".join(text.split())


def test_parameters_in_messages_become_flags():
    names = {"seed", "loss", "train_dir", "max_grad_norm"}
    for text, expected in (
        ("seed is -1; the seed matters", "--seed is -1; the seed matters"),
        ("the loss is nan; clip with max_grad_norm 1", "the loss is nan; clip with --max_grad_norm 1"),
        ("give another `loss`, see `elsewhere`", "give another --loss, see `elsewhere`"),
        ("data/train_dir/x and my_train_dir: give train_dir", "data/train_dir/x and my_train_dir: give --train_dir"),
        ("omit --train_dir", "omit --train_dir"),
        ("give max_grad_norm.", "give --max_grad_norm."),
        ("train_dir.json, train_dir/a", "train_dir.json, train_dir/a"),
    ):
        assert as_flags(text, names) == expected


def test_architectures_are_those_of_the_table():
    assert set(ARCHITECTURE_NAMES) == set(ARCHITECTURES)


def test_every_field_of_a_run_has_a_help_text_and_every_number_a_range():
    for option in fields(Arguments):
        kind = str(get_type_hints(Arguments)[option.name])
        assert option.metadata["help"].endswith("."), option.name
        if "int" in kind or "float" in kind:
            assert option.metadata["range"], option.name
    check_arguments(Arguments())


NUMBERS = [option for option in fields(Arguments) if option.metadata["range"]]


@pytest.mark.parametrize("option", NUMBERS, ids=lambda option: option.name)
def test_numbers_out_of_range_are_refused_and_name_the_flag(option):
    """nan, infinity, and what is just outside of either bound."""
    low, high = (float(bound) for bound in option.metadata["range"][1:-1].split(", "))
    least = (option.metadata["count"] or "1")[0]
    outside = [low - 1, high + 1, *([low] if option.metadata["range"][0] == "(" else [])]
    if "int" not in str(get_type_hints(Arguments)[option.name]):
        outside += ["nan", "-inf", "inf"]
    for value in outside:
        value = int(value) if not isinstance(value, str) and value == value // 1 and abs(value) < 1e300 else value
        with pytest.raises(ValueError, match=rf"--{option.name}\b"):
            parse_training([f"--{option.name}", *[str(value)] * int(least)])


# ---- recipes


def test_recipes_are_found_by_name_and_by_path(tmp_path):
    own = tmp_path / "own.args"
    own.write_text("--seed 5 --class_weights auto  # why\n")
    assert parse_training(["--recipe", str(own)]).seed == 5
    both = parse_training(["--recipe", "segformer_b0_ade20k_512", "--recipe", str(own), "--learning_rate", "0.5"])
    assert (both.seed, both.learning_rate, both.max_train_steps) == (5, 0.5, 160000)
    assert find_recipe("segformer_b0_ade20k_512") == find_recipe("segformer_b0_ade20k_512.args")
    own.write_text("--recipe segformer_b0_ade20k_512")
    for name, message in (
        ("segformer_b0_ade20k", "did you mean segformer_b0_ade20k_512?"),
        ("zzz", "`segtx recipes` lists"),
        (str(tmp_path), "there is no recipe"),
        (str(tmp_path / "train.args"), "train.args, no such file"),
        (str(own), "a recipe cannot name another"),
    ):
        with pytest.raises(ValueError, match=message.replace("?", r"\?")):
            parse_training(["--recipe", name])
    own.write_text("--loss 'ce")
    with pytest.raises(ValueError, match="own.args is no recipe"):
        parse_training(["--recipe", str(own)])


def test_without_data_and_model_it_is_the_scenes():
    assert parse_training([]).max_train_steps == 1100
    assert parse_training(["--seed", "3"]).crop_size == [128]
    assert parse_training(["--train_dir", "x", "--max_train_steps", "3"]).crop_size == [512]


@pytest.mark.parametrize("words", [["--architecture", "segmenter"], ["--backbone", "x"], ["--config_name", "x"]])
def test_scenes_under_another_model(words):
    """Size and learning rate of the small SegFormer are that one's alone; what is said comes after them."""
    small = parse_training(["--architecture", "segformer"])
    assert (small.size, small.learning_rate, small.config_overrides) == ("b0", 2e-3, '{"drop_path_rate": 0.0}')
    assert parse_training(["--size", "b1"]).size == "b1"
    other = parse_training(words)
    assert (other.size, other.learning_rate, other.config_overrides) == (None, 6e-5, None)
    assert (other.crop_size, other.max_train_steps) == ([128], 1100)


# ---- how soon


@pytest.mark.parametrize(("words", "expected"), [(["--help"], 0), (["--leraning_rate", "1"], 2)])
def test_help_and_misspelt_flags_are_answered_before_anything_heavy_is_imported(words, expected):
    code = (
        "import json, sys, time; from hf_segtx.cli import main\n"
        f"try: status = main(['train', *{words}])\n"
        "except SystemExit as end: status = end.code\n"
        "heavy = {'torch', 'numpy', 'transformers', 'accelerate'} & set(sys.modules)\n"
        "print('\\n' + json.dumps([status, sorted(heavy), time.process_time()]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    status, heavy, seconds = json.loads(done.stdout.splitlines()[-1])
    assert (status, heavy) == (expected, [])
    assert seconds < 1
    assert "Traceback" not in done.stderr
