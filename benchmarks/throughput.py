"""Images a second at the largest batch, of every size beside other libraries' networks, and score against speed.

    OMP_NUM_THREADS=2 python benchmarks/throughput.py --max_gib 4            # everything, on a CPU: hours
    python benchmarks/throughput.py --sizes b0 small FCN                     # names that have one of these in them
    python benchmarks/throughput.py --half                                   # on a GPU, in bfloat16
    OMP_NUM_THREADS=1 python benchmarks/throughput.py --processor_time       # where others use the machine as well

The batch of a network is doubled, on a GPU until its memory is full, on a CPU as long as there are more images a second
by it and its memory stays below `--max_gib`. At that batch all networks take turns for `--rounds`; the median counts.
Each goes from pixels to label maps in its own way: torchvision's and UPerNet upsample their logits themselves,
transformers' SegFormer as its image processor does. Weights are random; OCRNet's norms are folded into convolutions.

The picture is that of Figure 4 of Segmenter: mean IoU on ADE20K, single scale, **as published** (nothing is trained
here), over the images a second that are measured. Networks without a published score there are only in the table.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from measure import machine, peak_additional_memory
from PIL import Image
from torchvision.models import segmentation
from transformers import (
    ConvNextConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from transformers.utils import logging

from hf_segtx.architectures import ARCHITECTURES
from hf_segtx.models.configuration_segformer import SIZES
from hf_segtx.models.upsampling import upsampled_argmax
from hf_segtx.visualization.curves import axes
from hf_segtx.visualization.label_maps import INK, legend, palette, text_font


# Mean IoU on ADE20K's validation images, single scale: SegFormer Table 1a and 1d, Segmenter Table 3 and the authors'
# README, SETR Table 4, HRNet-OCR's README.
PUBLISHED = {
    "SegFormer b0": 37.4, "SegFormer b1": 42.2, "SegFormer b2": 46.5, "SegFormer b3": 49.4, "SegFormer b4": 50.3,
    "SegFormer b5": 51.0, "SegFormer b2_s4": 43.1, "SegFormer resnet50": 34.7, "SegFormer resnet101": 38.7,
    "SegFormer resnext101": 39.8, "Segmenter tiny mask": 38.1, "Segmenter small linear": 45.37,
    "Segmenter small mask": 45.3, "Segmenter base linear": 48.06, "Segmenter base mask": 48.5,
    "Segmenter deit_base linear": 47.1, "Segmenter deit_base mask": 48.7, "Segmenter large linear": 50.71,
    "Segmenter large mask": 51.3, "SETR large naive": 48.06, "SETR large pup": 48.58, "SETR large mla": 48.64,
    "SETR deit_base pup": 46.34, "SETR deit_base mla": 46.15, "OCRNet hrnet_w48": 44.5,
}  # fmt: skip
PUBLISHED |= {f"transformers SegFormer {size}": PUBLISHED[f"SegFormer {size}"] for size in SIZES if len(size) == 2}
GROWTH = 1.03  # of the images a second, without which a CPU's batch is large enough


def our_network(name: str, size: str, head: str | None, num_labels: int, side: int) -> torch.nn.Module:
    """With random weights, for images of that side."""
    row = ARCHITECTURES[name]
    settings = {"decode_head": head} if head else {}
    if row.has_position_table:
        settings["image_size"] = side
    model = row.model(row.config.from_size(size, num_labels=num_labels, **settings))
    return model.optimize_for_inference() if name == "ocrnet" else model


def networks(num_labels: int, side: int) -> dict[str, Callable[[], torch.nn.Module]]:
    """What makes each network, by its name."""
    found = {}
    for name, row in ARCHITECTURES.items():
        module = __import__(row.config.__module__, fromlist=["DECODE_HEADS"])
        for size in row.sizes:
            for head in [head for head in getattr(module, "DECODE_HEADS", [None]) if head != "probe"]:
                title = " ".join(filter(None, (row.config.__name__.removesuffix("Config"), size, head)))
                found[title] = partial(our_network, name, size, head, num_labels, side)
    for size in ("b0", "b1", "b2", "b3", "b4", "b5"):
        config = SegformerConfig(**SIZES[size], num_labels=num_labels)
        found[f"transformers SegFormer {size}"] = partial(SegformerForSemanticSegmentation, config)
    stages = [f"stage{number}" for number in range(1, 5)]
    convnext = ConvNextConfig(hidden_sizes=[96, 192, 384, 768], depths=[3, 3, 9, 3], out_features=stages)
    backbones = {"ConvNeXt-T": convnext, "Swin-T": SwinConfig(out_features=stages)}
    for name, backbone in backbones.items():
        config = UperNetConfig(backbone_config=backbone, num_labels=num_labels, auxiliary_in_channels=384)
        found[f"transformers UPerNet {name}"] = partial(UperNetForSemanticSegmentation, config)
    for name in ("fcn", "deeplabv3"):
        for depth in ("resnet50", "resnet101"):
            make = getattr(segmentation, f"{name}_{depth}")
            title = f"torchvision {'FCN' if name == 'fcn' else 'DeepLabV3'} {depth}"
            found[title] = partial(make, weights=None, weights_backbone=None, num_classes=num_labels)
    return found


@torch.inference_mode()
def label_maps(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) -> (B, H, W)"""
    outputs, size = model(images), tuple(images.shape[2:])
    if isinstance(outputs, dict) and "out" in outputs:  # torchvision
        return outputs["out"].argmax(1)
    if isinstance(model, UperNetForSemanticSegmentation):
        return outputs.logits.argmax(1)
    if isinstance(model, SegformerForSemanticSegmentation):
        return F.interpolate(outputs.logits, size, mode="bilinear", align_corners=False).argmax(1)
    return upsampled_argmax(outputs.logits, size, align_corners=getattr(model.config, "align_corners", False))


