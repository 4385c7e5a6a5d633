"""Importing the package is cheap and registers the architectures: every way to ask transformers, in a fresh process."""

import json
import subprocess
import sys

import pytest

from hf_segtx import SegFormerConfig, SegFormerForSemanticSegmentation, SegFormerImageProcessor
from hf_segtx.architectures import ARCHITECTURES


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_nothing_but_python():
    heavy = {"torch", "transformers", "numpy", "PIL", "huggingface_hub"}
    code = f"import sys, hf_segtx, hf_segtx.cli; print({heavy} & {{name.split('.')[0] for name in sys.modules}})"
    assert run(code) == "set()"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    sizes = {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 16}
    SegFormerForSemanticSegmentation(SegFormerConfig(**sizes, num_labels=3)).save_pretrained(folder)
    SegFormerImageProcessor(do_resize=False).save_pretrained(folder)
    return folder


HEAD = """
import hf_segtx
from pickle import dumps
from subprocess import check_output
from sys import executable

def show(*objects):
    print(*(type(o).__module__ for o in objects))
"""
WAYS = {
    "configuration": "from transformers import AutoConfig as A; show(A.from_pretrained(model))",
    "model": "from transformers import AutoModelForSemanticSegmentation as A; show(A.from_pretrained(model))",
    "backbone": "from transformers import AutoModel as A; show(A.from_pretrained(model))",
    "processor alone": "from transformers import AutoImageProcessor as A; show(A.from_pretrained(model))",
    "processor of PIL": """
from transformers import AutoImageProcessor as A
show(A.from_pretrained(model, backend="pil"))""",
    "pipeline": """
import evaluate  # imports transformers.pipelines before it has its own names
from transformers import pipeline
segmenter = pipeline("image-segmentation", model, device="cpu")
show(segmenter.model, segmenter.image_processor)""",
    "transformers' own model first": """
from transformers import SegformerForSemanticSegmentation, AutoModel
show(AutoModel.from_pretrained(model))""",
    "configuration of its own file": """
from hf_segtx.models.configuration_segformer import SegFormerConfig
configuration = SegFormerConfig.from_pretrained(model)
from transformers import AutoModel
show(AutoModel.from_config(configuration))""",
    "pickled configuration": """
code = f"import pickle; c = pickle.loads({dumps(hf_segtx.SegFormerConfig())}); from transformers import AutoModel as A;"
print(check_output([executable, "-c", code + "print(type(A.from_config(c)).__module__)"], text=True))""",
    "encoder inside another model": """
from transformers import UperNetConfig, UperNetForSemanticSegmentation as M
configuration = UperNetConfig(backbone_config={"model_type": "segtx_mit"}, use_auxiliary_head=False, pool_scales=[1])
show(configuration.backbone_config, M(configuration).backbone)""",
    "all names": "from hf_segtx import *; print(SETRModel.__module__, OCRNetImageProcessorPil.__module__)",
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_transformers_finds_our_classes(way, checkpoint):
    modules = run(f"{HEAD}model = {str(checkpoint)!r}\n{WAYS[way]}").split()
    assert modules and all(module.startswith("hf_segtx.models.") for module in modules)


@pytest.mark.slow
def test_what_was_imported_before_is_registered_at_once(checkpoint):
    code = f"""
from transformers import AutoImageProcessor, AutoModel
import hf_segtx
for kind in (AutoModel, AutoImageProcessor):
    print(type(kind.from_pretrained({str(checkpoint)!r})).__module__)
"""
    assert run(code).split() == ["hf_segtx.models.modeling_segformer", "hf_segtx.models.image_processing_segtx"]


@pytest.mark.slow
def test_processor_from_its_own_file_is_saved_with_its_code(tmp_path):
    run(
        "from hf_segtx.models.image_processing_segtx import SETRImageProcessor as P; "
        f"P().save_pretrained({str(tmp_path)!r})"
    )
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["auto_map"]["AutoImageProcessor"]["torchvision"].endswith(".SETRImageProcessor")
    assert (tmp_path / "image_processing_segtx.py").is_file()


@pytest.mark.slow
def test_import_that_was_interrupted_registers_when_it_is_repeated():
    name = "transformers.models.auto.configuration_auto"
    code = f"""
import sys, hf_segtx
class Interruption:
    def find_spec(self, name, path=None, target=None):
        if name == "transformers.models.auto.auto_mappings":
            sys.meta_path.remove(self)
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interruption())
try:
    import {name}
except KeyboardInterrupt:
    print("interrupted")
from {name} import CONFIG_MAPPING
print("segtx_setr" in CONFIG_MAPPING)
"""
    assert run(code).split() == ["interrupted", "True"]


def test_every_architecture_has_a_configuration_file_that_is_found():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from hf_segtx.registration import MODELS, register_configurations

    register_configurations()  # twice does no harm
    names = {file.stem.removeprefix("configuration_") for file in MODELS.glob("configuration_*.py")}
    assert names - {"base", "backbones"} == set(ARCHITECTURES)
    for name, row in ARCHITECTURES.items():
        assert CONFIG_MAPPING[f"segtx_{name}"] is row.config


@pytest.mark.slow
@pytest.mark.parametrize("name", ["modeling_setr", "modeling_segformer", "backbones", "image_processing_segtx"])
def test_any_file_of_the_models_may_be_imported_first(name):
    """In the middle of it transformers' Auto classes are imported, which asks for all the files at once."""
    code = f"""
import hf_segtx.models.configuration_setr, hf_segtx.models.{name}
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from hf_segtx.architectures import ARCHITECTURES, AutoImageProcessor as ours
print(ours is AutoImageProcessor, all(row.config in IMAGE_PROCESSOR_MAPPING for row in ARCHITECTURES.values()))
"""
    assert run(code) == "True True"
