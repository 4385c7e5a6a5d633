"""The embedded scenes: fixed checksums, the share of every class, and how far colour alone gets."""

import pickle
import zlib

import numpy as np
import pytest

from hf_segtx.data import scenes
from hf_segtx.data.scenes import CLASS_NAMES, PALETTE, VOID, SceneDataset
from hf_segtx.metrics import MeanIoU


def checksum(item: dict) -> tuple[int, int]:
    return zlib.crc32(np.asarray(item["image"]).tobytes()), zlib.crc32(item["label"].tobytes())


def test_pictures_match_checksums_of_another_machine():
    # Another value means that everybody's training data changed: numbers in the README are then out of date.
    dataset = SceneDataset(1000, seed=7, size=(96, 128))
    assert checksum(dataset[0]) == (1789970265, 149599573)
    assert checksum(dataset[999]) == (1400902639, 3446224178)


def test_items_depend_on_seed_and_index_only():
    dataset = SceneDataset(5, seed=1, size=(48, 64))
    np.random.seed(0)
    first = [checksum(item) for item in dataset]  # ends by IndexError
    np.random.seed(1)
    again = pickle.loads(pickle.dumps(dataset))  # as it gets into a worker process
    assert len(first) == 5 and [checksum(again[i]) for i in reversed(range(5))] == first[::-1]
    assert checksum(SceneDataset(100, seed=1, size=(48, 64))[3]) == first[3]
    assert len({*first, *(checksum(item) for item in SceneDataset(5, seed=2, size=(48, 64)))}) == 10


@pytest.mark.parametrize("size", [(32, 32), (64, 200), (130, 41)])
def test_sizes_and_types(size):
    for item in SceneDataset(6, size=size):
        assert item["image"].mode == "RGB" and item["image"].size == size[::-1]
        assert item["label"].shape == size and item["label"].dtype == np.uint8
    assert item["name"] == "scene_000005"


def test_every_class_and_void_occur_with_a_fair_share():
    values, pixels = np.unique([item["label"] for item in SceneDataset(120, seed=3)], return_counts=True)
    share = dict(zip(values.tolist(), pixels / pixels.sum(), strict=True))
    assert list(share) == [*range(len(CLASS_NAMES)), VOID] and len(PALETTE) == len(CLASS_NAMES)
    assert min(share.values()) > 0.02 and max(share.values()) < 0.3


def test_colour_alone_does_not_solve_it():
    # The best guess from a pixel's colour and nothing else: the commonest class of each of 16^3 colours.
    def pixels(dataset):
        items = list(dataset)
        colors = np.stack([np.asarray(item["image"]) for item in items]).astype(int) // 16
        return colors[..., 0] * 256 + colors[..., 1] * 16 + colors[..., 2], np.stack([item["label"] for item in items])

    colors, truth = pixels(SceneDataset(100, seed=0))
    votes = np.zeros((4096, 256), int)
    np.add.at(votes, (colors, truth), 1)
    colors, truth = pixels(SceneDataset(40, seed=1))
    guess = votes[:, : len(CLASS_NAMES)].argmax(1)[colors]
    results = MeanIoU(num_labels=len(CLASS_NAMES)).compute(predictions=guess, references=truth)
    assert 0.1 < results["mean_iou"] < 0.4


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"size \(16, 128\) .* must be 32 to 1024"):
        SceneDataset(1, size=(16, 128))
    with pytest.raises(ValueError, match="seed -1 must not be negative"):
        SceneDataset(1, seed=-1)
    with pytest.raises(IndexError, match=r"index 3 is outside \[0, 3\)"):
        SceneDataset(3)[3]


def test_label_contract():
    labels = scenes.labels()
    assert SceneDataset(1).labels == labels
    assert labels.names == CLASS_NAMES and labels.palette == PALETTE and labels.ignore_index == VOID
    label = SceneDataset(1)[0]["label"]
    assert np.array_equal(labels.map(label), label)  # scenes hold train ids already
