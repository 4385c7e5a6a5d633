"""The models as custom code of the Hub: pushed to a local fake Hub, used by a fresh process without hf_segtx."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from fake_hub import FakeHub
from table import CASES

import hf_segtx


pytestmark = pytest.mark.slow  # fresh processes, 20 s a case

PUSH = """
import sys
sys.path[:0] = {path!r}
import torch
from table import CASES
case = next(case for case in CASES if case.name == {name!r})
torch.manual_seed(0)
model = case.get("ForSemanticSegmentation")(case.make_config()).eval()
processor = case.get("ImageProcessor")(size={{"height": case.image_size, "width": case.image_size}})
model.save_pretrained({folder!r})
processor.save_pretrained({folder!r})
model.push_to_hub({repository!r})
processor.push_to_hub({repository!r})
images = torch.randn(1, 3, case.image_size, case.image_size)
with torch.no_grad():
    torch.save((images, model(images).logits), {expected!r})
"""

USE = """
import io, json, logging, sys
sys.modules["hf_segtx"] = None  # as where it is not installed
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation, pipeline
log = io.StringIO()
logging.getLogger("transformers").addHandler(logging.StreamHandler(log))
where, trust = {where!r}, dict(trust_remote_code=True)
package = lambda thing: type(thing).__module__.split(".")[0]
model = AutoModelForSemanticSegmentation.from_pretrained(where, **trust).eval()
images, logits = torch.load({expected!r})
with torch.no_grad():
    same_logits = torch.allclose(model(images).logits, logits, atol=1e-5)  # rounding
segments = pipeline("image-segmentation", model=where, **trust)(Image.new("RGB", (53, 37), (9, 200, 30)))
model.save_pretrained({again!r})
AutoImageProcessor.from_pretrained(where, **trust).save_pretrained({again!r})
print("RESULT", json.dumps(dict(
    same_logits=same_logits,
    packages=[
        package(model),
        package(AutoConfig.from_pretrained(where, **trust)),
        package(AutoModel.from_pretrained(where, **trust)),
    ],
    backends=[AutoImageProcessor.from_pretrained(where, backend=b, **trust).backend for b in ("torchvision", "pil")],
    segments=[(segment["label"], segment["mask"].size) for segment in segments],
    log=log.getvalue().splitlines(),
)))
"""


def run(code, environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tempfile.gettempdir(),
        timeout=300,
        stdin=subprocess.DEVNULL,  # a question for trust would fail, not wait
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def pushed(request, tmp_path_factory):
    """(folder with the saved checkpoint and expected.pt, environment of the fake Hub, repository on it)."""
    base = tmp_path_factory.mktemp(request.param.name)
    repository = f"tester/{request.param.name}"
    with FakeHub() as hub:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and k != "PYTHONPATH"}
        environment.update(hub.env(base / "home"))
        path = [str(Path(__file__).parent), str(Path(hf_segtx.__file__).parents[1])]
        names = {"folder": str(base / "folder"), "expected": str(base / "expected.pt"), "repository": repository}
        run(PUSH.format(path=path, name=request.param.name, **names), environment)
        yield base, environment, repository


@pytest.fixture(scope="module", params=["folder", "hub", "saved again"])
def used(request, pushed, tmp_path_factory):
    """What a process without hf_segtx reports on the checkpoint."""
    base, environment, repository = pushed

    def use(where):
        home, again = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("again")
        code = USE.format(where=str(where), expected=str(base / "expected.pt"), again=str(again))
        report = json.loads(run(code, {**environment, "HF_HOME": str(home)}).split("RESULT")[1])
        return report, again

    if request.param == "saved again":
        return use(use(base / "folder")[1])[0]
    return use(repository if request.param == "hub" else base / "folder")[0]


def test_loads_without_the_package(used):
    assert used["same_logits"] and used["packages"] == ["transformers_modules"] * 3


def test_pipeline_runs(used):
    assert used["segments"] and all(size == [53, 37] for _, size in used["segments"])


def test_each_backend_is_carried(used):
    assert used["backends"] == ["torchvision", "pil"]


def test_no_complaints(used):
    assert not [line for line in used["log"] if "not supported for" in line or "newly initialized" in line]


def test_auto_map_and_its_files(pushed):
    folder = pushed[0] / "folder"
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert {"AutoConfig", "AutoModel", "AutoModelForSemanticSegmentation"} <= set(auto_map)
    backends = json.loads((folder / "preprocessor_config.json").read_text())["auto_map"]["AutoImageProcessor"]
    assert set(backends) == {"torchvision", "pil"}  # a plain string serves one, and makes pipeline() ask for trust
    for reference in (*auto_map.values(), *backends.values()):
        assert (folder / f"{reference.split('.')[0]}.py").is_file()
