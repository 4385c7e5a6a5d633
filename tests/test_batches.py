"""The function of batches: rows equal to `predict` and `segment` whatever holds the images; under a local Ray."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny import CASES

from hf_segtx import SegFormerImageProcessor
from hf_segtx.inference import predict, segment
from hf_segtx.prediction import BatchSegmenter
from hf_segtx.prediction.batches import SCHEMA


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    CASES["segformer"].make_model().save_pretrained(folder)
    SegFormerImageProcessor(do_resize=False).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Seven, of two sizes; number 2 is broken."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(7):
        pixels = np.random.default_rng(number).integers(0, 256, (40 + number % 2 * 8, 56, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:300])
    return sorted(folder.iterdir())


def check(segmenter: BatchSegmenter, row: dict, file: Path) -> None:
    """That a row of results is that of the picture file."""
    model, processor, image = segmenter.predictor.model, segmenter.predictor.processor, Image.open(file)
    (expected,) = predict(model, processor, [image])
    assert (np.asarray(Image.open(io.BytesIO(row["label"]))) == expected.numpy()).all()
    assert (row["height"], row["width"]) == (image.height, image.width) and row["error"] is None
    (known,) = segment(model, processor, [image], return_uncertainty=True)
    assert row["confidence"] == np.float32(known.confidence.mean())
    assert row["entropy"] == np.float32(known.entropy.mean())


KINDS = {
    "contents": lambda file: file.read_bytes(),
    "paths": str,
    "dicts": lambda file: {"bytes": file.read_bytes(), "path": None},
    "arrays": lambda file: np.asarray(Image.open(file)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_what_predict_gives(checkpoint, pictures, kind):
    segmenter = BatchSegmenter(checkpoint, image_column="content", name_column="id", device="cpu")
    whole = [file for file in pictures if file.stem != "2"]
    contents = np.empty(len(whole), object)  # as Ray hands over what is not of one shape
    for index, file in enumerate(whole):
        contents[index] = KINDS[kind](file)
    table = segmenter({"id": np.arange(len(whole)), "content": contents})
    assert table.schema == SCHEMA and table["name"].to_pylist() == [str(number) for number in range(len(whole))]
    for row, file in zip(table.to_pylist(), whole, strict=True):
        check(segmenter, row, file)


def test_a_broken_image_is_a_row_of_its_own(checkpoint, pictures):
    """A data frame, as Spark hands over; seven images, three at a time."""
    segmenter = BatchSegmenter(checkpoint, uncertainty=False, batch_size=3, device="cpu")
    frame = pd.DataFrame({"path": map(str, pictures), "bytes": [file.read_bytes() for file in pictures]})
    rows = segmenter(frame).to_pylist()
    assert [row["name"] for row in rows] == list(map(str, pictures))
    assert "2.png: cannot be decoded" in rows[2].pop("error")
    assert set(rows[2].values()) == {str(pictures[2]), None}
    for row, file in zip(rows, pictures, strict=True):
        if file.stem != "2":
            assert row["confidence"] is None and row["entropy"] is None
            (expected,) = segmenter.predictor.predict([Image.open(file)])
            assert (np.asarray(Image.open(io.BytesIO(row["label"]))) == expected).all()


def test_what_is_no_image_is_refused(checkpoint, pictures):
    segmenter = BatchSegmenter(checkpoint, device="cpu")
    with pytest.raises(ValueError, match=r"no column 'bytes' among \['image'\]"):
        segmenter({"image": [b""]})
    with pytest.raises(TypeError, match="image 1 of a batch is a float"):
        segmenter({"bytes": [pictures[0].read_bytes(), 0.5]})
    arrays = [np.zeros((40, 56), np.uint8), np.zeros((40, 56, 3), np.float32), None]
    grey, deep, missing = segmenter({"bytes": arrays})["error"].to_pylist()
    assert "array (40, 56) of uint8; give uint8 (height, width, 3 channels)" in grey
    assert "float32" in deep and "null" in missing
    assert len(segmenter({"bytes": []})) == 0


@pytest.mark.slow
def test_script_for_ray(checkpoint, pictures, tmp_path):
    """On a Ray of this machine, as many workers as a small one has processors."""
    pytest.importorskip("ray")
    script = [sys.executable, str(ROOT / "examples/own_code/predict_ray.py"), checkpoint, str(pictures[0].parent)]
    script += [str(tmp_path / "labels"), "--workers", "2", "--batch_size", "3"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and "2.png: cannot be decoded" in done.stderr, done.stderr
    rows = pq.read_table(tmp_path / "labels").to_pylist()
    segmenter = BatchSegmenter(checkpoint, device="cpu")
    assert sorted(row["name"] for row in rows) == list(map(str, pictures))
    for row in rows:
        if Path(row["name"]).stem != "2":
            check(segmenter, row, Path(row["name"]))