class Bench:
    """Device, type, side and clock.

    Args:
        clock: of the seconds that count.
        max_gib: of a batch, on a CPU.
    """

    def __init__(self, side: int, half: bool, clock: Callable[[], float], max_gib: float, max_batch: int):
        self.side, self.clock, self.max_gib, self.max_batch = side, clock, max_gib, max_batch
        self.on_gpu = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.on_gpu else "cpu")
        self.type = torch.bfloat16 if half else torch.float32

    @contextlib.contextmanager
    def placed(self, model: torch.nn.Module):
        """The model alone on the device: two of them would leave less for the largest batch."""
        yield model.to(self.device, self.type)
        if self.on_gpu:
            model.cpu()
            torch.cuda.empty_cache()

    def rate(self, model: torch.nn.Module, batch: int) -> float:
        """Images a second of a call, after one that does not count; 0 if the batch does not fit into a GPU."""
        try:
            images = torch.randn(batch, 3, self.side, self.side, device=self.device, dtype=self.type)
            for _ in range(2):
                begin = self.clock()
                label_maps(model, images)
                if self.on_gpu:
                    torch.cuda.synchronize()
            return batch / (self.clock() - begin)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return 0.0

    def fits(self, model: torch.nn.Module, batch: int) -> bool:
        """Whether a batch stays below the bound on a CPU; on a GPU it is tried."""
        if self.on_gpu:
            return True
        images = torch.randn(batch, 3, self.side, self.side, dtype=self.type)
        return peak_additional_memory(lambda: label_maps(model, images)) <= self.max_gib * 2**30

    def largest_batch(self, model: torch.nn.Module) -> int:
        """See the module."""
        batch, rate = 1, self.rate(model, 1)
        while 2 * batch <= self.max_batch and self.fits(model, 2 * batch):
            more = self.rate(model, 2 * batch)
            if more == 0 or (not self.on_gpu and more < GROWTH * rate):
                break
            batch, rate = 2 * batch, more
        return batch


def score_against_speed(rates: dict[str, float]) -> Image.Image:
    """Those with a published score; one colour for each family."""
    points = {name: (rate, PUBLISHED[name]) for name, rate in rates.items() if name in PUBLISHED}
    size, families = (900, 560), list(dict.fromkeys(name.split()[0] for name in points))
    limits = (0, 1.25 * max(rate for rate, _ in points.values())), (32, 54)
    picture, draw, place = axes(size, *limits, "images a second, measured", "mIoU % on ADE20K, published", ticks=(8, 8))
    colors = dict(zip(families, palette(len(families)), strict=True))
    for number, (name, point) in enumerate(sorted(points.items(), key=lambda item: item[1])):
        family, _, rest = name.partition(" ")
        (x, y), side = place(*point), 1 if number % 2 else -1  # above and below in turn, for neighbours
        draw.ellipse((x - 9, y - 9, x + 9, y + 9), fill=colors[family])
        draw.text((x, y + 16 * side), rest, fill=INK, font=text_font(22), anchor="mt" if side > 0 else "mb")
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    key = legend(families, list(colors.values()), width=170)
    picture.paste(key, (size[0] - key.width - 25, 25))
    return picture


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", default=[""], help="parts of the names of networks; else all")
    parser.add_argument("--side", type=int, default=512, help="of the images, in pixels")
    parser.add_argument("--num_labels", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max_gib", type=float, default=2.0, help="memory of a batch on a CPU")
    parser.add_argument("--max_batch", type=int, default=256)
    parser.add_argument("--half", action="store_true", help="bfloat16")
    parser.add_argument("--processor_time", action="store_true", help="instead of the time that passes; one thread")
    parser.add_argument("--picture", default="throughput.png", help="file of score against speed")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    torch.manual_seed(0)
    clock = time.process_time if arguments.processor_time else time.perf_counter
    bench = Bench(arguments.side, arguments.half, clock, arguments.max_gib, arguments.max_batch)
    known = networks(arguments.num_labels, arguments.side)
    chosen = [name for name in known if any(part.lower() in name.lower() for part in arguments.sizes)]
    if not chosen:
        parser.error(f"--sizes {arguments.sizes}: no network is called so; there are {', '.join(known)}")
    print(f"{machine()}\n{bench.type}, {bench.side}x{bench.side}, {arguments.num_labels} classes\n")
    models, batches, rates = {}, {}, {name: [] for name in chosen}
    for name in chosen:
        models[name] = known[name]().eval()
        with bench.placed(models[name]) as model:
            batches[name] = bench.largest_batch(model)
    for _ in range(arguments.rounds):
        for name in chosen:
            with bench.placed(models[name]) as model:
                rates[name].append(bench.rate(model, batches[name]))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print("| | M parameters | largest batch | images/s | mIoU on ADE20K, published |\n|---|---:|---:|---:|---:|")
    for name in sorted(chosen, key=medians.get, reverse=True):
        parameters = sum(parameter.numel() for parameter in models[name].parameters()) / 1e6
        print(f"| {name} | {parameters:.1f} | {batches[name]} | {medians[name]:.2f} | {PUBLISHED.get(name, '')} |")
    if PUBLISHED.keys() & medians:
        score_against_speed(medians).save(arguments.picture)
        print(f"\nscore against speed: {arguments.picture}")


if __name__ == "__main__":
    main()
