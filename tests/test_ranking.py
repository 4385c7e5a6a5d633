"""Which pictures to label next: the order by hand, uncertainty against its definition, the command."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CASES

from hf_segtx import SegFormerImageProcessor
from hf_segtx.cli import main
from hf_segtx.inference import predict, segment
from hf_segtx.prediction.ranking import SCALES, look_at, rank, shares_below, spread


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return CASES["segformer"].make_model()


@pytest.fixture(scope="module")
def processor():
    return SegFormerImageProcessor(do_resize=False)


@pytest.fixture
def pictures(tmp_path):
    """a and b are equal, c is another, d is grey."""
    random = np.random.default_rng(0)
    first, other = random.integers(0, 256, (2, 48, 64, 3)).astype(np.uint8)
    for name, pixels in {"a": first, "b": first, "c": other, "d": np.full_like(first, 128)}.items():
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"pictures/{name}.png")
    return tmp_path / "pictures"


def test_shares_below():
    np.testing.assert_allclose(shares_below([3, 1, 2, 2]), [3.5 / 4, 0.5 / 4, 2 / 4, 2 / 4])
    np.testing.assert_allclose(shares_below([7]), [0.5])


def test_order_by_hand():
    features = [[1, 0], [1, 0], [0, 1], [0.6, 0.8]]
    # 0 first; then 0.5 * sqrt(2) = 0.71 of 2, 0.6 * sqrt(0.8) = 0.54 of 3 and 0 of its twin 1; then 3 is nearer to 2:
    # 0.6 * sqrt(0.4) = 0.38; the twin is last
    assert spread([1, 0.9, 0.5, 0.6], features, None, 1) == [0, 2, 3, 1]
    assert spread([1, 0.9, 0.5, 0.6], features, 2, 1) == [0, 2]
    assert spread([1, 0.9, 0.5, 0.6], features, None, 0) == [0, 1, 3, 2]


def test_numbers_of_a_picture(model, processor, pictures):
    found = look_at(model, processor, pictures / "c.png")
    image = Image.open(pictures / "c.png")
    (averaged,) = segment(model, processor, [image], scales=SCALES, flip=True, return_uncertainty=True)
    (plain,) = predict(model, processor, [image])
    assert found.entropy == averaged.entropy.mean().item() > 0
    assert found.disagreement == (plain != averaged.label_map).float().mean().item() > 0
    with torch.no_grad():
        last = model.backbone(processor(image, return_tensors="pt")["pixel_values"]).feature_maps[-1]
    pooled = last.mean((2, 3))[0]
    np.testing.assert_allclose(found.features, pooled / pooled.norm(), atol=1e-6)  # float32, the same operations


def test_twins_are_not_both_first(model, processor, pictures):
    files = sorted(pictures.iterdir())
    ranked, failures = rank(model, processor, files)
    names = [one.file.stem for one in ranked]
    assert sorted(names) == ["a", "b", "c", "d"] and not failures
    assert names[-1] in "ab"  # the twin of one that was chosen
    assert [one.uncertainty for one in rank(model, processor, files, diversity=0)[0]] == sorted(
        (one.uncertainty for one in ranked), reverse=True
    )


def test_command(model, processor, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hf_segtx.cli.rank.load", lambda name, settings, optimize: (model, processor))
    (pictures / "e.png").write_bytes(b"torn")
    out = tmp_path / "out"
    for _ in range(2):  # what it wrote may be replaced
        assert main(["rank", "model", str(pictures), "--count", "3", "--output_dir", str(out)]) == 1
    assert "e.png: cannot be decoded" in capsys.readouterr().err
    rows = list(csv.DictReader((out / "ranking.csv").open(newline="")))
    assert [row["order"] for row in rows] == ["1", "2", "3"]
    assert len({row["image"] for row in rows}) == 3
    assert Image.open(out / "contact_sheet.png").width > 1000
    (out / "ranking.csv").write_text("mine")
    assert main(["rank", "model", str(pictures), "--output_dir", str(out)]) == 2
    assert (out / "ranking.csv").read_text() == "mine"
