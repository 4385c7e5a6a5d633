"""The documentation: its code runs, its figures and tables are those that its generator makes, its API pages exist."""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest
from sybil.document import Document
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from tiny import CASES
from transformers import (
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SegformerConfig,
    SegformerForImageClassification,
    ViTImageProcessor,
)

from hf_segtx.data import load_data
from hf_segtx.models.image_processing_segtx import SegFormerImageProcessor


DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "```python" in path.read_text())


def name_of(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """The folder in which a reader would be: with an untrained model of the embedded scenes, and a photo."""
    folder = tmp_path_factory.mktemp("reader")
    _, validation, labels = load_data(max_eval_samples=1)
    model = CASES["segformer"].make_model(num_labels=labels.num_labels, id2label=labels.id2label)
    model.save_pretrained(folder / "outputs/segformer_scenes")
    SegFormerImageProcessor(do_resize=False).save_pretrained(folder / "outputs/segformer_scenes")
    validation[0]["image"].save(folder / "photo.jpg")
    # Weights that pages take from the Hub: a folder of that name is found first.
    sizes = {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4}
    SegformerForImageClassification(SegformerConfig(**sizes)).save_pretrained(folder / "nvidia/mit-b2")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    dinov3 = folder / "facebook/dinov3-vits16-pretrain-lvd1689m"
    DINOv3ViTModel(DINOv3ViTConfig(**sizes)).save_pretrained(dinov3)
    ViTImageProcessor(size={"height": 224, "width": 224}).save_pretrained(dinov3)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_runs(page, workplace, monkeypatch):
    """All blocks of Python of a page, one after the other."""
    monkeypatch.chdir(workplace)
    document = Document.parse(str(page), SkipParser(), PythonCodeBlockParser())
    examples = list(document)
    assert examples
    for example in examples:
        example.evaluate()


def test_a_block_that_fails_would_be_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    first, second = Document.parse(str(page), SkipParser(), PythonCodeBlockParser())
    first.evaluate()
    with pytest.raises(AssertionError):
        second.evaluate()


@pytest.mark.slow
def test_figures_and_tables_are_those_of_the_generator(tmp_path, monkeypatch):
    specification = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    generate = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(generate)
    shutil.copytree(DOCS / "architectures", tmp_path / "architectures")
    monkeypatch.setattr(generate, "FOLDER", tmp_path / "architectures")
    generate.write()
    for file in sorted((DOCS / "architectures").iterdir()):
        assert (tmp_path / "architectures" / file.name).read_text() == file.read_text(), (
            f"{file.name}: run docs/generate.py"
        )


def test_every_page_is_in_the_navigation():
    """mkdocs warns of a page that is not; but a page that is gone must also leave."""
    navigation = re.findall(r": ([\w/]+\.md)$", (DOCS.parent / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(navigation) == sorted(name_of(path) for path in DOCS.rglob("*.md"))


def test_documented_modules_exist():
    for page in DOCS.rglob("*.md"):
        for path in re.findall(r"^::: ([\w.]+)", page.read_text(), re.MULTILINE):
            module, _, name = path.rpartition(".")
            found = importlib.import_module(module)
            assert hasattr(found, name) or importlib.util.find_spec(path), f"{name_of(page)}: {path}"
