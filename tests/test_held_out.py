"""hf_segtx.data.held_out: the part that validates."""

import numpy as np
import pytest
from PIL import Image
from small_data import write_folder, write_sample

from hf_segtx.data import load_data
from hf_segtx.data.held_out import near_duplicates, split_rows


def write_clips(folder, clips, frames):
    """Pictures of `clips` places, each seen `frames` times by a camera that moves by a pixel a frame; rows by clip."""
    for clip in range(clips):
        place = np.random.default_rng(clip).integers(0, 255, (10, 20, 3)).astype(np.uint8)
        wide = np.asarray(Image.fromarray(place).resize((400, 160), Image.Resampling.BICUBIC))
        for frame in range(frames):
            write_sample(folder, f"{clip}_{frame:02}", wide[:, frame : frame + 300], np.zeros((160, 300), np.uint8))
    return write_folder(folder, count=0)


def read(folder):
    return load_data(train_dir=str(folder), validation_dir=str(folder), check=False)[0]


def test_without_near_duplicates_nothing_changes(tmp_path):
    dataset = read(write_folder(tmp_path, count=20, size=(64, 64)))  # noise: no two are alike
    assert len(set(near_duplicates(dataset).tolist())) == 20
    assert split_rows(dataset, 0.25) == split_rows(dataset, 0.25, keep_together=True)
    train, validation = split_rows(dataset, 0.25)
    assert len(validation) == 5 and sorted(train + validation) == list(range(20))


def test_frames_of_a_clip_stay_together(tmp_path):
    dataset = read(write_clips(tmp_path, clips=6, frames=5))
    clips = np.arange(30) // 5
    assert (near_duplicates(dataset) == clips * 5).all()
    train, validation = split_rows(dataset, 0.2, keep_together=True)
    assert len(validation) == 5 and len(set(clips[validation])) == 1 and not {*clips[train]} & {*clips[validation]}
    assert {*clips[split_rows(dataset, 0.2)[0]]} & {*clips[split_rows(dataset, 0.2)[1]]}  # which it would not be


def test_of_one_video_the_last_frames_validate(tmp_path):
    dataset = read(write_clips(tmp_path, clips=1, frames=10))
    assert near_duplicates(dataset) is None
    assert split_rows(dataset, 0.2, keep_together=True) == ([*range(8)], [8, 9])


def test_unreadable_images_stand_alone(tmp_path):
    dataset = read(write_clips(tmp_path, clips=2, frames=2))
    (tmp_path / "images" / "0_00.png").write_bytes(b"")
    assert near_duplicates(dataset).tolist() == [0, 1, 2, 2]


def test_everything_cannot_be_held_out(tmp_path):
    dataset = read(write_folder(tmp_path, count=2))
    with pytest.raises(ValueError, match="2 samples cannot be split .* 0.9"):
        split_rows(dataset, 0.9)
