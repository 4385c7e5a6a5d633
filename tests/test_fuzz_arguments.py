"""Random flags and values: parsed and checked they are values in range, or a ValueError of a line; nothing else.

Counts what was tried: clear (refused with a message), good (values in range), wrong, raw. The last two must be 0.
"""

import json
import math
from collections import Counter
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_segtx.cli.flags import as_flags
from hf_segtx.cli.training_flags import NAMES, parse_training
from hf_segtx.settings import is_within
from hf_segtx.training.arguments import Arguments, check_arguments
from hf_segtx.training.recipes import write_recipe


pytestmark = pytest.mark.slow

OPTIONS = {option.name: option for option in fields(Arguments)}
HINTS = get_type_hints(Arguments)
LITERALS = sorted({str(part) for hint in HINTS.values() for kind in (hint, *get_args(hint)) for part in get_args(kind)
                   if isinstance(part, str)})  # fmt: skip
NUMBERS = st.one_of(
    st.sampled_from(["0", "1", "-1", "2", "0.5", "1e-8", "1e308", "1e999", "-0.0", "nan", "inf", "-inf", "1_0", "٣",
                     "0x10", "1e3", "255", "65536", "9" * 30, "1" * 5000, "+1", " 1", "1,5", "½"]),
    st.integers(-(2**40), 2**40).map(str),
    st.floats(allow_nan=True, allow_infinity=True).map(str),
)  # fmt: skip
TEXTS = st.one_of(
    st.sampled_from([*LITERALS, "True", "False", "auto", "epoch", "latest", "", " ", "{}", "[]", '{"depths": 1}',
                     "{'a': 1}", "null", "3", '{"a": NaN}', '{"id2label": {}}', "\r\n", "\udcff",
                     "\x00", "--", "-", "=", "%s", "{0}", "../..", "~"]),
    st.text(max_size=12),
)  # fmt: skip
NAMES_OF_FLAGS = st.one_of(
    st.sampled_from(sorted(OPTIONS)),
    st.sampled_from(["no_channels_last", "no_seed", "learning-rate", "recipe", "sed", "h", "help_", "", "crop_sizes"]),
)
FLAGS = st.tuples(NAMES_OF_FLAGS, st.sampled_from([" ", "="]), st.lists(st.one_of(NUMBERS, TEXTS), max_size=3))


def words_of(flags) -> list[str]:
    words = []
    for name, between, values in flags:
        if between == "=" and values:
            words.append(f"--{name}={values[0]}")
            words += values[1:]
        else:
            words += [f"--{name}", *values]
    return words


def is_in_range(arguments: Arguments) -> bool:
    """Whether every number is one and lies in its range, read off the table of ranges."""
    for name, option in OPTIONS.items():
        value = getattr(arguments, name)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                return False
            if option.metadata["range"] and number is not None and not is_within(number, option.metadata["range"]):
                return False
    return arguments.scale_range[0] <= arguments.scale_range[1] and 1 <= len(arguments.crop_size) <= 2


def outcome(function, *inputs) -> tuple[str, object]:
    """What a call came to: "good", "clear", "wrong" or "raw", and its value or error."""
    try:
        arguments = function(*inputs)
    except ValueError as error:
        text = str(error)
        return ("clear" if text and len(text) < 3000 + 2 * sum(map(len, map(str, inputs))) else "wrong"), error
    except Exception as error:  # what this test is there to find
        return "raw", error
    return ("good" if is_in_range(arguments) else "wrong"), arguments


def run_fuzz(strategy, call, count: int) -> Counter:
    counts, examples = Counter(), {}

    @settings(
        max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(strategy)
    def fuzz(case):
        kind, value = outcome(call, case)
        counts[kind] += 1
        examples.setdefault(kind, (case, value))

    fuzz()
    print(f"\ntried {counts.total()}: {dict(counts)}")
    assert not counts["raw"] and not counts["wrong"], (examples.get("raw"), examples.get("wrong"))
    return counts


def test_random_command_lines():
    counts = run_fuzz(st.lists(FLAGS, max_size=4).map(words_of), parse_training, 2500)
    assert counts["good"] > 50 and counts["clear"] > 1000


def test_one_flag_with_a_value_of_its_kind(tmp_path):
    """More of these pass, so what is accepted is looked at, too: a recipe of it is the same run."""

    recipe = tmp_path / "train.args"

    def call(case):
        name, values = case
        arguments = parse_training([f"--{name}", *values])
        write_recipe(recipe, arguments)
        again = parse_training(["--recipe", str(recipe)])
        differs = {key for key, value in vars(arguments).items() if value != getattr(again, key)}
        # what a recipe leaves out on purpose, and what follows from there being none
        allowed = {"token", "hub_token", "overwrite_output_dir", "resume_from_checkpoint", "automatic", "time_budget"}
        assert differs <= allowed | {"dry_run"}, differs
        return arguments

    kinds = {name: NUMBERS if OPTIONS[name].metadata["range"] else TEXTS for name in OPTIONS}
    strategy = st.sampled_from(sorted(OPTIONS)).flatmap(
        lambda name: st.tuples(st.just(name), st.lists(kinds[name], min_size=1, max_size=2))
    )
    counts = run_fuzz(strategy, call, 2000)
    assert counts["good"] > 150


def test_random_values_of_programs():
    """`Arguments` made by a program: values of any type."""
    values = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=3),
        st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=3), st.none()), max_size=3),
        st.dictionaries(st.text(max_size=2), st.integers(), max_size=1), st.complex_numbers(), st.decimals(),
    )  # fmt: skip

    def call(case):
        arguments = Arguments(**case)
        check_arguments(arguments)
        return arguments

    run_fuzz(st.dictionaries(st.sampled_from(sorted(OPTIONS)), values, max_size=2), call, 3000)


def test_random_texts_as_messages():
    """Messages keep their text but for the names of parameters."""

    def call(text):
        changed = as_flags(text, NAMES)
        assert changed.replace("--", "").replace("`", "") == text.replace("--", "").replace("`", "")
        return Arguments()

    pieces = st.one_of(st.sampled_from([*NAMES, "`seed`", "a/b", ".", " ", "is", "--"]), st.text(max_size=5))
    run_fuzz(st.lists(pieces, max_size=8).map("".join), call, 2000)


def test_random_overrides_of_the_configuration():
    values = st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
        max_leaves=5,
    )
    counts = run_fuzz(values.map(json.dumps), lambda text: parse_training(["--config_overrides", text]), 500)
    assert counts["good"] and counts["clear"]
