"""SegFormer beside transformers' SegFormer: same weights, same images, interleaved in one run.

    OMP_NUM_THREADS=2 python benchmarks/segformer.py                      # inference b0 b2 b5, training step b0
    OMP_NUM_THREADS=2 python benchmarks/segformer.py --sizes b0 --rounds 15
    OMP_NUM_THREADS=2 python benchmarks/segformer.py --keep_freed_memory  # without faults of fresh pages of memory
    OMP_NUM_THREADS=2 python benchmarks/segformer.py --operators          # where our time goes, as Markdown

The optimized copy is what `model.optimize_for_inference()` returns. Prints medians, the ratio of medians, peak
additional memory (each in a process of its own), the largest difference of the logits, and how far we are from the
floor: the multiply-adds that the network needs, at the speed that one large matrix product reaches here.
"""

import argparse
import statistics
import tempfile

import torch
from measure import compare, interleave, machine, matrix_speed, multiply_adds, print_header
from torch.profiler import profile
from transformers import SegformerConfig, SegformerForSemanticSegmentation
from transformers.utils import logging

from hf_segtx import SegFormerForSemanticSegmentation
from hf_segtx.models.configuration_segformer import SIZES
from hf_segtx.training.machine import keep_freed_memory


def both(size: str, num_labels: int):
    """transformers' SegFormer with random weights, and ours loaded from the folder that it saved."""
    torch.manual_seed(0)
    theirs = SegformerForSemanticSegmentation(SegformerConfig(**SIZES[size], num_labels=num_labels))
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = SegFormerForSemanticSegmentation.from_pretrained(folder)
    return {"transformers": theirs, "hf_segtx": ours}


KINDS = {  # operators that do the work, as the profiler calls them -> what they do in this network
    "aten::mkldnn_convolution": "products and convolutions",
    "aten::_slow_conv2d_forward": "products and convolutions",
    "aten::addmm": "products and convolutions",
    "aten::mm": "products and convolutions",
    "aten::bmm": "products and convolutions",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
    "mkldnn::_convolution_pointwise": "depthwise convolutions with GELU",
    "aten::native_layer_norm": "LayerNorm",
    "aten::add": "residuals",
    "aten::add_": "residuals",
    "aten::upsample_bilinear2d": "upsampling",
    "aten::baddbmm_": "upsampling",
    "aten::copy_": "copies",
}


def shares_of_operators(model: torch.nn.Module, x: torch.Tensor, rounds: int) -> dict[str, float]:
    """What share of the time of predictions each kind of operator takes."""
    with torch.inference_mode():
        model(x)
        with profile() as profiler:
            for _ in range(rounds):
                model(x)
    shares = dict.fromkeys([*KINDS.values(), "all others, and calling them"], 0.0)
    for event in profiler.key_averages():
        shares[KINDS.get(event.key, "all others, and calling them")] += event.self_cpu_time_total
    total = sum(shares.values())
    return {kind: microseconds / total for kind, microseconds in shares.items()}


def print_operators(sizes: list[str], x: torch.Tensor, num_labels: int, rounds: int) -> None:
    """Markdown: for each size GFLOP, their time at the speed of one large product, ours over it, operators' shares."""
    columns = {}
    for size in sizes:
        model = both(size, num_labels)["hf_segtx"].eval()
        products = multiply_adds(model, x)
        with torch.inference_mode():
            times = interleave({"ours": lambda model=model: model(x)}, rounds)["ours"]
        floor = products / matrix_speed()
        columns[size] = {
            "GFLOP": f"{2e-9 * products:.1f}",
            "floor": f"{1e3 * floor:.0f} ms",
            "time": f"{1e3 * statistics.median(times):.0f} ms",
            "time / floor": f"{statistics.median(times) / floor:.2f}",
        }
        columns[size] |= {kind: f"{share:.1%}" for kind, share in shares_of_operators(model, x, rounds).items()}
    print("| | " + " | ".join(columns) + " |")
    print("|---|" + "---:|" * len(columns))
    for row in columns[sizes[0]]:
        print(f"| {row} | " + " | ".join(column[row] for column in columns.values()) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", default=["b0", "b2", "b5"], choices=list(SIZES), help="inference")
    parser.add_argument("--training_sizes", nargs="*", default=["b0"], choices=list(SIZES), help="training step")
    parser.add_argument("--side", type=int, default=512, help="side of the images in pixels")
    parser.add_argument("--num_labels", type=int, default=150)
    parser.add_argument("--batch_size", type=int, default=2, help="of the training step; inference takes one image")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--keep_freed_memory", action="store_true", help="as `segtx train`; see docs/speed.md")
    parser.add_argument("--operators", action="store_true", help="instead: where the time of our predictions goes")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    side = arguments.side

    if arguments.keep_freed_memory:
        keep_freed_memory(torch.device("cpu"))
    print(machine())
    print(f"float32, {side}x{side}, {arguments.num_labels} classes")
    if arguments.operators:
        print_operators(arguments.sizes, torch.randn(1, 3, side, side), arguments.num_labels, arguments.rounds)
        return
    print_header("transformers")
    for size in arguments.sizes:
        models = both(size, arguments.num_labels)
        models["optimized"] = models["hf_segtx"].optimize_for_inference()
        x = torch.randn(1, 3, side, side)
        with torch.no_grad():
            logits = {name: model.eval()(x).logits for name, model in models.items()}

        def inference(model, x=x):
            with torch.inference_mode():
                return model(x).logits

        theirs, *ours = [lambda model=model: inference(model) for model in models.values()]
        products = multiply_adds(models["hf_segtx"], x)
        for step, name, said in zip(ours, ("hf_segtx", "optimized"), ("", ", optimized copy")):
            compare(f"SegFormer {size} inference, batch 1{said}", theirs, step, products, arguments.rounds)
            difference = (logits[name] - logits["transformers"]).abs().max() / logits["transformers"].std()
            print(f"{'':32} largest difference of the logits: {difference:.1e} of their standard deviation")

    for size in arguments.training_sizes:
        models = both(size, arguments.num_labels)
        x = torch.randn(arguments.batch_size, 3, side, side)
        labels = torch.randint(0, arguments.num_labels, (arguments.batch_size, side, side))

        def training(model, x=x, labels=labels):
            model(pixel_values=x, labels=labels).loss.backward()
            model.zero_grad(set_to_none=True)

        for model in models.values():
            model.train()
        steps = [lambda model=model: training(model) for model in models.values()]
        products = 3 * multiply_adds(models["hf_segtx"], x)  # backward: as many for weights and for inputs
        compare(
            f"SegFormer {size} training, batch {arguments.batch_size}", *steps, products, max(3, arguments.rounds // 2)
        )


if __name__ == "__main__":
    main()
