"""The layers of the package, read off its source: who may import whom."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest


PACKAGE = Path(__file__).parents[1] / "hf_segtx"
MODELS = sorted(p for p in (PACKAGE / "models").glob("*.py") if p.name != "__init__.py")
SHARED = {
    "layers",
    "feature_maps",
    "pretrained_backbone",
    "cpu",
    "upsampling",
    "triton_kernels",
    "sliding_windows",
    "vision_transformer",
    "segmentation_base",
    "image_processing_segtx",
}
ALLOWED_PACKAGES = {"torch", "torchvision", "transformers", "huggingface_hub", "safetensors", "numpy", "PIL", "timm"}


def imports(path):
    """(absolute top-level packages, own modules) that a file imports, anywhere in it."""
    absolute, own = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            absolute |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module and "." not in node.module, f"{path.name}: only single-dot imports"
            own.add(node.module)
        elif isinstance(node, ast.ImportFrom):
            absolute.add(node.module.split(".")[0])
    return absolute - set(sys.stdlib_module_names), own


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_models_can_travel(path):
    absolute, own = imports(path)
    assert absolute <= ALLOWED_PACKAGES | ({"triton"} if path.stem == "triton_kernels" else set())
    assert "timm" not in absolute or path.stem == "pretrained_backbone"
    if path.stem.startswith("configuration_"):
        assert not absolute & {"torch", "torchvision"} and own <= {"configuration_base"}
    if path.stem == "triton_kernels":
        assert not own
    if path.stem == "layers":
        assert own == {"cpu"}
    if path.stem == "upsampling":
        assert own == {"triton_kernels"}
    if path.stem in ("sliding_windows", "cpu"):
        assert own == {"upsampling"}
    if path.stem.startswith("modeling_"):
        assert own <= SHARED | {path.stem.replace("modeling", "configuration")}


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_no_docstring_looks_like_an_import(path):
    """save_pretrained finds the files to copy with a regular expression that reads docstrings too."""
    found = re.findall(r"^\s*from\s+\.(\S+)\s+import", path.read_text(), flags=re.MULTILINE)
    assert set(found) == imports(path)[1]


def test_import_is_light():
    """Nothing beyond what transformers' own model and processor classes load."""
    code = (
        "import sys; from transformers import AutoImageProcessor, PreTrainedModel; before = set(sys.modules);"
        "import hf_segtx; print(*{m.split('.')[0] for m in set(sys.modules) - before})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"datasets", "accelerate", "evaluate", "timm", "matplotlib"}
    assert done.stderr == ""


def test_extras_are_not_needed_by_who_does_not_use_them():
    """Of a plain installation; each of these modules serves several extras, or none."""
    extras = "onnx onnxruntime onnxscript openvino nncf gradio peft scipy tifffile pycocotools av rasterio".split()
    modules = "export export.folder export.metadata demo.space demo.static_page prediction.archives prediction.ranking"
    modules += " prediction.explain inference evaluation data training.loop training.setup weights hub pipeline"
    code = f"import sys; sys.modules.update(dict.fromkeys({extras})); import " + ", ".join(
        f"hf_segtx.{module}" for module in modules.split()
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
