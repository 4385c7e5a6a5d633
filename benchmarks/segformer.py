"""SegFormer beside transformers' SegFormer: same weights, same images, interleaved in one run.

    OMP_NUM_THREADS=2 python benchmarks/segformer.py                      # inference b0 b2 b5, training step b0
    OMP_NUM_THREADS=2 python benchmarks/segformer.py --sizes b0 --rounds 15

Prints medians, the ratio of medians, peak additional memory (each in a process of its own), the largest difference of
the logits, and how far we are from the floor: the multiply-adds that the network needs, at the speed that one large
matrix product reaches here.
"""

import argparse
import statistics
import tempfile
import time

import torch
from measure import interleave, peak_additional_memory
from torch.utils.flop_counter import FlopCounterMode
from transformers import SegformerConfig, SegformerForSemanticSegmentation
from transformers.utils import logging

from hf_segtx import SegFormerForSemanticSegmentation
from hf_segtx.models.configuration_segformer import SIZES


def both(size: str, num_labels: int):
    """transformers' SegFormer with random weights, and ours loaded from the folder that it saved."""
    torch.manual_seed(0)
    theirs = SegformerForSemanticSegmentation(SegformerConfig(**SIZES[size], num_labels=num_labels))
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = SegFormerForSemanticSegmentation.from_pretrained(folder)
    return {"transformers": theirs, "hf_segtx": ours}


def matrix_speed() -> float:
    """Multiply-adds a second of a large float32 product on this machine, best of five: of the faster library.

    On a CPU PyTorch gives matrix products to MKL and convolutions to oneDNN; see hf_segtx/models/layers.py.
    """
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    image = torch.randn(1, 2048, 2048, 1).contiguous(memory_format=torch.channels_last)
    seconds = []
    for _ in range(6):
        for product in (lambda: a @ b, lambda: torch.nn.functional.conv2d(image, b[:, :, None, None])):
            start = time.perf_counter()
            product()
            seconds.append(time.perf_counter() - start)
    return 2048**3 / min(seconds[2:])


def multiply_adds(model, x) -> float:
    """Of a forward pass."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() / 2


def compare(title: str, steps: dict, rounds: int, products: float):
    """Prints one line; `steps` are functions without arguments, `products` the multiply-adds that ours needs."""
    seconds = {name: statistics.median(values) for name, values in interleave(steps, rounds).items()}
    memory = {name: peak_additional_memory(step) for name, step in steps.items()}
    theirs, ours = seconds["transformers"], seconds["hf_segtx"]
    floor = products / matrix_speed()
    print(
        f"{title:24} {theirs * 1e3:9.0f} {ours * 1e3:9.0f} {theirs / ours:7.2f}x "
        f"{memory['transformers'] / 2**20:9.0f} {memory['hf_segtx'] / 2**20:9.0f} "
        f"{memory['hf_segtx'] / memory['transformers']:7.0%} {ours / floor:9.2f}x",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", default=["b0", "b2", "b5"], choices=list(SIZES), help="inference")
    parser.add_argument("--training_sizes", nargs="*", default=["b0"], choices=list(SIZES), help="training step")
    parser.add_argument("--side", type=int, default=512, help="side of the images in pixels")
    parser.add_argument("--num_labels", type=int, default=150)
    parser.add_argument("--batch_size", type=int, default=2, help="of the training step; inference takes one image")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    side = arguments.side

    threads = torch.get_num_threads()
    print(f"{threads} threads, float32, {side}x{side}, {arguments.num_labels} classes; milliseconds and MiB; t: theirs")
    print(f"{'':24} {'t':>9} {'ours':>9} {'ratio':>8} {'t':>9} {'ours':>9} {'share':>7} {'over floor':>10}")
    for size in arguments.sizes:
        models = both(size, arguments.num_labels)
        x = torch.randn(1, 3, side, side)
        with torch.no_grad():
            logits = {name: model.eval()(x).logits for name, model in models.items()}

        def inference(model, x=x):
            with torch.inference_mode():
                return model(x).logits

        steps = {name: lambda model=model: inference(model) for name, model in models.items()}
        compare(f"{size} inference, batch 1", steps, arguments.rounds, multiply_adds(models["hf_segtx"], x))
        difference = (logits["hf_segtx"] - logits["transformers"]).abs().max() / logits["transformers"].std()
        print(f"{'':24} largest difference of the logits: {difference:.1e} of their standard deviation")

    for size in arguments.training_sizes:
        models = both(size, arguments.num_labels)
        x = torch.randn(arguments.batch_size, 3, side, side)
        labels = torch.randint(0, arguments.num_labels, (arguments.batch_size, side, side))

        def training(model, x=x, labels=labels):
            model(pixel_values=x, labels=labels).loss.backward()
            model.zero_grad(set_to_none=True)

        for model in models.values():
            model.train()
        steps = {name: lambda model=model: training(model) for name, model in models.items()}
        products = 3 * multiply_adds(models["hf_segtx"], x)  # backward: as many for weights and for inputs
        compare(f"{size} training, batch {arguments.batch_size}", steps, max(3, arguments.rounds // 2), products)


if __name__ == "__main__":
    main()
