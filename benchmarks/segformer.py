"""SegFormer beside transformers' SegFormer: same weights, same images, interleaved in one run.

    OMP_NUM_THREADS=2 python benchmarks/segformer.py                      # inference b0 b2 b5, training step b0
    OMP_NUM_THREADS=2 python benchmarks/segformer.py --sizes b0 --rounds 15

Prints medians, the ratio of medians, peak additional memory (each in a process of its own), the largest difference of
the logits, and how far we are from the floor: the multiply-adds that the network needs, at the speed that one large
matrix product reaches here.
"""

import argparse
import tempfile

import torch
from measure import compare, machine, multiply_adds, print_header
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

    print(machine())
    print(f"float32, {side}x{side}, {arguments.num_labels} classes")
    print_header("transformers")
    for size in arguments.sizes:
        models = both(size, arguments.num_labels)
        x = torch.randn(1, 3, side, side)
        with torch.no_grad():
            logits = {name: model.eval()(x).logits for name, model in models.items()}

        def inference(model, x=x):
            with torch.inference_mode():
                return model(x).logits

        steps = [lambda model=model: inference(model) for model in models.values()]
        compare(f"SegFormer {size} inference, batch 1", *steps, multiply_adds(models["hf_segtx"], x), arguments.rounds)
        difference = (logits["hf_segtx"] - logits["transformers"]).abs().max() / logits["transformers"].std()
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
