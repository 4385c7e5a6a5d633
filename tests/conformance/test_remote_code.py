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
picture = torch.randint(256, (3, 37, 53), dtype=torch.uint8)
with torch.no_grad():
    outputs = model(**processor(picture, return_tensors="pt"))
    label_map = processor.post_process_semantic_segmentation(outputs, target_sizes=[(37, 53)])[0]
    torch.save((images, model(images).logits, picture, label_map), {expected!r})
"""

USE = """
import io, json, logging, sys, warnings
{first}
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation, pipeline
log = io.StringIO()
for logger in ("transformers", "huggingface_hub", "py.warnings"):
    logging.getLogger(logger).addHandler(logging.StreamHandler(log))
logging.captureWarnings(True)
warnings.simplefilter("always", FutureWarning)
where, trust = {where!r}, {trust!r}
package = lambda thing: type(thing).__module__.split(".")[0]
model = AutoModelForSemanticSegmentation.from_pretrained(where, **trust).eval()
images, logits, picture, label_map = torch.load({expected!r})
with torch.no_grad():
    same_logits = torch.equal(model(images).logits, logits)
segments = pipeline("image-segmentation", model=where, **trust)(Image.fromarray(picture.permute(1, 2, 0).numpy()))
merged = torch.full((37, 53), -1)
for segment in segments:
    mask = torch.frombuffer(bytearray(segment["mask"].tobytes()), dtype=torch.uint8).view(37, 53) > 0
    merged[mask] = model.config.label2id[segment["label"]]
model.save_pretrained({again!r})
AutoImageProcessor.from_pretrained(where, **trust).save_pretrained({again!r})
print("RESULT", json.dumps(dict(
    same_logits=same_logits,
    same_label_map=torch.equal(merged, label_map),
    packages=[
        package(model),
        package(AutoConfig.from_pretrained(where, **trust)),
        package(AutoModel.from_pretrained(where, **trust)),
    ],
    backends=[AutoImageProcessor.from_pretrained(where, backend=b, **trust).backend for b in ("torchvision", "pil")],
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


def use(pushed, where, base, with_package=False):
    """What a fresh process reports on a checkpoint, and the folder where it saved it again."""
    _, environment, _ = pushed
    if with_package:  # and no remote code is allowed
        first, trust = f"sys.path.insert(0, {str(Path(hf_segtx.__file__).parents[1])!r}); import hf_segtx", {}
    else:
        first, trust = 'sys.modules["hf_segtx"] = None  # as where it is not installed', {"trust_remote_code": True}
    names = {"where": str(where), "expected": str(pushed[0] / "expected.pt"), "again": str(base / "again")}
    output = run(USE.format(first=first, trust=trust, **names), {**environment, "HF_HOME": str(base / "home")})
    return json.loads(output.split("RESULT")[1]), base / "again"


@pytest.fixture(scope="module", params=["folder", "hub", "saved again"])
def used(request, pushed, tmp_path_factory):
    """What a process without hf_segtx reports on the checkpoint."""
    base, _, repository = pushed
    report, again = use(pushed, repository if request.param == "hub" else base / "folder", tmp_path_factory.mktemp("a"))
    return use(pushed, again, tmp_path_factory.mktemp("b"))[0] if request.param == "saved again" else report


@pytest.fixture(scope="module", params=["folder", "hub"])
def used_with_package(request, pushed, tmp_path_factory):
    base, _, repository = pushed
    where = repository if request.param == "hub" else base / "folder"
    return use(pushed, where, tmp_path_factory.mktemp("c"), with_package=True)[0]


def test_predicts_the_same_without_the_package(used):
    assert used["same_logits"] and used["same_label_map"]
    assert used["packages"] == ["transformers_modules"] * 3
    assert used["backends"] == ["torchvision", "pil"]
    assert used["log"] == []


def test_needs_no_remote_code_with_the_package(used_with_package):
    assert used_with_package["same_logits"] and used_with_package["same_label_map"]
    assert used_with_package["packages"] == ["hf_segtx"] * 3
    assert used_with_package["backends"] == ["torchvision", "pil"]
    assert used_with_package["log"] == []


def test_auto_map_and_its_files(pushed):
    folder = pushed[0] / "folder"
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert {"AutoConfig", "AutoModel", "AutoModelForSemanticSegmentation"} <= set(auto_map)
    backends = json.loads((folder / "preprocessor_config.json").read_text())["auto_map"]["AutoImageProcessor"]
    assert set(backends) == {"torchvision", "pil"}  # a plain string serves one, and makes pipeline() ask for trust
    for reference in (*auto_map.values(), *backends.values()):
        assert (folder / f"{reference.split('.')[0]}.py").is_file()
