"""Feature maps of a backbone that stays as it is: written once, then read in every step instead of images.

    FOLDER/
      cache.json                  what the maps were made of: another backbone, processor or data set is refused
      map_0 ... map_3             float16 (views * images, h, w, C) of each map that the backbone gives
      labels                      (views * images, height, width) of the crops
      written                     a byte for each, 1 as soon as it is on the disk; a killed run is gone on with

View number v of an image is the crop that a run without a cache takes of it in epoch v, so up to that number of epochs
both train on the same batches; from then on the views come again.
"""

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from tqdm.auto import tqdm

from ..data.augmentation import TrainingTransform
from ..data.loaders import TrainingLoader
from ..weights.files import weights_hash
from .arguments import Arguments
from .machine import everywhere
from .setup import is_sharded


DESCRIPTION = "cache.json"


def plain_settings(transform: TrainingTransform) -> dict:
    """What the transform was made with, for JSON."""
    settings = {}
    for name, value in vars(transform).items():
        value = value.tolist() if hasattr(value, "tolist") else value
        settings[name] = list(value) if isinstance(value, tuple) else value
    return settings


# Of configurations: what concerns heads, classes or training, so that several heads can share the features.
OF_HEADS = ("decode", "auxiliary", "mla_", "context_", "classifier_", "semantic_loss", "initializer", "id2label")
OF_HEADS += ("label2id", "is_binary", "palette", "problem_type", "architectures", "transformers_version", "auto_map")


def backbone_settings(model: nn.Module) -> dict:
    """What the configuration says of the backbone, for JSON; too much rather than too little."""
    config = json.loads(model.config.to_json_string(use_diff=False))
    return {
        f"config.{name}": value
        for name, value in config.items()
        if not name.startswith(("_", *OF_HEADS)) and "drop" not in name
    }


class FeatureCache:
    """The arrays of a folder, for reading and writing rows.

    Args:
        made_of: name -> what the maps depend on, as JSON has it.
        arrays: name -> (type, shape of a row) of what is kept of each view of an image.
        num_rows: views * images.
        explain: (name in `made_of`, its value there, its value here) -> the difference in words.

    Raises:
        ValueError: if the folder holds something else.
        OSError: if the disk has not enough room, all of which is taken at once.
    """

    def __init__(self, folder: Path, made_of: dict, arrays: dict[str, tuple], num_rows: int, explain: Callable):
        self.folder = folder
        self.arrays = {name: (np.dtype(kind), tuple(shape)) for name, (kind, shape) in arrays.items()}
        self.num_rows = num_rows
        made_of = {**made_of, "arrays": {name: [str(kind), list(shape)] for name, (kind, shape) in arrays.items()}}
        if (folder / DESCRIPTION).is_file():
            self._check(json.loads((folder / DESCRIPTION).read_text()), made_of, explain)
        else:
            self._create(made_of)

    @property
    def num_bytes(self) -> int:
        """On the disk."""
        return self.num_rows * (1 + sum(self._row_bytes(name) for name in self.arrays))

    def _row_bytes(self, name: str) -> int:
        kind, shape = self.arrays[name]
        return kind.itemsize * prod(shape)

    def _check(self, there: dict, here: dict, explain) -> None:
        if different := [name for name in here if there.get(name) != here[name]]:
            shown = "\n".join(f"  {name}: {explain(name, there.get(name), here[name])}" for name in different)
            raise ValueError(
                f"cache_features {self.folder} holds the features of something else:\n{shown}\ngive another folder, or "
                "delete this one"
            )

    def _create(self, made_of: dict) -> None:
        """Takes the room on the disk; the description comes last, so that a folder with one is complete."""
        names = {*self.arrays, "written"}
        self.folder.mkdir(parents=True, exist_ok=True)
        if foreign := sorted({path.name for path in self.folder.iterdir()} - names):
            raise ValueError(
                f"cache_features {self.folder} is not empty: it has {foreign[0]}; give a folder of its own"
            )
        for name in names:  # of a run that was killed before there was a description
            (self.folder / name).unlink(missing_ok=True)
        free = shutil.disk_usage(self.folder).free
        if self.num_bytes > free:
            raise OSError(
                f"cache_features {self.folder} needs {self.num_bytes / 1e9:.2f} GB for {self.num_rows} views, and "
                f"{free / 1e9:.2f} GB are free there; lower feature_views, or give a folder on another disk"
            )
        try:
            for name in names:
                with (self.folder / name).open("wb") as file:
                    size = self.num_rows * (1 if name == "written" else self._row_bytes(name))
                    file.truncate(size)
                    if hasattr(os, "posix_fallocate"):  # not on macOS and Windows; there a full disk shows later
                        os.posix_fallocate(file.fileno(), 0, size)
            partial = self.folder / f".{DESCRIPTION}"
            partial.write_text(json.dumps(made_of, indent=2) + "\n")
            os.replace(partial, self.folder / DESCRIPTION)
        except OSError:
            shutil.rmtree(self.folder)
            raise

    def missing(self) -> np.ndarray:
        """Numbers of the rows that are not there yet."""
        return np.flatnonzero(np.fromfile(self.folder / "written", np.uint8) == 0)

    def write(self, rows: np.ndarray, values: dict[str, np.ndarray]) -> None:
        """Puts rows on the disk, then notes that they are there."""
        for name, array in values.items():
            kind, _ = self.arrays[name]
            self._write(name, rows, [value.astype(kind, copy=False) for value in array])
        self._write("written", rows, [np.ones(1, np.uint8)] * len(rows))

    def _write(self, name: str, rows: np.ndarray, values: list[np.ndarray]) -> None:
        with (self.folder / name).open("r+b", buffering=0) as file:
            for row, value in zip(rows, values, strict=True):
                file.seek(int(row) * value.nbytes)
                content = memoryview(np.ascontiguousarray(value)).cast("B")
                while content:
                    content = content[file.write(content) :]
            os.fsync(file.fileno())

    def read(self, rows: list[int]) -> dict[str, np.ndarray]:
        """Rows of each array; by reading, as the pages of a mapped file would count as memory of the process.

        Raises:
            OSError: if a file has been cut off.
        """
        values = {}
        for name, (kind, shape) in self.arrays.items():
            values[name] = np.empty((len(rows), *shape), kind)
            with (self.folder / name).open("rb", buffering=0) as file:
                for row, value in zip(rows, values[name], strict=True):
                    file.seek(row * value.nbytes)
                    if file.readinto(value) != value.nbytes:
                        raise OSError(f"{self.folder / name} has been cut off; delete cache_features {self.folder}")
        return values


