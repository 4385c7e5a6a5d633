"""All that was only ever measured on CPUs, on one GPU, in bfloat16, interleaved, in six minutes.

    python benchmarks/gpu.py                       # on a machine with a GPU; Triton's kernels too, where Triton is
    python benchmarks/gpu.py --smoke               # everything at tiny sizes on the CPU: whether the script works

- upsampling: loss with gradient and label map of (16, 150, 128, 128) logits to 512x512 beside the plain pair, eager and
  compiled; milliseconds and peak memory beyond the inputs'
- training: a step of SegFormer-B2 with 16 images, beside transformers' SegFormer, eager and compiled
- inference: images a second from picture to label map, at the largest batch that fits
- loader: batches a second of the training loader beside those that the training step takes

Parts that the time no longer allows are left out, and named. The weights are random; the networks of each comparison
have the same sizes.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import interleave, machine
from transformers import EomtConfig, EomtForUniversalSegmentation, SegformerConfig, SegformerForSemanticSegmentation
from transformers.utils import logging

from hf_segtx import (
    OCRNetConfig,
    OCRNetForSemanticSegmentation,
    SegFormerConfig,
    SegFormerForSemanticSegmentation,
    SegmenterConfig,
    SegmenterForSemanticSegmentation,
    SETRConfig,
    SETRForSemanticSegmentation,
)
from hf_segtx.models import upsampling
from hf_segtx.models.configuration_segformer import SIZES
from hf_segtx.models.upsampling import upsampled_argmax, upsampled_cross_entropy


# With --smoke: the fields that make the published sizes tiny.
TINY_SEGFORMER = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4]}
TINY_VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
TINY_OCRNET = {"depths": [1] * 4, "num_modules": [1] * 4, "hidden_sizes": [4, 8, 8, 8], "layer1_hidden_size": 8}
TINY_EOMT = {"hidden_size": 32, "num_hidden_layers": 2, "num_blocks": 1, "num_attention_heads": 2, "num_queries": 5}


class Bench:
    """Sizes, device and the time that is left.

    Args:
        smoke: whether everything is tiny, on the CPU.
        seconds: what all parts may take together.
    """

    def __init__(self, smoke: bool, seconds: float, rounds: int):
        self.smoke, self.rounds = smoke, 1 if smoke else rounds
        self.end = time.perf_counter() + seconds
        self.device = torch.device("cpu" if smoke else "cuda")
        self.side, self.classes, self.batch = (64, 20, 2) if smoke else (512, 150, 16)
        self.largest_batch = 2 if smoke else 256
        self.backend = "eager" if smoke else "inductor"  # the smoke test has no minutes for a C++ compiler

    def compile(self, function: Callable) -> Callable:
        return torch.compile(function, backend=self.backend, dynamic=False)

    def has_time(self, title: str, seconds: float) -> bool:
        """Whether a part that takes so long is still to start; says so if not."""
        if time.perf_counter() + seconds <= self.end:
            return True
        print(f"  {title}: left out, no time", flush=True)
        return False

    def peak_memory(self, function: Callable[[], object]) -> float:
        """MiB beyond what there was before the call; 0 on a CPU."""
        if self.smoke:
            function()
            return 0.0
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def table(self, title: str, variants: dict[str, Callable[[], object]]) -> None:
        """Milliseconds, memory, and how much faster than the first variant, of calls that take turns."""
        first = {}
        for name, function in variants.items():  # what is compiled is compiled here
            begin = time.perf_counter()
            function()
            first[name] = time.perf_counter() - begin
        memory = {name: self.peak_memory(function) for name, function in variants.items()}
        seconds = {name: statistics.median(values) for name, values in interleave(variants, self.rounds).items()}
        base = next(iter(variants))
        print(f"{title}\n  {'':30} {'ms':>9} {'MiB':>8} {'faster':>7} {'memory':>7} {'first call, s':>14}")
        for name in variants:
            share = memory[name] / memory[base] if memory[base] else 0
            print(
                f"  {name:30} {seconds[name] * 1e3:9.2f} {memory[name]:8.0f} {seconds[base] / seconds[name]:6.2f}x "
                f"{share:7.1%} {first[name]:14.1f}",
                flush=True,
            )


def with_triton(function: Callable[[], object]) -> Callable[[], object]:
    """The same, by Triton's kernels."""

    def run():
        upsampling.USES_TRITON = True
        try:
            return function()
        finally:
            upsampling.USES_TRITON = False

    return run


