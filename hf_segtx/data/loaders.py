"""Samples -> batches, reproducibly: the samples of step s, and every random number used on them, follow from (seed, s).

A run that is stopped and started again at step s continues with the same batches, with any number of worker processes.

Shapes: (h, w) crop size, C channels, B images per batch; labels are train ids of `Labels`.
"""

import logging
import math
import mmap
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from .augmentation import TrainingTransform, to_array
from .dataset import SegmentationDataset, note_errors
from .shards import POOL_SIZE, ParquetRecords


logger = logging.getLogger(__name__)


class DecodedSamples:
    """Decoded samples, as far as memory is granted, so that each is decoded once and not once an epoch.

    The memory is shared with worker processes that are forked; it is taken as it fills.
    """

    def __init__(self, length: int, num_bytes: int):
        self.memory = np.frombuffer(mmap.mmap(-1, num_bytes), np.uint8)
        # for each sample: start of the image, its height, width, channels, type; start of the labels, ...; 1 if there
        self.table = np.frombuffer(mmap.mmap(-1, length * 88), np.int64).reshape(length, 11)
        self.used = np.frombuffer(mmap.mmap(-1, 8), np.int64)
        self.lock = multiprocessing.Lock()

    @property
    def is_full(self) -> bool:
        return self.used[0] == len(self.memory)

    def get(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Image (H', W', C) and labels (H, W)."""
        *entry, is_there = self.table[index].tolist()
        if not is_there:
            return None
        image, labels = (
            np.ndarray((height, width, channels), chr(kind), self.memory, start)
            for start, height, width, channels, kind in (entry[:5], entry[5:])
        )
        return image, labels[..., 0]

    def put(self, index: int, image: np.ndarray, labels: np.ndarray) -> None:
        with self.lock:
            start = int(self.used[0])
            size = -(-(image.nbytes + labels.nbytes) // 8) * 8  # aligned for any type
            if start + size > len(self.memory):
                self.used[0] = len(self.memory)
                return
            self.used[0] += size
        entry = []
        for array in (image, labels[..., None]):
            np.ndarray(array.shape, array.dtype, self.memory, start)[:] = array
            entry += [start, *array.shape, ord(array.dtype.char)]
            start += array.nbytes
        self.table[index, :-1] = entry
        self.table[index, -1] = 1


class BatchMemory:
    """Memory in which worker processes, if they are forked, leave batches for the main process.

    torch's own way is new memory for each tensor, which costs more time than to fill it, from /dev/shm, which is small
    in containers. It remains for what does not fit.

    Args:
        num_batches: batch number n lies where number n - num_batches was.
        num_bytes: size of a batch.
    """

    def __init__(self, num_batches: int, num_bytes: int):
        self.num_batches = num_batches
        self.num_bytes = num_bytes
        self.memory = torch.frombuffer(mmap.mmap(-1, num_batches * num_bytes), dtype=torch.uint8)

    def empty(self, number: int) -> Callable:
        """`torch.empty` in the memory of a batch."""
        free = self.memory[number % self.num_batches * self.num_bytes :][: self.num_bytes]

        def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
            nonlocal free
            size = math.prod(shape) * dtype.itemsize
            if size > len(free):
                return torch.empty(shape, dtype=dtype)
            memory, free = free[:size], free[-(-size // 64) * 64 :]  # aligned for any type
            return memory.view(dtype).view(shape)

        return empty

    def places(self, batch: dict) -> dict:
        """What another process needs to know of the tensors that are here: type, offset and shape."""
        here = self.memory.untyped_storage().data_ptr()
        return {
            key: (value.dtype, value.storage_offset(), value.shape)
            if isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() == here
            else value
            for key, value in batch.items()
        }

    def tensors(self, batch: dict) -> dict:
        """A batch of `places`."""
        storage = self.memory.untyped_storage()
        return {
            key: torch.empty(0, dtype=value[0]).set_(storage, *value[1:]) if isinstance(value, tuple) else value
            for key, value in batch.items()
        }


class TrainingDataset(Dataset):
    """Augmented batches of a data set; the random numbers of a sample follow from (seed, epoch, index) only.

    A sample that cannot be read is an error, or, if the data set says "skip", replaced by one that follows from the
    same numbers.

    Args:
        dataset: items {"image", "label", ...}, always the same.
        cache_bytes: memory for decoded samples (see `DecodedSamples`).

    The number of a batch and its keys (epoch, index), or (epoch, index, undecoded image and mask), give
    `TrainingTransform.collate`'s dictionary, plus "errors", a list of texts; or the places of its tensors in `memory`.
    """

    def __init__(self, dataset: Dataset, transform: TrainingTransform, seed: int = 0, cache_bytes: int = 0):
        self.dataset = dataset
        self.transform = transform
        self.seed = seed
        if cache_bytes < 0:
            raise ValueError(f"a cache of {cache_bytes} bytes cannot be; 0 is none")
        self.cache = DecodedSamples(len(dataset), cache_bytes) if cache_bytes else None
        self.memory: BatchMemory | None = None

    def __getstate__(self) -> dict:  # a process that is not forked cannot share memory this way
        return {**self.__dict__, "cache": None, "memory": None}

    def __getitems__(self, batch: tuple[int, list[tuple]]) -> dict:
        number, keys = batch
        errors = []
        crops = [self._crop(errors, *key) for key in keys]
        if self.memory is None:
            return {**self.transform.collate(crops), "errors": errors}
        tensors = self.transform.collate(crops, self.memory.empty(number))
        return {**self.memory.places(tensors), "errors": errors}

    def _crop(self, errors: list[str], epoch: int, index: int, files: tuple | None = None) -> tuple:
        key = [self.seed, epoch, index]
        random = np.random.default_rng(key)
        for attempt in range(10):
            try:
                return self.transform.crop(*self._sample(index, files), random)
            except ValueError as error:
                if getattr(self.dataset, "on_error", "raise") == "raise":
                    raise
                errors.append(str(error))
            random = np.random.default_rng([*key, attempt])  # the same, however far the bad one was read
            index, files = int(random.integers(len(self.dataset))), None
        raise ValueError(f"ten training samples in a row are bad; the last one: {errors[-1]}")

    def _sample(self, index: int, files: tuple | None) -> tuple:
        """Image, or a function that decodes it, and labels; from memory if they are there."""
        if self.cache is not None and (sample := self.cache.get(index)) is not None:
            return sample
        if isinstance(self.dataset, SegmentationDataset):
            image, labels = self.dataset.open(index, files, self.transform.largest_scale)
        else:
            item = self.dataset[index]
            image, labels = item["image"], np.asarray(item["label"])
        if self.cache is not None and not self.cache.is_full:
            image = to_array(image() if callable(image) else image)
            self.cache.put(index, image, labels)
        return image, labels


class ShuffledBatches:
    """Endless batches of (epoch, index): every epoch a new permutation that follows from (seed, epoch).

    With `groups`, samples of a group lie near each other: the groups come in a random order, and so do the samples of
    each few groups that follow each other, 512 samples or more (and less than a group more). So shards are read once.

    The epochs follow each other without a gap: all batches are full, and each sample comes once an epoch. At step s
    process p of n takes the batch number s * n + p, so n processes with batches of B see what one with n * B sees.

    Args:
        length: number of samples.
        start_step: the first step to give; a resumed run passes the number of batches it has taken before.
        groups: (length,) number of the group of each sample; None for a permutation without any order.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int = 0,
        start_step: int = 0,
        process_index: int = 0,
        num_processes: int = 1,
        groups: np.ndarray | None = None,
    ):
        if length < 1:
            raise ValueError("there are no training samples")
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.start_step = start_step
        self.process_index = process_index
        self.num_processes = num_processes
        self.groups = groups

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step, epoch_of_order, order = self.start_step, -1, None
        while True:
            first = (step * self.num_processes + self.process_index) * self.batch_size
            batch = []
            for position in range(first, first + self.batch_size):
                epoch = position // self.length
                if epoch != epoch_of_order:
                    order = self.order(epoch)
                    epoch_of_order = epoch
                batch.append((epoch, int(order[position % self.length])))
            yield batch
            step += 1

    def order(self, epoch: int) -> np.ndarray:
        """The permutation of an epoch."""
        random = np.random.default_rng([self.seed, epoch])
        if self.groups is None:
            return random.permutation(self.length)
        _, groups = np.unique(self.groups, return_inverse=True)
        ranks = random.permutation(groups.max() + 1)[groups]  # the groups in a random order, ...
        order = np.argsort(ranks, kind="stable")
        pools = np.bincount(ranks).cumsum() // POOL_SIZE  # ... some of them together in a random order
        for pool in np.split(order, np.searchsorted(pools[ranks[order]], np.unique(pools)[1:])):
            random.shuffle(pool)
        return order


