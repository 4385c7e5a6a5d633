"""The README against the repository: its tree, its commands, its links."""

import re
import shlex
import subprocess
from pathlib import Path


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ONLY_FOLDERS = ("examples/accelerate/", "examples/recipes/", "model_cards/", "tests/")  # one line for all in them
TOP_LEVEL = ("hf_segtx/", "examples/", "benchmarks/", "model_cards/", "tests/")


def tree():
    """Paths in the README's tree; folders end in a slash."""
    paths, folders = [], []
    for line in re.search(r"## The repository.*?```\n(.*?)```", README, re.DOTALL)[1].splitlines():
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
    listed = tree()
    assert len(listed) == len(set(listed))
    assert {path for path in listed if not path.endswith("/")} == expected
    assert all((ROOT / path).is_dir() for path in listed if path.endswith("/"))


def test_links_lead_to_files():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_flags_of_the_commands_exist():
    helps = {}
    for line in re.findall(r"^(?:accelerate launch|python) (examples/.*)$", README, re.MULTILINE):
        script, *words = shlex.split(line, comments=True)
        text = helps.setdefault(script, (ROOT / script).read_text())
        if "hf_segtx.training.arguments" in text or "import train" in text:
            text += (ROOT / "hf_segtx/arguments.py").read_text()
        for word in words:
            if word.startswith("--"):
                assert word in text or word.removeprefix("--") + ":" in text or word == "--recipe", f"{script} {word}"
            if word.startswith("examples/"):
                assert (ROOT / word).exists(), word
