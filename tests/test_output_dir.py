"""The output folder: one living run in it; and the fingerprint by which resuming notices other data."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image
from test_train import Kill, make_folder, run, stop_at, weights

from hf_segtx.data import load_data
from hf_segtx.training import output_dir
from hf_segtx.training.arguments import Arguments
from hf_segtx.training.fingerprint import PIECE, changed_samples, data_fingerprint
from hf_segtx.training.output_dir import InUseError, RunLock, claim_output_dir


@pytest.fixture
def living():
    """Another process that lives until the test ends."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


def put_lock(folder, **owner):
    """The lock of a run that is described."""
    folder.mkdir(exist_ok=True)
    content = output_dir._whereabouts() | {"since": "today"} | owner
    (folder / ".lock").write_text(json.dumps(content))


def test_folder_of_a_living_process_is_refused_until_it_is_gone(tmp_path, living):
    put_lock(tmp_path, pid=living.pid, started=output_dir._start_time(living.pid))
    for arguments in (Arguments(output_dir=str(tmp_path)), Arguments(resume_from_checkpoint=str(tmp_path / "step_1"))):
        with pytest.raises(InUseError, match=f"{os.uname().nodename}, process {living.pid}, since today"):
            claim_output_dir(arguments, RunLock())
    living.kill()
    os.waitid(os.P_PID, living.pid, os.WEXITED | os.WNOWAIT)  # a zombie now, as nobody has taken its status
    lock = RunLock()
    assert claim_output_dir(Arguments(output_dir=str(tmp_path)), lock) == tmp_path
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    lock.release()
    assert not list(tmp_path.iterdir())


def test_number_of_a_dead_process_that_another_has_now_stops_nobody(tmp_path, living):
    put_lock(tmp_path, pid=living.pid, started="1")
    lock = RunLock()
    lock.acquire(tmp_path)
    lock.release()


@pytest.mark.parametrize("is_alive", [True, False])
def test_run_elsewhere_is_alive_if_its_lock_changes(tmp_path, monkeypatch, is_alive):
    """On another host, or on this one before it was started anew, or in another container."""
    monkeypatch.setattr(output_dir, "PATIENCE", 2.0)
    put_lock(tmp_path, host="elsewhere", pid=7, machine="another")
    over = threading.Event()

    def live():
        while is_alive and not over.wait(0.2):
            os.utime(tmp_path / ".lock")

    heart = threading.Thread(target=live)
    heart.start()
    try:
        lock = RunLock()
        if is_alive:
            with pytest.raises(InUseError, match="on host elsewhere, process 7"):
                lock.acquire(tmp_path)
        else:
            lock.acquire(tmp_path)
            lock.release()
    finally:
        over.set()
        heart.join()


def test_lock_shows_signs_of_life_and_is_released_by_its_owner_only(tmp_path, monkeypatch):
    monkeypatch.setattr(output_dir, "HEARTBEAT", 0.05)
    lock = RunLock()
    lock.acquire(tmp_path)
    before = (tmp_path / ".lock").stat().st_mtime_ns
    time.sleep(0.5)
    assert (tmp_path / ".lock").stat().st_mtime_ns > before
    put_lock(tmp_path, pid=os.getpid() + 1)  # somebody took it for dead
    lock.release()
    assert (tmp_path / ".lock").exists()


def test_lock_that_was_cut_off_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(output_dir, "PATIENCE", 0.1)
    (tmp_path / ".lock").write_text('{"host": "')
    RunLock().acquire(tmp_path)


def test_run_releases_its_folder_however_it_ends(tmp_path, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="unknown SegFormer size"):
        run("--size", "b9", "--output_dir", out)
    assert not (out / ".lock").exists()
    with monkeypatch.context() as patch, pytest.raises(Kill):
        stop_at(patch, "loss_shares", 1, Kill())
        run("--output_dir", out)
    assert not (out / ".lock").exists() and (out / "train.args").exists()


# ---- the fingerprint