class CachedLoader:
    """The batches of a `TrainingLoader`, with feature maps in place of images.

    Each batch has "feature_maps", a tuple of (B, C, h, w) float32, "labels" (B, H, W) int64 and "pixel_values"
    (B, channels, H, W), zeros that take no memory: heads ask for the size of the images.
    """

    def __init__(self, loader: TrainingLoader, cache: FeatureCache):
        self.dataset, self.batches, self.device = loader.dataset, loader.batches, loader.device
        self.cache = cache

    def __iter__(self) -> Iterator[dict]:
        length = len(self.dataset.dataset)
        num_views = self.cache.num_rows // length

        def read(keys: list[tuple]) -> dict[str, torch.Tensor]:
            rows = [int(epoch % num_views * length + index) for epoch, index, *_ in keys]
            return {name: torch.from_numpy(array) for name, array in self.cache.read(rows).items()}

        with ThreadPoolExecutor(1) as pool:  # reads the next batch from the disk in the meantime
            pending = deque()
            for keys in self.batches:
                pending.append(pool.submit(read, keys))
                if len(pending) == 2:
                    yield self._on_device(pending.popleft().result())

    def _on_device(self, batch: dict[str, torch.Tensor]) -> dict:
        batch = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        labels = batch.pop("labels").long()
        maps = tuple(value.float().permute(0, 3, 1, 2) for value in batch.values())  # channels-last
        channels = len(self.dataset.transform.mean)
        zeros = torch.zeros(1, device=self.device).expand(len(labels), channels, *labels.shape[1:])
        return {"pixel_values": zeros, "labels": labels, "feature_maps": maps}


