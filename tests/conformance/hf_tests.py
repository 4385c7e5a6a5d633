"""Make transformers' own common test mixins importable, without copying any of their code.

`load()` finds the `tests/` folder of the installed transformers version:
  1. $TRANSFORMERS_TESTS (a folder holding test_modeling_common.py), else
  2. transformers' source distribution, fetched once by `pip download` into $TRANSFORMERS_TESTS_CACHE
     (default ~/.cache/hf_segtx/transformers-sdist); about 10 MB, 10 s.
It then builds a throw-away *view*: a package `tests/` of links to those files, and small stand-ins, written here, for
the modules that the source distribution leaves out (it ships tests/*.py only, no sub-folders). The real ones would also
pull in onnx, openvino and downloads.
"""

import atexit
import functools
import importlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from tiny import CASES


MIXINS = {
    "backbone": "test_backbone_common",
    "modeling": "test_modeling_common",
    "configuration": "test_configuration_common",
    "image_processing": "test_image_processing_common",
    "pipeline": "test_pipeline_mixin",
}

STAND_INS = {
    "tests/__init__.py": "",
    "tests/exporters/__init__.py": "",
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/generation/__init__.py": "",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/utils/__init__.py": "",
    # Values only have to differ from PreTrainedConfig's defaults.
    "tests/utils/test_configuration_utils.py": (
        "config_common_kwargs = {\n"
        "    'return_dict': False, 'output_hidden_states': True, 'output_attentions': True, 'dtype': 'float16',\n"
        "    'chunk_size_feed_forward': 5, 'architectures': ['SomeModel'], 'is_encoder_decoder': False,\n"
        "    'id2label': {0: 'label'}, 'label2id': {'label': 0}, 'problem_type': 'regression',\n"
        "}\n"
    ),
    "tests/pipelines/__init__.py": "",
    "tests/pipelines/test_pipelines_image_segmentation.py": (
        "from pipeline_checks import ImageSegmentationPipelineTests\n"
    ),
    "utils/fetch_hub_objects_for_ci.py": "from offline_images import url_to_local_path\n",
    # `direct_transformers_import()` runs this file as module "transformers" and returns sys.modules["transformers"].
    "src/transformers/__init__.py": "",
    # PipelineTesterMixin takes its models from a folder with such an index.
    "tiny_models/reports/tiny_model_summary.json": json.dumps(
        {
            case.row.model.__name__: {
                "tokenizer_classes": [],
                "processor_classes": [case.row.processor.__name__],
            }
            for case in CASES.values()
        }
    ),
}


def download(version: str) -> Path:
    """The `tests/` folder of transformers' source distribution, from the cache or the package index."""
    cache = Path(os.environ.get("TRANSFORMERS_TESTS_CACHE", Path.home() / ".cache/hf_segtx/transformers-sdist"))
    tests = cache / f"transformers-{version}/tests"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "lock"):  # the workers of pytest-xdist all come here
        if not tests.is_dir():
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-binary", ":all:", "--no-deps"]
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                subprocess.run(
                    [*command, "-d", folder, f"transformers=={version}"],
                    check=True,
                    capture_output=True,
                    text=True,
                    timeout=300,
                )
                (archive,) = Path(folder).glob("*.tar.gz")
                with tarfile.open(archive) as tar:
                    members = [member for member in tar.getmembers() if member.name.split("/")[1:2] == ["tests"]]
                    tar.extraction_filter = getattr(tarfile, "data_filter", None)  # as far as this Python has it
                    tar.extractall(folder, members=members)
                tests.parent.mkdir(exist_ok=True)
                (Path(folder) / f"transformers-{version}/tests").rename(tests)  # whole or not at all
    return tests


@functools.cache
def load() -> SimpleNamespace:
    """The modules with the mixins, by the names in `MIXINS`. Skips the calling test module where they cannot be had."""
    pytest.importorskip("parameterized")
    try:
        given = os.environ.get("TRANSFORMERS_TESTS")
        tests = Path(given) if given else download(importlib.metadata.version("transformers"))
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1]
        pytest.skip(f"no source distribution of transformers: {reason}", allow_module_level=True)
    view = Path(tempfile.mkdtemp(prefix="hf-tests-view-"))
    atexit.register(shutil.rmtree, view, ignore_errors=True)
    for name, text in STAND_INS.items():
        path = view / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for file in tests.glob("*.py"):
        if file.name != "__init__.py":
            (view / "tests" / file.name).symlink_to(file.resolve())
    os.environ["TRANSFORMERS_TINY_MODEL_PATH"] = str(view / "tiny_models")  # read when the mixins are imported
    os.environ.setdefault("TRANSFORMERS_TEST_DEVICE", "cpu")
    for old in [name for name in sys.modules if name == "tests" or name.startswith("tests.")]:
        del sys.modules[old]
    sys.path.insert(0, str(view))
    modules = {name: importlib.import_module(f"tests.{module}") for name, module in MIXINS.items()}
    return SimpleNamespace(tiny_models=view / "tiny_models", **modules)


def save_tiny_models(folder: Path):
    """Models and processors of all cases, in the layout that PipelineTesterMixin reads."""
    torch.manual_seed(0)
    for case in CASES.values():
        model = case.make_model()
        processor = case.row.processor(size={"height": case.image_size, "width": case.image_size})
        for part in (model, processor):
            part.save_pretrained(folder / model.config.model_type / type(model).__name__)
