"""README.md and docs/ against the repository: the tree, the commands, the links."""

import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from hf_segtx.cli import COMMANDS, flags
from hf_segtx.resources import FOLDERS
from hf_segtx.training.recipes import find_recipe


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text()
ONLY_FOLDERS = (
    *(f"{folder}/" for folder in FOLDERS.values()),
    "docs/",
    "tests/",
    "hf_segtx/demo/page/",
)  # a line for all
TOP_LEVEL = ("hf_segtx/", "examples/", "benchmarks/", "docs/", "model_cards/", "tests/")


def tree():
    """Paths in the tree of docs/repository.md; folders end in a slash."""
    paths, folders = [], []
    text = (ROOT / "docs/repository.md").read_text()
    for line in re.search(r"```\n(.*?)```", text, re.DOTALL)[1].splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        assert len(line.split()) > 1 or depth == 0, f"{name} has no description"
        folders[depth:] = [name] if name.endswith("/") else []
        paths.append("".join(folders[: depth + 1]) + ("" if name.endswith("/") else name))
    return paths


def test_tree_is_that_of_the_files():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not files:  # not a checkout
        found = [path for path in ROOT.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        files = [path.relative_to(ROOT).as_posix() for path in found]
    expected = {file for file in files if file.startswith(TOP_LEVEL) and not file.startswith(ONLY_FOLDERS)}
    expected -= {file for file in expected if re.search("/.*/__init__.py$", file)}  # the line of the folder is theirs
    paths = tree()
    listed = {path for path in paths if not path.endswith("/")}
    assert len(paths) == len(set(paths)), "a path is listed twice"
    missing, gone = sorted(expected - listed), sorted(listed - expected)
    assert not missing and not gone, f"missing in the tree: {missing}\nin the tree, but not there: {gone}"
    assert all((ROOT / path).is_dir() for path in paths if path.endswith("/"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page):
    """Also those to the repository, which the page of the package needs for its picture."""
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        own = re.match(r"https://raw\.githubusercontent\.com/hf-segtx/hf_segtx/main/(.*)", target)
        assert (ROOT / own[1]).exists() if own else target.startswith("http") or (page.parent / target).exists(), target
    assert "](docs/predictions.png)" not in README  # would be missing on the page of the package


def test_readme_is_short():
    assert len(README.splitlines()) <= 150


def commands(page: Path):
    """(command, words after it) of all lines in code that start a command of ours."""
    text = page.read_text().replace("\\\n", " ")
    for line in re.findall(r"^(?: {4})?((?:segtx|accelerate launch|torchrun|python) .*)$", text, re.MULTILINE):
        for part in re.split(r"&&|;", line):
            words = shlex.split(part, comments=True)
            start = next((i for i, word in enumerate(words) if word in ("segtx", "hf_segtx")), None)
            if start is not None and len(words) > start + 1:
                yield words[start + 1], words[start + 2 :]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_flags_of_the_commands_exist(page, monkeypatch):
    options = {}

    class Known(Exception):
        pass

    def stop(self, args=None, namespace=None):
        raise Known(self)

    with monkeypatch.context() as patch:
        patch.setattr(flags.FlagParser, "parse_known_args", stop)
        for command in COMMANDS:
            with pytest.raises(Known) as stopped:
                importlib.import_module(f"hf_segtx.cli.{command}").run([])
            options[command] = set(stopped.value.args[0]._option_string_actions)
    options["plan"] |= options["train"]
    found = list(commands(page))
    assert found or page.parent.name == "docs"
    for command, words in found:
        assert command in COMMANDS, command
        for word, following in zip(words, [*words[1:], ""]):
            if word.startswith("--"):
                assert word.partition("=")[0] in options[command] | {"--help"}, f"{command} {word}"
            if word == "--recipe" and "/" not in following and following.isidentifier():
                find_recipe(following)


def test_every_command_is_shown():
    shown = {command for page in PAGES for command, _ in commands(page)}
    assert set(COMMANDS) <= shown, set(COMMANDS) - shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_imports_exist(page):
    """What code on the pages imports from the package is there."""
    for module, names in re.findall(r"^from (hf_segtx[\w.]*) import (.*)$", page.read_text(), re.MULTILINE):
        for name in names.split("#")[0].replace(" ", "").split(","):
            assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"
