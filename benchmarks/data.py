"""Images a second of the training loader, beside plain torchvision and transformers' example doing the same.

    python benchmarks/data.py                      # drawn scenes, written to a temporary folder
    python benchmarks/data.py --train_dir data/camvid/train --crop_size 240 320

Each task is done by both sides on the same files, with the same crop, up to normalized float32 batches with int64
labels, with worker processes unless said otherwise:
- full: random scale 0.5-2, crop, flip and colours; the other side is torchvision's v2 transforms, whole image first.
- crop: random crop and flip only, as in run_semantic_segmentation_no_trainer.py of transformers on a `datasets` data
  set, where crop and flip are done on PIL images, before anything is converted. "as it is": that script loads in the
  main process, here with all threads; "with workers": the same code in worker processes.

"files": every image is decoded each time, as the other side always does. "memory": the epochs that take decoded samples
from memory, as many as fit (1 GiB a process unless said otherwise: all of CamVid, or 128 images of 2048x1024).
"decoding alone" opens and decodes the files with PIL, in workers, and does nothing with them.
"""

import argparse
import json
import logging
import os
import random
import statistics
import tempfile
import time
from itertools import chain, islice, repeat
from pathlib import Path
from types import SimpleNamespace

import datasets
import torch
from measure import machine
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from hf_segtx.data import SegmentationDataset
from hf_segtx.data.augmentation import TrainingTransform
from hf_segtx.data.folders import folder_records
from hf_segtx.data.labels import Labels
from hf_segtx.data.loaders import training_dataloader


PROCESSOR = SimpleNamespace(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225], rescale_factor=1 / 255)
BATCH_SIZE = 8


class PlainDataset(Dataset):
    """PIL, tensors, torchvision transforms."""

    def __init__(self, records: list[tuple[str, str]], crop_size: tuple[int, int]):
        self.records = records
        with Image.open(records[0][0]) as image:
            size = image.height, image.width
        self.transform = v2.Compose(
            [
                v2.ScaleJitter(size, (0.5, 2.0), antialias=True),
                v2.RandomCrop(crop_size, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: 255}),
                v2.RandomHorizontalFlip(),
                v2.RandomPhotometricDistort(),
                v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None}, scale=True),
                v2.Normalize(PROCESSOR.image_mean, PROCESSOR.image_std),
            ]
        )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image, mask = (Image.open(file) for file in self.records[index])
        image, mask = self.transform(tv_tensors.Image(image.convert("RGB")), tv_tensors.Mask(mask)[0])
        return {"pixel_values": image, "labels": mask}


class Decoding(Dataset):
    """What every side has to do."""

    def __init__(self, records: list[tuple[str, str]]):
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> int:
        for file in self.records[index]:
            with Image.open(file) as image:
                image.load()
        return index


