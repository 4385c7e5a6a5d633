"""The models as custom code of the Hub: pushed to a local fake Hub, used by a fresh process without hf_segtx."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from fake_hub import FakeHub
from tiny import CASES

import hf_segtx


PACKAGE = Path(hf_segtx.__file__).parents[1]
pytestmark = pytest.mark.slow  # fresh processes, 20 s a case

PUSH = """
import sys
sys.path[:0] = {path!r}
import torch
from tiny import CASES
case = CASES[{name!r}]
torch.manual_seed(0)
model = case.make_model()
windows = {{"do_resize": False, "window_size": 32, "window_stride": 16}}
whole = {{"size": {{"height": 64, "width": 64}}}}
processor = case.row.processor(**(windows if case.image_size == 32 else whole))
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
images, logits, picture, label_map = torch.load({expected!r})

def report(where, again=None, **options):
    package = lambda thing: type(thing).__module__.split(".")[0]
    model = AutoModelForSemanticSegmentation.from_pretrained(where, **options).eval()
    with torch.no_grad():
        same_logits = torch.equal(model(images).logits, logits)
    segments = pipeline("image-segmentation", model=where, **options)(Image.fromarray(picture.permute(1, 2, 0).numpy()))
    merged = torch.full((37, 53), -1)
    for segment in segments:
        mask = torch.frombuffer(bytearray(segment["mask"].tobytes()), dtype=torch.uint8).view(37, 53) > 0
        merged[mask] = model.config.label2id[segment["label"]]
    backends = [AutoImageProcessor.from_pretrained(where, backend=b, **options).backend for b in ("torchvision", "pil")]
    if again:
        model.save_pretrained(again)
        AutoImageProcessor.from_pretrained(where, **options).save_pretrained(again)
    return dict(
        same_logits=same_logits,
        same_label_map=torch.equal(merged, label_map),
        packages=[
            package(model),
            package(AutoConfig.from_pretrained(where, **options)),
            package(AutoModel.from_pretrained(where, **options)),
        ],
        backends=backends,
        log=log.getvalue().splitlines(),
    )

print("RESULT", json.dumps([report(*where, **options) for where, options in {places!r}]))
"""


def run(code, environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tempfile.gettempdir(),
        timeout=600,
        stdin=subprocess.DEVNULL,  # a question for trust would fail, not wait
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=CASES)
def pushed(request, tmp_path_factory):
    """(folder for everything, environment of the fake Hub, repository on it, its last commit)."""
    base = tmp_path_factory.mktemp(request.param)
    repository = f"tester/{request.param}"
    with FakeHub() as hub:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and k != "PYTHONPATH"}
        environment.update(hub.env(base / "home"))
        path = [str(Path(__file__).parents[1]), str(PACKAGE)]
        names = {"folder": str(base / "folder"), "expected": str(base / "expected.pt"), "repository": repository}
        run(PUSH.format(path=path, name=request.param, **names), environment)
        yield base, environment, repository, hub.repos["model", repository]["commits"][-1][0]


def test_predicts_the_same_without_the_package(pushed):
    """From a folder, what that process saved again, and the Hub; to the bit, and without a warning."""
    base, environment, repository, commit = pushed
    options = {"trust_remote_code": True}
    again = str(base / "again")
    places = [((str(base / "folder"), again), options), ((again,), options)]
    places.append(((repository,), {**options, "revision": commit}))  # transformers warns of code that is not pinned
    first = 'sys.modules["hf_segtx"] = None  # as where it is not installed'
    output = run(USE.format(first=first, places=places, expected=str(base / "expected.pt")), environment)
    for report in json.loads(output.split("RESULT")[1]):
        assert report == {
            "same_logits": True,
            "same_label_map": True,
            "packages": ["transformers_modules"] * 3,
            "backends": ["torchvision", "pil"],
            "log": [],
        }


def test_needs_no_remote_code_with_the_package(pushed):
    base, environment, repository, _ = pushed
    first = f"sys.path.insert(0, {str(PACKAGE)!r}); import hf_segtx"
    places = [((str(base / "folder"),), {}), ((repository,), {})]
    output = run(USE.format(first=first, places=places, expected=str(base / "expected.pt")), environment)
    for report in json.loads(output.split("RESULT")[1]):
        assert report == {
            "same_logits": True,
            "same_label_map": True,
            "packages": ["hf_segtx"] * 3,
            "backends": ["torchvision", "pil"],
            "log": [],
        }


def test_auto_map_and_its_files(pushed):
    folder = pushed[0] / "folder"
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert {"AutoConfig", "AutoModel", "AutoModelForSemanticSegmentation"} <= set(auto_map)
    backends = json.loads((folder / "preprocessor_config.json").read_text())["auto_map"]["AutoImageProcessor"]
    assert set(backends) == {"torchvision", "pil"}  # a plain string serves one, and makes pipeline() ask for trust
    for reference in (*auto_map.values(), *backends.values()):
        assert (folder / f"{reference.split('.')[0]}.py").is_file()