class ReadAhead:
    """Batches of `ShuffledBatches`, each key with its undecoded files, read in a thread.

    For shards, which the workers would else read once each.
    """

    def __init__(self, batches: ShuffledBatches, dataset: "SegmentationDataset", depth: int = 8):
        self.batches = batches
        self.dataset = dataset
        self.depth = depth

    def __iter__(self) -> Iterator[list[tuple]]:
        def read(batch):
            return [(epoch, index, self.dataset.files(index)) for epoch, index in batch]

        with ThreadPoolExecutor(1) as pool:  # one: in order, and each shard is read once
            pending = deque()
            for batch in self.batches:
                pending.append(pool.submit(read, batch))
                if len(pending) == self.depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()


class TrainingLoader:
    """Endless training batches, finished on the device where they are used."""

    def __init__(self, dataset: TrainingDataset, batches: Iterable, batch_bytes: int, num_workers: int, device):
        self.dataset = dataset
        self.batches = batches
        self.batch_bytes = batch_bytes
        self.num_workers = num_workers
        self.device = torch.device(device)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        prefetch_factor = 4 if self.num_workers else None
        loader = DataLoader(
            self.dataset,
            batch_sampler=enumerate(self.batches),
            collate_fn=_as_it_is,
            num_workers=self.num_workers,
            prefetch_factor=prefetch_factor,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # the loader draws a number; not from the global one, which dropout uses
        )
        memory = BatchMemory(prefetch_factor * self.num_workers + 1, self.batch_bytes) if self.num_workers else None
        self.dataset.memory = memory
        for batch in loader:
            note_errors(self.dataset.dataset, batch.pop("errors"))
            batch = batch if memory is None else memory.tensors(batch)
            if self.device.type != "cpu":
                batch = {key: self._on_device(value) for key, value in batch.items()}
            yield self.dataset.transform.finish(batch)

    def with_batches(self, batches: Iterable) -> "TrainingLoader":
        """The same for other batches of (epoch, index)."""
        if isinstance(self.batches, ReadAhead):
            batches = ReadAhead(batches, self.batches.dataset)
        return TrainingLoader(self.dataset, batches, self.batch_bytes, self.num_workers, self.device)

    def _on_device(self, value):
        if not isinstance(value, torch.Tensor):
            return value
        value = value.pin_memory() if self.device.type == "cuda" else value
        return value.to(self.device, non_blocking=True)