def transformers_dataset(records: list[tuple[str, str]], crop_size: tuple[int, int]) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    table = datasets.Dataset.from_list([{"image": image, "label": mask} for image, mask in records], features=features)

    def pair(image: Image.Image, mask: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = crop_size
        left, top = random.randint(0, image.width - width), random.randint(0, image.height - height)
        image, mask = (item.crop((left, top, left + width, top + height)) for item in (image.convert("RGB"), mask))
        if random.random() < 0.5:
            image, mask = ImageOps.mirror(image), ImageOps.mirror(mask)
        pixels = v2.functional.to_dtype(v2.functional.pil_to_tensor(image), torch.float32, scale=True)
        pixels = v2.functional.normalize(pixels, PROCESSOR.image_mean, PROCESSOR.image_std)
        return pixels, v2.functional.pil_to_tensor(mask)[0].long()

    def transform(batch):
        pairs = [pair(image, mask) for image, mask in zip(batch["image"], batch["label"], strict=True)]
        return {"pixel_values": [image for image, _ in pairs], "labels": [mask for _, mask in pairs]}

    return table.with_transform(transform)


def endless(dataset, workers: int):
    loader = DataLoader(
        dataset, BATCH_SIZE, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    return chain.from_iterable(repeat(loader))


def all_threads(batches):
    """Batches made in this process, which has the cores for itself meanwhile."""
    while True:
        threads = torch.get_num_threads()
        torch.set_num_threads(os.cpu_count())
        batch = next(batches)
        torch.set_num_threads(threads)
        yield batch


def ours(records, labels: Labels, crop_size: tuple[int, int], workers: int, cache_bytes: int, **augmentation):
    transform = TrainingTransform(PROCESSOR, crop_size, **augmentation)
    dataset = SegmentationDataset(records, labels)
    return iter(training_dataloader(dataset, transform, BATCH_SIZE, num_workers=workers, cache_bytes=cache_bytes))


def write_scenes(folder: Path, count: int, size: tuple[int, int], suffix: str) -> None:
    """The embedded scenes as files, drawn at half of the size."""
    from hf_segtx.data.scenes import SceneDataset

    def resized(image: Image.Image, resample: Image.Resampling) -> Image.Image:
        return image.resize(size[::-1], resample)

    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    scenes = SceneDataset(count, seed=0, size=(size[0] // 2, size[1] // 2))
    for number in range(count):
        item = scenes[number]
        mask = resized(Image.fromarray(item["label"]), Image.Resampling.NEAREST)
        mask.save(folder / "masks" / f"{number:04}.png")
        image = resized(item["image"], Image.Resampling.BICUBIC)
        image.save(folder / "images" / f"{number:04}{suffix}", quality=95)
    (folder / "id2label.json").write_text(json.dumps(scenes.labels.id2label))


def images_per_second(loader, warm_up: int, batches: int) -> float:
    for _ in islice(loader, warm_up):  # starts the workers and uses up what they prepared meanwhile
        pass
    begin = time.perf_counter()
    for _ in islice(loader, batches):
        pass
    return batches * BATCH_SIZE / (time.perf_counter() - begin)


def compare(title: str, folder: Path, crop_size: tuple[int, int], workers: int, rounds: int, images: int) -> None:
    records, labels = folder_records(folder), Labels.from_folder(folder)
    batches, epoch = max(1, images // BATCH_SIZE), -(-len(records) // BATCH_SIZE)
    crop_only = {"scale_range": (1, 1), "photometric": "none", "max_share": 1.0}
    arguments = crop_size, workers
    tasks = {
        "full": ({}, {"torchvision": lambda: endless(PlainDataset(records, crop_size), workers)}),
        "crop": (
            crop_only,
            {
                "transformers as it is": lambda: all_threads(endless(transformers_dataset(records, crop_size), 0)),
                "with workers": lambda: endless(transformers_dataset(records, crop_size), workers),
            },
        ),
    }
    ahead = 1 + 4 * workers
    floor = statistics.median(
        images_per_second(endless(Decoding(records), workers), ahead, batches) for _ in range(rounds)
    )
    print(f"{title}: {len(records)} files, crop {crop_size[0]}x{crop_size[1]}, {workers} workers, images/s")
    print(f"  decoding alone {floor:.0f}")
    for task, (augmentation, peers) in tasks.items():
        rates = {name: [] for name in [*peers, "files", "memory"]}
        for _ in range(rounds):
            for name, make_peer in peers.items():
                rates[name].append(images_per_second(make_peer(), ahead, batches))
            loader = ours(records, labels, *arguments, 0, **augmentation)
            rates["files"].append(images_per_second(loader, ahead, batches))
            loader = ours(records, labels, *arguments, 2**30, **augmentation)
            rates["memory"].append(images_per_second(loader, epoch + ahead, batches))
        medians = {name: statistics.median(values) for name, values in rates.items()}
        print(f"  {task}: hf_segtx {medians['files']:.0f} from files, {medians['memory']:.0f} from memory")
        for peer in peers:
            ratios = (f"{medians[source] / medians[peer]:.2f}x" for source in ("files", "memory"))
            print(f"    {peer} {medians[peer]:.0f}: {' and '.join(ratios)}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train_dir", help="folder with images/ and masks/; default: scenes of 480x360 and 2048x1024")
    parser.add_argument("--crop_size", type=int, nargs=2, default=(240, 320), help="height and width, for --train_dir")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count()))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=768, help="480x360 images of each variant in each round")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)  # the cores belong to the workers
    print(machine())
    options = arguments.workers, arguments.rounds
    if arguments.train_dir:
        folder = Path(arguments.train_dir)
        compare(str(folder), folder, tuple(arguments.crop_size), *options, arguments.images)
        return
    for size, suffix, crop_size, count in (
        ((360, 480), ".jpg", (240, 320), 96),
        ((1024, 2048), ".jpg", (512, 1024), 16),
        ((1024, 2048), ".png", (512, 1024), 16),
    ):
        with tempfile.TemporaryDirectory() as temporary:
            write_scenes(Path(temporary), count, size, suffix)
            title = f"{size[1]}x{size[0]} {suffix[1:].upper()}"
            images = arguments.images * 480 * 360 // (size[0] * size[1])
            compare(title, Path(temporary), crop_size, *options, images)


if __name__ == "__main__":
    main()
