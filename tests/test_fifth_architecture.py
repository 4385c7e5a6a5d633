"""A fifth architecture is two files in models/, a row, a case and a card, as CONTRIBUTING.md says: done in a copy."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow  # several processes, a minute in all

ROW = """    "quintet": Architecture(
        QuintetConfig,
        QuintetModel,
        QuintetForSemanticSegmentation,
        SegmenterImageProcessor,
        SegmenterImageProcessorPil,
        card="quintet.md",
    ),
"""
CASE = """    "quintet": Case(
        config={"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
        image_size=32,
        logits=(4, 4),
        hidden_states=[(17, 32)] * 3,
        attentions=[(4, 17, 17)] * 2,
    ),
"""
CARD = """{% extends "card.md" %}
{% block architecture %}
Quintet: a Segmenter by another name.
{%- endblock %}
{% block citation %}
```bibtex
@inproceedings{nobody2026quintet}
```
{% endblock %}
"""
REPORT = """
import json, sys
{first}
import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
model = AutoModelForSemanticSegmentation.from_pretrained({folder!r}, trust_remote_code={remote}).eval()
processor = AutoImageProcessor.from_pretrained({folder!r}, trust_remote_code={remote})
image = torch.arange(3 * 40 * 56).view(3, 40, 56).remainder(256).to(torch.uint8)
with torch.no_grad():
    logits = model(**processor(image, return_tensors="pt")).logits
kinds = [type(model), type(model.config), type(processor)]
print("RESULT", json.dumps([[kind.__module__ for kind in kinds], type(model).__name__, logits.flatten().tolist()]))
"""


def put(path, place, text):
    """Inserts text before the last occurrence of a place in a file."""
    content = path.read_text()
    before, after = content.rsplit(place, 1)
    path.write_text(before + text + place + after)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what a contributor changes, with the fifth architecture in it."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("hf_segtx", "model_cards", "examples"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("tests/tiny.py", "tests/conftest.py", "tests/test_modeling.py"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    models = root / "hf_segtx/models"
    for kind in ("configuration", "modeling"):  # the two files
        text = (models / f"{kind}_segmenter.py").read_text()
        text = text.replace("Segmenter", "Quintet").replace("segmenter", "quintet")
        (models / f"{kind}_quintet.py").write_text(text)
    table = root / "hf_segtx/architectures.py"  # the row
    put(
        table,
        "\n\nclass Architecture(",
        "from .models.configuration_quintet import QuintetConfig\n"
        "from .models.modeling_quintet import QuintetForSemanticSegmentation, QuintetModel\n",
    )
    put(table, "}\n\n# Their encoders", ROW)
    cases = root / "tests/tiny.py"  # the case
    put(cases, "}\n", CASE)
    (root / "model_cards/quintet.md").write_text(CARD)  # the card
    return root


def run(arguments, checkout, cwd=None):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd or checkout,
        env={**os.environ, "PYTHONPATH": f"{checkout}:{checkout / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_only_those_files_differ(checkout):
    """What the test proves: nothing else has to be changed."""
    changed = set()
    for path in filter(Path.is_file, checkout.rglob("*")):
        original = ROOT / path.relative_to(checkout)
        if "__pycache__" not in path.parts and (not original.is_file() or original.read_bytes() != path.read_bytes()):
            changed.add(str(path.relative_to(checkout)))
    assert {name for name in changed if not name.startswith("out")} == {
        "hf_segtx/models/configuration_quintet.py", "hf_segtx/models/modeling_quintet.py", "hf_segtx/architectures.py",
        "tests/tiny.py", "model_cards/quintet.md",
    }  # fmt: skip


def test_the_contract_of_models_holds(checkout):
    pytest_ = ["-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider"]
    output = run([*pytest_, "tests/test_modeling.py", "-m", "not slow", "-k", "Quintet"], checkout)
    assert re.search(r"\d\d passed", output), output


@pytest.fixture(scope="module")
def trained(checkout):
    """The folder of a run of two steps on the embedded scenes, by the command."""
    config = run(["-c", "import json, tiny; print(json.dumps(tiny.CASES['quintet'].config))"], checkout).strip()
    flags = ["--architecture", "quintet", "--size", "tiny", "--config_overrides", config]
    flags += ["--max_train_steps", 2, "--num_warmup_steps", 0, "--max_eval_samples", 2, "--crop_size", 64]
    flags += ["--per_device_train_batch_size", 2, "--output_dir", checkout / "out"]
    run(["-m", "hf_segtx", "train", *flags], checkout)
    return checkout / "out"


def test_it_trains_and_is_saved_whole(trained):
    assert json.loads((trained / "all_results.json").read_text())["step"] == 2
    card = (trained / "README.md").read_text()
    assert "a Segmenter by another name" in card and "nobody2026quintet" in card and "- quintet" in card
    config = json.loads((trained / "config.json").read_text())
    assert config["model_type"] == "segtx_quintet" and config["architectures"] == ["QuintetForSemanticSegmentation"]
    processor = json.loads((trained / "preprocessor_config.json").read_text())["auto_map"]["AutoImageProcessor"]
    for reference in (*config["auto_map"].values(), *processor.values()):
        module, name = reference.split(".")
        assert f"class {name}(" in (trained / f"{module}.py").read_text()
    for file in trained.glob("*.py"):  # the code is complete
        for module in re.findall(r"^from \.(\w+) import", file.read_text(), flags=re.MULTILINE):
            assert (trained / f"{module}.py").is_file(), f"{file.name} imports {module}"


def test_it_is_reloaded_with_and_without_the_package(trained, checkout, tmp_path):
    """By the Auto classes: the same logits, of our own code and of the code beside the weights."""
    results = {}
    for name, first in (("package", "import hf_segtx"), ("remote", 'sys.modules["hf_segtx"] = None')):
        code = REPORT.format(first=first, folder=str(trained), remote=name == "remote")
        results[name] = json.loads(run(["-c", code], checkout, tmp_path).split("RESULT")[1])
    for name, package in (("package", "hf_segtx"), ("remote", "transformers_modules")):
        modules, model, logits = results[name]
        assert model == "QuintetForSemanticSegmentation" and {module.split(".")[0] for module in modules} == {package}
        assert len(logits) == 8 * 6 * 8 and logits == results["package"][2]
    place = "import hf_segtx, hf_segtx.architectures; print(hf_segtx.__file__, hf_segtx.architectures.__all__)"
    printed = run(["-c", place], checkout, tmp_path)
    assert str(checkout) in printed and "QuintetConfig" in printed


def test_its_backbone_is_refused_with_a_reason(trained, checkout, tmp_path):
    code = (
        "from hf_segtx.inference import load_model; from hf_segtx.weights import load_backbone\n"
        f"try: load_backbone(load_model({str(trained)!r})[0], {str(trained)!r})\n"
        "except ValueError as error: print('REFUSED', error)"
    )
    assert "REFUSED" in (output := run(["-c", code], checkout, tmp_path)) and "QuintetModel; train without" in output