def fused_pair(bench: Bench) -> None:
    shape, size = (bench.batch, bench.classes, bench.side // 4, bench.side // 4), (bench.side, bench.side)
    logits = torch.randn(shape, device=bench.device, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(bench.classes, (bench.batch, *size), device=bench.device)
    labels[:, :10] = 255

    def plain_loss(logits):
        return F.cross_entropy(F.interpolate(logits, size, mode="bilinear"), labels, ignore_index=255)

    def plain_map(logits):
        return F.interpolate(logits, size, mode="bilinear").argmax(1)

    def step(loss):
        return lambda: torch.autograd.grad(loss(logits), logits)

    def prediction(label_map):
        return lambda: label_map(logits.detach())

    ours = (
        step(lambda logits: upsampled_cross_entropy(logits, labels)),
        prediction(lambda logits: upsampled_argmax(logits, size)),
    )
    losses = {"plain": step(plain_loss), "plain, compiled": step(bench.compile(plain_loss)), "ours": ours[0]}
    maps = {"plain": prediction(plain_map), "plain, compiled": prediction(bench.compile(plain_map)), "ours": ours[1]}
    upsampling.USES_TRITON = False
    if bench.device.type in upsampling.TRITON_DEVICES:
        losses["ours, Triton"], maps["ours, Triton"] = with_triton(ours[0]), with_triton(ours[1])
        difference = (losses["ours, Triton"]()[0] - losses["ours"]()[0]).abs().max() / losses["ours"]()[0].abs().max()
        equal = (maps["ours, Triton"]() == maps["ours"]()).float().mean()
        print(
            f"Triton beside ours: gradients differ by {difference:.1e} of the largest, {equal:.4%} of the map is equal"
        )
    bench.table(f"loss with gradient, {shape} -> {size}, bfloat16", losses)
    bench.table(f"label map, {shape} -> {size}, bfloat16", maps)


def their_segformer(bench: Bench, size: str) -> torch.nn.Module:
    fields = SIZES[size] | (TINY_SEGFORMER if bench.smoke else {})
    return SegformerForSemanticSegmentation(SegformerConfig(**fields, num_labels=bench.classes)).to(bench.device)


def our_segformer(bench: Bench, size: str) -> torch.nn.Module:
    config = SegFormerConfig.from_size(size, num_labels=bench.classes, **(TINY_SEGFORMER if bench.smoke else {}))
    return SegFormerForSemanticSegmentation(config).to(bench.device)


def training(bench: Bench) -> None:
    pixel_values = torch.randn(bench.batch, 3, bench.side, bench.side, device=bench.device)
    labels = torch.randint(bench.classes, (bench.batch, bench.side, bench.side), device=bench.device)

    def step(model, call):
        def run():
            with torch.autocast(bench.device.type, torch.bfloat16):
                loss = call(pixel_values=pixel_values, labels=labels).loss
            loss.backward()
            model.zero_grad(set_to_none=True)

        return run

    theirs, ours = their_segformer(bench, "b2").train(), our_segformer(bench, "b2").train()
    variants = {"transformers": step(theirs, theirs), "ours": step(ours, ours)}
    if bench.has_time("compiled training", 110):
        variants |= {
            "transformers, compiled": step(theirs, bench.compile(theirs)),
            "ours, compiled": step(ours, bench.compile(ours)),
        }
    bench.table(f"training step, SegFormer-B2, {bench.batch} images of {bench.side}x{bench.side}, bfloat16", variants)


def networks(bench: Bench) -> dict[str, tuple[Callable[[], torch.nn.Module], Callable, list[bool]]]:
    """By name what makes the network, what makes label maps of its outputs, and whether to compile, one after other."""
    size, classes, tiny = (bench.side, bench.side), {"num_labels": bench.classes}, bench.smoke

    def ours(outputs):
        return upsampled_argmax(outputs.logits, size)

    def theirs(outputs):
        return F.interpolate(outputs.logits, size, mode="bilinear").argmax(1)

    def queries(outputs):
        scores = outputs.class_queries_logits.softmax(-1)[..., :-1]
        logits = torch.einsum("bqc,bqhw->bchw", scores, outputs.masks_queries_logits.sigmoid())
        return F.interpolate(logits, size, mode="bilinear").argmax(1)

    vit = TINY_VIT if tiny else {}
    setr = {"feature_indices": [0, 1, 2, 3], "decoder_hidden_size": 16} if tiny else {}
    segmenter = SegmenterConfig.from_size("large", image_size=bench.side, **classes, **vit)
    ocrnet = OCRNetConfig.from_size("hrnet_w48", **classes, **(TINY_OCRNET if tiny else {}))
    setr = SETRConfig.from_size("large", image_size=bench.side, **classes, **vit, **setr)
    eomt = EomtConfig(image_size=bench.side, **classes, **(TINY_EOMT if tiny else {}))
    return {
        "SegFormer-B0, transformers": (lambda: their_segformer(bench, "b0"), theirs, [False, True]),
        "SegFormer-B0, ours": (lambda: our_segformer(bench, "b0"), ours, [False, True]),
        "SegFormer-B2, transformers": (lambda: their_segformer(bench, "b2"), theirs, [False]),
        "SegFormer-B2, ours": (lambda: our_segformer(bench, "b2"), ours, [False]),
        "SegFormer-B5, transformers": (lambda: their_segformer(bench, "b5"), theirs, [False]),
        "SegFormer-B5, ours": (lambda: our_segformer(bench, "b5"), ours, [False]),
        "EoMT-L, transformers": (lambda: EomtForUniversalSegmentation(eomt), queries, [False, True]),
        "Segmenter-L, ours": (lambda: SegmenterForSemanticSegmentation(segmenter), ours, [False]),
        "SETR-L, ours": (lambda: SETRForSemanticSegmentation(setr), ours, [False]),
        "OCRNet-W48, ours": (lambda: OCRNetForSemanticSegmentation(ocrnet).optimize_for_inference(), ours, [False]),
    }


def images_per_second(bench: Bench, predict: Callable, batch: int) -> float:
    """The median of a few calls at this batch size; 0 if it does not fit."""
    try:
        pixel_values = torch.randn(batch, 3, bench.side, bench.side, device=bench.device, dtype=torch.bfloat16)
        seconds = interleave({"": lambda: predict(pixel_values)}, bench.rounds)[""]
        return batch / statistics.median(seconds)
    except torch.OutOfMemoryError:
        return 0.0
    finally:
        if not bench.smoke:
            torch.cuda.empty_cache()


def inference(bench: Bench) -> None:
    """Each network alone, at growing batches: two of them in memory would leave less for the largest one."""
    print(f"inference to label maps of {bench.side}x{bench.side}, bfloat16, at the largest batch that fits")
    for name, (make, label_map, ways) in networks(bench).items():
        if not bench.has_time(name, 15):
            continue
        model, largest = make().to(bench.device, torch.bfloat16).eval(), 0
        for is_compiled in ways:
            title = f"{name}, compiled" if is_compiled else name
            call = bench.compile(model) if is_compiled else model
            if is_compiled and not bench.has_time(title, 60):
                continue

            @torch.inference_mode()
            def predict(pixel_values, call=call, label_map=label_map):
                return label_map(call(pixel_values))

            rate, batch = 0.0, largest or 1  # compiled code is made once, for the batch that eager found
            while batch <= bench.largest_batch and (found := images_per_second(bench, predict, batch)):
                rate, largest = found, batch
                batch = bench.largest_batch + 1 if is_compiled else 4 * batch
            print(f"  {title:36} {rate:9.1f} images/s at a batch of {largest}", flush=True)


def loader(bench: Bench) -> None:
    """The loader alone, the step alone, and both together, as training does it."""
    from data import PROCESSOR, write_scenes

    from hf_segtx.data import SegmentationDataset
    from hf_segtx.data.augmentation import TrainingTransform
    from hf_segtx.data.folders import folder_records
    from hf_segtx.data.labels import Labels
    from hf_segtx.data.loaders import training_dataloader

    model = our_segformer(bench, "b2").train()
    workers, batches = (0, 1) if bench.smoke else (min(os.cpu_count() - 1, 12), 20)

    def step(batch):
        with torch.autocast(bench.device.type, torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        model.zero_grad(set_to_none=True)

    def seconds(batches_of, step) -> float:
        for batch in islice(batches_of, 1 + 2 * workers):
            step(batch)
        begin = time.perf_counter()
        for batch in islice(batches_of, batches):
            step(batch)
        if not bench.smoke:
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) / batches

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "data"
        write_scenes(folder, 4 if bench.smoke else 64, (bench.side, bench.side * 4 // 3), ".jpg")
        dataset = SegmentationDataset(folder_records(folder), Labels.from_folder(folder))
        transform = TrainingTransform(PROCESSOR, (bench.side, bench.side))
        options = {"num_workers": workers, "device": bench.device}
        make = lambda: iter(training_dataloader(dataset, transform, bench.batch, **options))  # noqa: E731
        first = next(make())
        alone = seconds(make(), lambda batch: None)
        steps = seconds(iter(lambda: first, None), step)
        both = seconds(make(), step)
    print(
        f"loader, {workers} workers, batches of {bench.batch}: alone {alone * 1e3:.1f} ms, step {steps * 1e3:.1f} ms, "
        f"both {both * 1e3:.1f} ms, of which waiting for the loader {max(1 - steps / both, 0):.0%}"
    )


PARTS = {
    "upsampling": (fused_pair, 40),
    "training": (training, 30),
    "inference": (inference, 20),
    "loader": (loader, 40),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", default=["upsampling", "training", "loader", "inference"], choices=PARTS)
    parser.add_argument("--seconds", type=float, default=350, help="after which nothing new starts")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU")
    arguments = parser.parse_args()
    if not arguments.smoke and not torch.cuda.is_available():
        sys.exit("there is no GPU here; --smoke tries the script at tiny sizes on the CPU")
    logging.set_verbosity_error()
    torch.manual_seed(0)
    print(machine())
    bench = Bench(arguments.smoke, arguments.seconds, arguments.rounds)
    for part in arguments.parts:
        function, seconds = PARTS[part]
        if bench.has_time(part, seconds):
            function(bench)


if __name__ == "__main__":
    main()