def pictures(folder, count=5, size=(40, 50), noise=False):
    """Pairs whose files have all the same size in bytes, as they are not compressed."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(random.integers(256, size=(*size, 3), dtype=np.uint8)).save(folder / f"images/{number}.bmp")
        Image.fromarray(random.integers(2, size=size, dtype=np.uint8)).save(folder / f"masks/{number}.png")
    (folder / "id2label.json").write_text('{"0": "wall", "1": "door"}')
    return folder


def fingerprint(folder):
    dataset = load_data(train_dir=str(folder), validation_dir=str(folder), check=False)[0]
    return data_fingerprint(dataset), dataset


def rename(folder):
    for kind, suffix in (("images", "bmp"), ("masks", "png")):
        os.rename(folder / kind / f"1.{suffix}", folder / kind / f"11.{suffix}")


def exchange(folder):
    a, b, other = (folder / "images" / f"{name}.bmp" for name in ("1", "2", "x"))
    for start, end in ((a, other), (b, a), (other, b)):
        os.rename(start, end)


def change_pixels(folder):
    """The file keeps its size, and its time of change."""
    file = folder / "images/3.bmp"
    times, content = file.stat(), bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def change_mask(folder):
    Image.new("L", (50, 40), 1).save(folder / "masks/4.png")


def add(folder):
    for kind, suffix in (("images", "bmp"), ("masks", "png")):
        shutil.copy(folder / kind / f"1.{suffix}", folder / kind / f"9.{suffix}")


@pytest.mark.parametrize(
    ("change", "said"),
    [(rename, "11.bmp"), (exchange, "1.bmp, 2.bmp"), (change_pixels, "3.bmp"), (change_mask, "4.bmp"), (add, "other")],
)
def test_fingerprint_notices(tmp_path, change, said):
    folder = pictures(tmp_path / "data")
    before, _ = fingerprint(folder)
    moved = shutil.copytree(folder, tmp_path / "elsewhere" / "copy")
    assert fingerprint(moved)[0] == before  # wherever and whenever they were written
    change(moved)
    after, dataset = fingerprint(moved)
    assert after != before
    assert said in changed_samples(before, after, dataset)


def test_fingerprint_of_big_files_covers_begin_middle_and_end(tmp_path):
    folder = pictures(tmp_path / "data", count=2, size=(200, 300))
    before, _ = fingerprint(folder)
    file = folder / "images/1.bmp"
    whole = file.read_bytes()
    assert len(whole) > 6 * PIECE
    for place in (60, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert fingerprint(folder)[0] != before
    file.write_bytes(whole)
    assert fingerprint(folder)[0] == before


def test_fingerprint_of_tables(tmp_path):
    """Rows of Parquet, whose files lie in the table; loaded and streamed."""
    import datasets

    def write(folder, seed):
        random = np.random.default_rng(seed)
        rows = [
            {"image": Image.fromarray(random.integers(256, size=(32, 32, 3), dtype=np.uint8)),
             "label": Image.fromarray(random.integers(2, size=(32, 32), dtype=np.uint8))}
            for _ in range(6)
        ]  # fmt: skip
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
        (folder / "data").mkdir(parents=True)
        datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "data/train.parquet")
        (folder / "id2label.json").write_text('{"0": "wall", "1": "door"}')
        return folder

    def read(folder, streaming):
        settings = {"dataset_name": str(folder), "cache_dir": str(tmp_path / "cache"), "check": False}
        return data_fingerprint(load_data(**settings, streaming=streaming)[0])

    folders = [write(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    for streaming in (False, True):
        first, same, other = (read(folder, streaming) for folder in folders)
        assert first == same and first != other


def exchange_names(data):
    (data / "id2label.json").write_text('{"0": "door", "1": "wall"}')


def rename_pair(data):
    for kind in ("images", "masks"):
        os.rename(data / kind / "0.png", data / kind / "7.png")


def replace_picture(data):
    Image.new("RGB", (64, 64), (1, 2, 3)).save(data / "images/1.png")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (exchange_names, "class_names: ['wall', 'door'] there, ['door', 'wall'] here"),
        (rename_pair, "7.png"),
        (replace_picture, "training_data: 1.png"),
    ],
)
@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_resuming_with_other_data_is_refused(tmp_path, monkeypatch, change, said, has_checkpoint):
    data, out = make_folder(tmp_path / "data"), tmp_path / "out"
    flags = ["--train_dir", data, "--validation_dir", data, "--output_dir", out, "--checkpointing_steps", "1"]
    with monkeypatch.context() as patch, pytest.raises(Kill):
        stop_at(patch, "loss_shares", 2 if has_checkpoint else 1, Kill())
        run(*flags)
    change(data)
    with pytest.raises(ValueError) as error:
        run(*flags, "--resume_from_checkpoint", "latest")
    assert said in str(error.value) and "was written by a run that differs" in str(error.value)


def test_resuming_with_the_data_elsewhere_goes_on(tmp_path, monkeypatch):
    data, out = make_folder(tmp_path / "data"), tmp_path / "out"
    flags = ["--output_dir", out, "--max_train_steps", "2", "--checkpointing_steps", "1"]
    with monkeypatch.context() as patch, pytest.raises(Kill):
        stop_at(patch, "loss_shares", 2, Kill())
        run(*flags, "--train_dir", data, "--validation_dir", data)
    moved = shutil.copytree(data, tmp_path / "moved")
    run(*flags, "--train_dir", moved, "--validation_dir", moved, "--resume_from_checkpoint", "latest")
    assert weights(out)
