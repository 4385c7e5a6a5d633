"""Batches: exactly resumable, the same with any number of processes, each sample once an epoch."""

from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import PROCESSOR, write_folder

from hf_segtx.data import SegmentationDataset, load_data
from hf_segtx.data.augmentation import TrainingTransform
from hf_segtx.data.checks import check_data
from hf_segtx.data.folders import folder_records
from hf_segtx.data.labels import Labels
from hf_segtx.data.loaders import BatchMemory, ShuffledBatches, evaluation_dataloader, training_dataloader


def loader(dataset, **options):
    return training_dataloader(dataset, TrainingTransform(PROCESSOR, (16, 16)), 2, **{"seed": 3, **options})


@pytest.fixture
def dataset(tmp_path):
    write_folder(tmp_path, count=5)
    return SegmentationDataset(folder_records(tmp_path), Labels.from_folder(tmp_path))


def assert_equal_batches(batches, expected):
    for batch, other in zip(batches, expected, strict=True):
        assert all(torch.equal(batch[key], other[key]) for key in ("pixel_values", "labels"))


def test_bad_files_can_be_skipped_and_are_listed(tmp_path, caplog):
    """In training others take their places, the same ones in every run; in evaluation they are left out."""
    write_folder(tmp_path, count=6)
    (tmp_path / "images/002.png").write_bytes(b"")
    Image.new("L", (32, 24), 7).save(tmp_path / "masks/004.png")
    folder = {"train_dir": str(tmp_path), "validation_dir": str(tmp_path), "on_error": "skip"}
    train, validation, _ = load_data(**folder)
    assert [error.split(": ")[0][-14:] for error in train.skipped] == ["images/002.png", "/masks/004.png"]
    assert caplog.text.count("Skipped a sample") == 4
    train, validation, labels = load_data(**folder, check=False)
    uninterrupted = list(islice(loader(train), 9))
    assert len(train.skipped) == 2 and not validation.skipped
    assert_equal_batches(islice(loader(train, start_step=4, num_workers=1), 5), uninterrupted[4:])
    assert_equal_batches(islice(loader(train, cache_bytes=0), 9), uninterrupted)  # fails after the crop is drawn
    for num_workers in (0, 1):
        batches = evaluation_dataloader(validation, num_workers=num_workers)
        names = [name for batch in batches for name in batch["names"]]
        assert [name[-7:-4] for name in names] == ["000", "001", "003", "005"] and len(validation.skipped) == 2
    only_bad = SegmentationDataset([train.records[2]], labels, on_error="skip")
    with pytest.raises(ValueError, match="1 of 1 checked training samples are bad"):
        check_data(only_bad)
    with pytest.raises(ValueError, match="ten training samples in a row are bad; the last one: .*002.png: cannot be"):
        next(iter(loader(only_bad)))
    with pytest.raises(ValueError, match="on_error 'ignore' is neither 'raise' nor 'skip'"):
        SegmentationDataset(train.records, labels, on_error="ignore")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_batches_equal_uninterrupted_ones(dataset, num_workers):
    uninterrupted = list(islice(loader(dataset), 7))
    torch.manual_seed(123)  # the state of the process plays no part
    assert_equal_batches(islice(loader(dataset, start_step=3, num_workers=num_workers), 4), uninterrupted[3:])


@pytest.mark.parametrize(("cache_bytes", "num_workers"), [(2**20, 0), (8000, 0), (10, 0), (8000, 2)])
def test_decoded_samples_in_memory_change_nothing(dataset, cache_bytes, num_workers):
    """8000 bytes hold 2 of 5 samples of 3072 bytes."""
    expected = list(islice(loader(dataset, cache_bytes=0), 12))
    assert_equal_batches(islice(loader(dataset, cache_bytes=cache_bytes, num_workers=num_workers), 12), expected)


def test_batches_of_all_types_travel_through_memory():
    memory = BatchMemory(2, 256)
    batches = []
    for number in range(3):
        empty = memory.empty(number)
        batch = {"odd": empty((3, 7), dtype=torch.uint8).fill_(number), "deep": empty((2, 5), dtype=torch.float32)}
        batch.update(deep=batch["deep"].fill_(number + 0.5), labels=empty((9,), dtype=torch.int64).fill_(-number))
        batch["large"] = empty((70,), dtype=torch.uint8).fill_(number)
        batches.append(memory.places({**batch, "sizes": [(3, 7)]}))
        assert [key for key, value in batches[-1].items() if isinstance(value, torch.Tensor)] == ["large"]
    for place, number in zip(batches, (2, 1, 2), strict=True):  # the third lies where the first was
        batch = memory.tensors(place)
        assert batch["odd"].shape == (3, 7) and (batch["odd"] == number).all() and batch["odd"].dtype == torch.uint8
        assert torch.equal(batch["deep"], torch.full((2, 5), number + 0.5))
        assert batch["labels"].tolist() == [-number] * 9 and batch["sizes"] == [(3, 7)]
        assert batch["large"].shape == (70,)


def test_each_file_is_decoded_once(dataset, monkeypatch):
    reads = []
    open_item = SegmentationDataset.open
    monkeypatch.setattr(SegmentationDataset, "open", lambda *arguments: reads.append(1) or open_item(*arguments))
    list(islice(loader(dataset), 12))
    assert len(reads) == 5


@pytest.mark.parametrize("num_workers", [0, 1])
def test_reading_leaves_the_random_state_of_the_process_alone(dataset, num_workers):
    """Else dropout would differ between a resumed run and an uninterrupted one."""
    state = torch.get_rng_state()
    first, second = islice(loader(dataset, num_workers=num_workers), 2)
    list(evaluation_dataloader(dataset, num_workers=num_workers))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first["pixel_values"], second["pixel_values"])


def test_two_processes_see_what_one_sees_with_twice_the_batch():
    whole = list(islice(ShuffledBatches(11, 6, seed=1), 5))
    parts = [islice(ShuffledBatches(11, 3, seed=1, process_index=p, num_processes=2), 5) for p in range(2)]
    assert [first + second for first, second in zip(*parts, strict=True)] == whole


def test_every_sample_comes_once_an_epoch_in_a_new_order():
    stream = [pair for batch in islice(ShuffledBatches(7, 2, seed=5), 14) for pair in batch]
    epochs = [[index for epoch, index in stream if epoch == number] for number in range(4)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert stream != [pair for batch in islice(ShuffledBatches(7, 2, seed=6), 14) for pair in batch]


def test_evaluation_covers_each_sample_once_at_its_own_size(dataset):
    batches = [batch for p in range(2) for batch in evaluation_dataloader(dataset, 2, process_index=p, num_processes=2)]
    names = [name for batch in batches for name in batch["names"]]
    assert sorted(names) == [item["name"] for item in dataset]
    first = dataset[0]
    assert np.array_equal(batches[0]["images"][0].permute(1, 2, 0), first["image"])
    assert np.array_equal(batches[0]["labels"][0], first["label"])