class FeatureWriter:
    """Shows the views of the images to a backbone.

    Args:
        model: a `...ForSemanticSegmentation` on its device, with a backbone that does not train.
        loader: gives the batches of the run; its own batches are not touched.
    """

    def __init__(self, model: nn.Module, loader: TrainingLoader, accelerator: Accelerator):
        self.backbone = model.backbone.eval()
        self.loader = loader
        self.accelerator = accelerator

    @torch.no_grad()
    def maps(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Name -> (B, h, w, C) float16.

        Raises:
            ValueError: if a value is too large for float16.
        """
        with self.accelerator.autocast():
            maps = self.backbone(pixel_values, return_dict=True).feature_maps
        maps = {f"map_{number}": value.permute(0, 2, 3, 1).half() for number, value in enumerate(maps)}
        for name, value in maps.items():
            if not torch.isfinite(value).all():
                raise ValueError(
                    f"cache_features: {name} of the backbone has values beyond float16 (65504), or none; train without"
                )
        return maps

    def row_shapes(self) -> dict[str, tuple]:
        """Name -> shape of a row of each map, for crops of the size in training."""
        transform = self.loader.dataset.transform
        zeros = torch.zeros(1, len(transform.mean), *transform.crop_size, device=self.accelerator.device)
        return {name: tuple(value.shape[1:]) for name, value in self.maps(zeros).items()}

    def batches(self, rows: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, dict]]:
        """Rows and what belongs into them."""
        length = len(self.loader.dataset.dataset)
        parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        keys = [[(int(row) // length, int(row) % length) for row in part] for part in parts]
        for part, batch in zip(parts, self.loader.with_batches(keys), strict=True):
            values = {**self.maps(batch["pixel_values"]), "labels": batch["labels"]}
            yield part, {name: value.cpu().numpy() for name, value in values.items()}

    def check(self, cache: FeatureCache) -> None:
        """Compares the first row with what the backbone makes of it now: what no setting shows, such as damaged files.

        Raises:
            ValueError: if it is something else.
        """
        _, now = next(self.batches(np.zeros(1, int), 1))
        for name, array in cache.read([0]).items():
            there, here = array[0].astype(np.float32), now[name][0].astype(np.float32)
            # float16 rounds to 1/2048; another device, or bfloat16 within the backbone, to some 1/100
            if np.abs(there - here).mean() > (0 if name == "labels" else 0.02 * there.std() + 1e-6):
                raise ValueError(
                    f"cache_features {cache.folder}: {name} of the first image is not what this backbone makes of it "
                    "now; give another folder, or delete this one"
                )

    def fill(self, cache: FeatureCache, batch_size: int) -> None:
        """Writes what is missing; each process its share.

        Raises:
            ValueError: if it does not belong to what is there, or processes do not see the same folder.
        """
        process = self.accelerator
        missing = cache.missing()
        process.wait_for_everyone()  # else one would not count what another has written already
        if 0 not in missing:
            everywhere(self.check, cache)
        share = missing[process.process_index * batch_size :]
        rows = [share[start : start + batch_size] for start in range(0, len(share), batch_size * process.num_processes)]
        rows = np.concatenate([*rows, np.zeros(0, int)]).astype(int)
        bar = tqdm(total=len(rows), unit="view", desc="features", disable=not (process.is_main_process and len(rows)))
        with bar:
            for part, values in self.batches(rows, batch_size):
                cache.write(part, values)
                bar.update(len(part))
        process.wait_for_everyone()
        if len(left := cache.missing()):
            raise ValueError(f"cache_features {cache.folder}: {len(left)} views are missing; do all processes see it?")


def cached_loader(
    arguments: Arguments,
    model: nn.Module,
    loader: TrainingLoader,
    accelerator: Accelerator,
    data: dict,
    explain: Callable,
) -> CachedLoader:
    """Fills the folder `cache_features`, as far as it is not, and reads from it. To be called in all processes.

    Args:
        data: name -> what is to be known of images and labels, for JSON.
        explain: see `FeatureCache`.

    Raises:
        ValueError: if the backbone trains or is sharded, or the folder holds the features of something else.
        OSError: if there is not enough room.
    """
    if trainable := [name for name, value in model.backbone.named_parameters() if value.requires_grad]:
        raise ValueError(
            f"cache_features keeps what the backbone gives, but its {trainable[0]} trains; use `tune` linear, or omit "
            "cache_features"
        )
    if is_sharded(accelerator):
        raise ValueError("cache_features needs the whole backbone in each process; omit it, or FSDP and DeepSpeed")
    writer = FeatureWriter(model, loader, accelerator)
    transform, dataset = loader.dataset.transform, loader.dataset.dataset
    folder, num_views = Path(arguments.cache_features), arguments.feature_views
    num_rows = num_views * len(dataset)
    is_small = 0 <= transform.ignore_index < 256 and model.config.num_labels <= 256
    arrays = {name: ("float16", shape) for name, shape in writer.row_shapes().items()}
    arrays["labels"] = ("uint8" if is_small else "int32", transform.crop_size)

    def open_cache() -> FeatureCache:
        made_of = {
            "backbone": type(model.backbone).__name__,
            "weights": weights_hash(model.backbone),
            **backbone_settings(model),
            "precision": accelerator.mixed_precision,
            "views": num_views,
            "seed": arguments.seed,
            **data,
            **plain_settings(transform),
        }
        return FeatureCache(folder, made_of, arrays, num_rows, explain)

    cache = everywhere(open_cache, only_main=True)
    if accelerator.is_main_process:
        print(
            f"features of {len(dataset)} images, {num_views} views each: {cache.num_bytes / 1e9:.2f} GB in {folder}, "
            f"{len(cache.missing())} of {num_rows} to be written"
        )
    writer.fill(cache, arguments.per_device_train_batch_size)
    loader.dataset.cache = None  # decoded images are of no more use
    return CachedLoader(loader, cache)
