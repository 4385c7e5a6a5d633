"""Images a second of the training loader, beside plain torchvision and the steps of transformers' example.

    python benchmarks/data.py                                               # scenes of 480x360 in a temporary folder
    python benchmarks/data.py --train_dir data/camvid/train --workers 0 1 2

All read the same files, crop to the same size, and deliver normalized float32 batches with int64 labels.
- torchvision: random scale, crop, flip and colours with the stock v2 transforms, whole image first.
- transformers: crop, flip and normalization only, as run_semantic_segmentation*.py do on a `datasets` data set (which
  has no scaling and no colours, so it does less).
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from itertools import chain, islice, repeat
from pathlib import Path
from types import SimpleNamespace

import datasets
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from hf_segtx.data import SegmentationDataset, TableRecords, TrainingTransform, folder_records, training_dataloader
from hf_segtx.labels import Labels


PROCESSOR = SimpleNamespace(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225], rescale_factor=1 / 255)
NORMALIZE = [
    v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None}, scale=True),
    v2.Normalize(PROCESSOR.image_mean, PROCESSOR.image_std),
]


class PlainDataset(Dataset):
    """PIL, tensors, torchvision transforms."""

    def __init__(self, records: list[tuple[str, str]], transform: v2.Transform):
        self.records = records
        self.transform = transform

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image, mask = (Image.open(file) for file in self.records[index])
        image, mask = tv_tensors.Image(image.convert("RGB")), tv_tensors.Mask(mask)[0]
        image, mask = self.transform(image, mask)
        return {"pixel_values": image, "labels": mask}


def plain_torchvision(records: list[tuple[str, str]], crop_size: tuple[int, int], batch_size: int, workers: int):
    with Image.open(records[0][0]) as image:
        size = image.height, image.width
    fill = {tv_tensors.Image: 0, tv_tensors.Mask: 255}
    transform = v2.Compose(
        [
            v2.ScaleJitter(size, (0.5, 2.0), antialias=True),
            v2.RandomCrop(crop_size, pad_if_needed=True, fill=fill),
            v2.RandomHorizontalFlip(),
            v2.RandomPhotometricDistort(),
            *NORMALIZE,
        ]
    )
    return endless(PlainDataset(records, transform), batch_size, workers)


def transformers_example(records: list[tuple[str, str]], crop_size: tuple[int, int], batch_size: int, workers: int):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    table = datasets.Dataset.from_list([{"image": image, "label": mask} for image, mask in records], features=features)
    fill = {tv_tensors.Image: 255, tv_tensors.Mask: 0}
    crop = v2.RandomCrop(crop_size, pad_if_needed=True, fill=fill)
    transform = v2.Compose([crop, v2.RandomHorizontalFlip(), *NORMALIZE])

    def batch_transform(batch):
        pairs = zip(batch["image"], batch["label"], strict=True)
        pairs = [transform(tv_tensors.Image(image.convert("RGB")), tv_tensors.Mask(mask)[0]) for image, mask in pairs]
        return {"pixel_values": [image for image, _ in pairs], "labels": [mask for _, mask in pairs]}

    return endless(table.with_transform(batch_transform), batch_size, workers)


def endless(dataset, batch_size: int, workers: int):
    loader = DataLoader(
        dataset, batch_size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    return chain.from_iterable(repeat(loader))


def ours(records, labels: Labels, crop_size: tuple[int, int], batch_size: int, workers: int):
    dataset = SegmentationDataset(records, labels)
    return iter(training_dataloader(dataset, TrainingTransform(PROCESSOR, crop_size), batch_size, num_workers=workers))


def write_scenes(folder: Path, count: int, size: tuple[int, int]) -> None:
    """The embedded scenes as JPEG and PNG files."""
    from hf_segtx.scenes import SceneDataset

    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    scenes = SceneDataset(count, seed=0, size=size)
    for number in range(count):
        item = scenes[number]
        Image.fromarray(item["label"]).save(folder / "masks" / f"{number:04}.png")
        item["image"].save(folder / "images" / f"{number:04}.jpg", quality=95)
    (folder / "id2label.json").write_text(json.dumps(scenes.labels.id2label))


def images_per_second(loader, warm_up: int, batches: int, batch_size: int) -> float:
    for _ in islice(loader, warm_up):  # starts the workers and uses up what they prepared meanwhile
        pass
    begin = time.perf_counter()
    for _ in islice(loader, batches):
        pass
    return batches * batch_size / (time.perf_counter() - begin)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train_dir", help="folder with images/ and masks/; default: scenes")
    parser.add_argument("--crop_size", type=int, nargs=2, default=(240, 320), help="height and width in pixels")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=160, help="images of each variant in each round")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    batch_size, batches = arguments.batch_size, -(-arguments.images // arguments.batch_size)
    height, width = crop_size = tuple(arguments.crop_size)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.train_dir or temporary)
        if not arguments.train_dir:
            write_scenes(folder, 96, (360, 480))
        records, labels = folder_records(folder), Labels.from_folder(folder)
        table = datasets.Dataset.from_list([{"image": image, "label": mask} for image, mask in records])
        table = table.cast_column("image", datasets.Image()).cast_column("label", datasets.Image())
        rows = TableRecords(table, "image", "label")
        print(f"{len(records)} files, crop {height}x{width}, images/s, median of {arguments.rounds} rounds")
        for workers in arguments.workers:
            options = crop_size, batch_size, workers
            variants = {
                "hf_segtx": lambda options=options: ours(records, labels, *options),
                "hf_segtx, data set": lambda options=options: ours(rows, labels, *options),
                "torchvision": lambda options=options: plain_torchvision(records, *options),
                "transformers": lambda options=options: transformers_example(records, *options),
            }
            rates = {name: [] for name in variants}
            for _ in range(arguments.rounds):
                for name, variant in variants.items():
                    rates[name].append(images_per_second(variant(), 2 + 4 * workers, batches, batch_size))
            medians = {name: statistics.median(values) for name, values in rates.items()}
            for name, rate in medians.items():
                print(f"{workers} workers  {name:20} {rate:7.1f}   hf_segtx is {medians['hf_segtx'] / rate:.2f}x")


if __name__ == "__main__":
    main()
