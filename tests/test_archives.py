"""Predictions in shards: each image once, equal to `predict`, for any number of processes and whoever is killed."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny import CASES

from hf_segtx import SegFormerImageProcessor
from hf_segtx.cli import main
from hf_segtx.inference import load_model, predict, segment
from hf_segtx.prediction import Predictor, find_sources
from hf_segtx.prediction.archives import files_as_records, open_archive, segment_archive


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    CASES["segformer"].make_model().save_pretrained(folder)
    SegFormerImageProcessor(do_resize=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return Predictor(*load_model(checkpoint))


def picture(number, height=40, width=56) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3)).astype(np.uint8))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Eleven, of two sizes; number 4 is broken."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(11):
        picture(number, 40 + number % 2 * 8).save(folder / f"{number:02}.png")
    (folder / "04.png").write_bytes((folder / "04.png").read_bytes()[:300])
    return folder


def rows(folder) -> list[dict]:
    """Of all shards, in the order of the names of the files."""
    found = []
    for file in sorted(folder.glob("*.parquet")):
        found += pq.read_table(file).to_pylist()
    for file in sorted(folder.glob("*.tar")):
        with tarfile.open(file) as archive:
            members = {member.name: archive.extractfile(member).read() for member in archive}
        for name, content in members.items():
            if name.endswith(".json"):
                label = members.get(name.replace(".json", ".label.png"))
                found.append({**json.loads(content), "label": label and {"bytes": label}})
    return found


def ids(row) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(row["label"]["bytes"])))


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
@pytest.mark.parametrize("uncertainty", [True, False])
def test_rows_are_what_predict_gives(predictor, pictures, tmp_path, kind, uncertainty):
    records = files_as_records(find_sources([str(pictures)]).names)
    settings = {"kind": kind, "images_per_shard": 4, "uncertainty": uncertainty, "batch_size": 2}
    errors = []
    for rank in (2, 0, 1):  # three shards
        errors += segment_archive(predictor, records, tmp_path / "out", rank=rank, num_processes=3, **settings)
    assert len(errors) == 1 and "04.png: cannot be decoded" in errors[0]
    found = rows(tmp_path / "out")
    assert [row["index"] for row in found] == list(range(11))
    for row in found:
        name = pictures / f"{row['index']:02}.png"
        assert row["name"] == str(name)
        if row["index"] == 4:
            assert row["error"] and row["label"] is None
            continue
        image = Image.open(name)
        (expected,) = predict(predictor.model, predictor.processor, [image])
        assert (row["height"], row["width"]) == (image.height, image.width) and row["error"] is None
        assert (ids(row) == expected.numpy()).all()
        if uncertainty:
            (known,) = segment(predictor.model, predictor.processor, [image], return_uncertainty=True)
            assert row["confidence"] == np.float32(known.confidence.mean()) or kind == "webdataset"
            assert row["entropy"] == pytest.approx(known.entropy.mean().item(), rel=1e-6)  # float32 in between
        else:
            assert row["confidence"] is None and row["entropy"] is None


def test_datasets_reads_the_shards(predictor, pictures, tmp_path):
    records = files_as_records(find_sources([str(pictures)]).names)
    segment_archive(predictor, records, tmp_path / "out", images_per_shard=6)
    table = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(table) == 11 and table[0]["label"].size == (56, 40)
    metadata = pq.read_schema(next((tmp_path / "out").glob("*.parquet"))).metadata
    assert {b"weights_sha256", b"images_sha256", b"processor"} <= set(metadata)


def archive(folder, kind: str, numbers) -> str:
    if kind == "parquet":
        features = datasets.Features({"photo": datasets.Image(), "place": datasets.Value("string")})
        content = [{"photo": {"bytes": png(number), "path": None}, "place": "x"} for number in numbers]
        datasets.Dataset.from_list(content, features).to_parquet(folder / "photos.parquet", batch_size=3)
        return str(folder / "photos.parquet")
    with tarfile.open(folder / "photos.tar", "w") as file:
        for number in numbers:
            member = tarfile.TarInfo(f"{number:05}.png")
            member.size = len(png(number))
            file.addfile(member, io.BytesIO(png(number)))
    return str(folder / "photos.tar")


def png(number, *size) -> bytes:
    content = io.BytesIO()
    picture(number, *size).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_archives_without_masks_are_read(checkpoint, predictor, tmp_path, kind, capsys):
    name = archive(tmp_path, kind, range(7))
    command = ["predict", str(checkpoint), "--dataset_name", name, "--shards", "parquet", "--images_per_shard", "3"]
    assert main([*command, "--output_dir", str(tmp_path / "out")]) == 0
    found = rows(tmp_path / "out")
    assert [row["index"] for row in found] == list(range(7))
    for row in found:
        (expected,) = predict(predictor.model, predictor.processor, [picture(row["index"])])
        assert (ids(row) == expected.numpy()).all()


def test_a_second_run_goes_on_and_other_runs_are_refused(predictor, pictures, tmp_path, monkeypatch):
    records = files_as_records(find_sources([str(pictures)]).names)
    segment_archive(predictor, records, tmp_path / "out", images_per_shard=4)
    shards = sorted((tmp_path / "out").glob("*.parquet"))
    before = [file.read_bytes() for file in shards]
    shards[1].unlink()
    shards[1].with_name(f".unfinished-1-{shards[1].name}").write_bytes(b"PAR1")  # of a process that was killed
    written = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: (written.append(target), replace(source, target)))
    segment_archive(predictor, records, tmp_path / "out", images_per_shard=4)
    assert written == [shards[1]] and [file.read_bytes() for file in shards] == before
    assert sorted((tmp_path / "out").glob("*.parquet")) == shards  # hidden files, too
    with pytest.raises(ValueError, match="another `images_per_shard`: 4, now 5"):
        segment_archive(predictor, records, tmp_path / "out", images_per_shard=5)
    fewer = files_as_records({pictures / "01.png": None})
    with pytest.raises(ValueError, match="another `images`"):
        segment_archive(predictor, fewer, tmp_path / "out", images_per_shard=4)
    torch.manual_seed(1)
    other = Predictor(CASES["segformer"].make_model(), predictor.processor)
    with pytest.raises(ValueError, match="another `weights_sha256`"):
        segment_archive(other, records, tmp_path / "out", images_per_shard=4)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("")
    with pytest.raises(ValueError, match="not an empty folder"):
        segment_archive(predictor, records, tmp_path / "mine")


def test_what_is_missing_is_said(checkpoint, predictor, tmp_path, capsys):
    name = archive(tmp_path, "parquet", range(2))
    with pytest.raises(ValueError, match="no column 'img'.*photo: Image; place: Value"):
        open_archive(name, image_column_name="img")
    with pytest.raises(ValueError, match="splits train"):
        open_archive(name, split="test")
    for command in (["--dataset_name", name], [], ["x.png", "--dataset_name", name, "--shards", "parquet"]):
        assert main(["predict", str(checkpoint), *command]) == 2
    assert "--shards" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_processes_leave_no_doubles_and_no_gaps(checkpoint, tmp_path):
    """Four processes over 10,000 images, killed at random moments, then started again."""
    small = png(0, 32, 32)
    with tarfile.open(tmp_path / "photos.tar", "w") as file:
        for number in range(10_000):
            member = tarfile.TarInfo(f"{number:05}.png")
            member.size = len(small)
            file.addfile(member, io.BytesIO(small))
    command = [sys.executable, "-m", "hf_segtx", "predict", str(checkpoint), "--dataset_name"]
    command += [
        str(tmp_path / "photos.tar"),
        "--shards",
        "parquet",
        "--images_per_shard",
        "100",
        "--uncertainty",
        "False",
    ]
    command += ["--batch_size", "32", "--output_dir", str(tmp_path / "out"), "--device", "cpu"]

    def start(num_processes):
        environment = {**os.environ, "WORLD_SIZE": str(num_processes), "OMP_NUM_THREADS": "1"}
        return [
            subprocess.Popen(command, env={**environment, "RANK": str(rank)}, stderr=subprocess.DEVNULL)
            for rank in range(num_processes)
        ]

    chance = random.Random(0)
    processes = start(4)
    out = tmp_path / "out"
    while len(list(out.glob("labels-*"))) < 8:  # until all are at work
        assert any(process.poll() is None for process in processes)
        time.sleep(0.1)
    for process in processes:
        time.sleep(chance.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = len(list(out.glob("labels-*")))
    assert 8 <= done < 100, "killed too late to prove anything"
    for process in start(2):  # fewer than before
        assert process.wait() == 0
    found = rows(out)
    assert sorted(row["index"] for row in found) == list(range(10_000))
    assert {row["name"] for row in found} == {f"{number:05}" for number in range(10_000)}
    assert len({row["label"]["bytes"] for row in found}) == 1  # equal images, equal label maps