def training_dataloader(
    dataset: Dataset,
    transform: TrainingTransform,
    batch_size: int,
    *,
    seed: int = 0,
    start_step: int = 0,
    num_workers: int = 0,
    process_index: int = 0,
    num_processes: int = 1,
    device: torch.device | str = "cpu",
    cache_bytes: int = 2**30,
) -> TrainingLoader:
    """Endless batches {"pixel_values": (B, C, h, w) float32, "labels": (B, h, w) int64} on `device`.

    Order and resuming: see `ShuffledBatches`; `start_step` counts batches of this process, so with gradient
    accumulation over n batches it is n times the number of optimizer steps. It splits over processes itself and does
    not go through `accelerator.prepare`. An epoch is len(dataset) / (batch_size * num_processes) batches.

    Args:
        cache_bytes: memory, in each process, for decoded samples, which come from there from the second epoch on.
    """
    streams = isinstance(dataset, SegmentationDataset) and isinstance(dataset.records, ParquetRecords)
    groups = dataset.records.groups[dataset.indices] if streams else None
    batches = ShuffledBatches(len(dataset), batch_size, seed, start_step, process_index, num_processes, groups)
    (height, width), channels = transform.crop_size, len(transform.mean)
    return TrainingLoader(
        TrainingDataset(dataset, transform, seed, 0 if streams else cache_bytes),
        ReadAhead(batches, dataset) if streams else batches,
        # 8 bits a channel, labels of up to 16
        batch_bytes=batch_size * (height * width * (channels + 2) + 4 * channels * (channels + 1)) // 64 * 64 + 256,
        num_workers=num_workers,
        device=device,
    )


def _as_it_is(batch):
    return batch


def _start_worker(worker: int) -> None:
    """In a new worker process: it ends when its parent says so, and not by a signal to all processes of the group.

    Schedulers and Ctrl-C send that; the parent goes on for a while, to save what it has.
    """
    Image.core.set_blocks_max(4)  # PIL decodes into memory that it has; to get it again takes a fifth of the time
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS; there a signal to the group ends the workers
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def collate_evaluation(items: list[dict | str]) -> dict[str, list]:
    """Lists, because sizes differ: "images" (C, H, W) uint8 (float32 if deep), "labels" (H, W) train ids, "names".

    Texts among the items say which ones could not be read; they make up "errors", their places "missing".
    """
    good = [item for item in items if not isinstance(item, str)]
    return {
        "images": [torch.from_numpy(to_array(item["image"])).permute(2, 0, 1).contiguous() for item in good],
        "labels": [torch.as_tensor(item["label"]) for item in good],
        "names": [item["name"] for item in good],
        "errors": [item for item in items if isinstance(item, str)],
        "missing": [position for position, item in enumerate(items) if isinstance(item, str)],
    }


class EvaluationLoader:
    """Batches of `collate_evaluation`, without those that could not be read."""

    def __init__(self, batches: DataLoader, dataset: Dataset):
        self.batches = batches
        self.dataset = dataset

    def __iter__(self) -> Iterator[dict[str, list]]:
        for batch in self.batches:
            note_errors(self.dataset, batch.pop("errors"))
            yield batch


def evaluation_dataloader(
    dataset: Dataset,
    batch_size: int = 1,
    *,
    num_workers: int = 0,
    process_index: int = 0,
    num_processes: int = 1,
) -> EvaluationLoader:
    """Batches of `collate_evaluation`, in order; process p of n gets samples p, p + n, ...: each exactly once."""
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=range(process_index, len(dataset), num_processes),
        generator=torch.Generator(),  # the loader draws a number; not from the global generator, which training uses
        num_workers=num_workers,
        worker_init_fn=_start_worker,
        collate_fn=collate_evaluation,
    )
    return EvaluationLoader(loader, dataset)
