"""The table of architectures: nothing that belongs to one is missing."""

from pathlib import Path

import pytest
import torch
from tiny import CASES
from transformers import SegformerConfig, SegformerModel

import hf_segtx.weights.unknown
from hf_segtx.architectures import ARCHITECTURES, Architecture, architecture_of
from hf_segtx.weights import load_backbone


ROOT = Path(__file__).resolve().parent.parent


def what_is_missing(name: str, row: Architecture) -> list[str]:
    """Parts of an architecture that are not there, in words."""
    sources = row.weights.SOURCES
    here = {
        "a case in tests/tiny.py": name in CASES,
        "a card": (ROOT / "model_cards" / row.card).is_file(),
        "a citation in its card": (ROOT / "model_cards" / row.card).is_file()
        and "@inproceedings" in (ROOT / "model_cards" / row.card).read_text(),
        "checkpoint sources": bool(sources),
        "its own state dicts among the sources": any(source.is_own for source in sources.values()),
        "sources of other code bases": any(not source.is_own for source in sources.values()),
        "load_backbone": row.weights.load_backbone is not hf_segtx.weights.unknown.load_backbone,
        "a benchmark": (ROOT / "benchmarks" / f"{name}.py").is_file(),
        "a recipe": any((ROOT / "examples/recipes").glob(f"{name}_*.args")),
        "tests of its own": (ROOT / "tests" / f"test_{name}.py").is_file(),
        "from_size": callable(getattr(row.config, "from_size", None)),
        "a model_type of its name": row.config.model_type == f"segtx_{name}",
        "its files in models/": all(
            (ROOT / f"hf_segtx/models/{kind}_{name}.py").is_file() for kind in ("configuration", "modeling")
        ),
    }
    return [part for part, is_here in here.items() if not is_here]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_nothing_is_missing(name):
    assert what_is_missing(name, ARCHITECTURES[name]) == []


def test_every_case_and_card_has_a_row():
    assert list(CASES) == list(ARCHITECTURES)
    cards = {path.name for path in (ROOT / "model_cards").glob("*.md")} - {"card.md"}
    assert cards == {row.card for row in ARCHITECTURES.values()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_taken_away_is_missed(name, monkeypatch):
    """The test above can fail, part by part."""
    row = ARCHITECTURES[name]
    assert "checkpoint sources" in what_is_missing(name, row._replace(weights_module="unknown"))
    assert "load_backbone" in what_is_missing(name, row._replace(weights_module="unknown"))
    assert "a card" in what_is_missing(name, row._replace(card="nothing.md"))
    exists = Path.is_file
    for file, part in (
        (f"model_cards/{row.card}", "a card"),
        (f"benchmarks/{name}.py", "a benchmark"),
        (f"tests/test_{name}.py", "tests of its own"),
        (f"hf_segtx/models/modeling_{name}.py", "its files in models/"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "is_file", lambda path, gone=ROOT / file: path != gone and exists(path))
            assert part in what_is_missing(name, row)
    with monkeypatch.context() as patch:
        patch.delitem(CASES, name)
        assert "a case in tests/tiny.py" in what_is_missing(name, row)
    with monkeypatch.context() as patch:
        own = {source: value for source, value in row.weights.SOURCES.items() if value.is_own}
        patch.setattr(row.weights, "SOURCES", own)
        assert what_is_missing(name, row) == ["sources of other code bases"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_row_of_a_model(name):
    model = CASES[name].make_model()
    for part in (model, model.config, model.backbone):
        assert architecture_of(part) is ARCHITECTURES[name]
    with pytest.raises(ValueError, match="no pre-trained weights are known that fit"):
        hf_segtx.weights.unknown.load_backbone(model.backbone, Path("vit.pth"))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_first_size_is_the_smallest(name):
    """Automatic runs on a CPU take it."""
    row = ARCHITECTURES[name]
    with torch.device("meta"):
        numbers = [row.model(row.config.from_size(size)).num_parameters() for size in row.sizes]
    assert numbers[0] == min(numbers) and len(numbers) > 1


def test_who_has_a_position_table():
    """Those whose published models are shown windows of the size that they were trained with."""
    assert [name for name, row in ARCHITECTURES.items() if row.has_position_table] == ["setr", "segmenter"]


def test_models_of_others_have_no_row():
    """Also transformers' SegFormer, whose model_type is our name."""
    with pytest.raises(ValueError, match="SegformerModel is none of hf_segtx's; give one of SETRConfig"):
        load_backbone(SegformerModel(SegformerConfig(depths=[1] * 4)), "mit-b0")
