"""The four heads on a ViT of DINOv3's shape, beside transformers' EoMT and UperNet on the same: time and memory.

    OMP_NUM_THREADS=1 python benchmarks/backbones.py --processor_time
    OMP_NUM_THREADS=2 python benchmarks/backbones.py --sizes small base

Random weights: nothing is loaded. Inference goes from the pixels of one image to its label map, with each model's own
way from logits to classes; a training step is loss and gradients of a batch. All heads but Segmenter's and EoMT's read
four blocks, at one resolution. EoMT trains with masked attention, and predicts without, as when it is annealed away.
Prints, as a Markdown table, medians of interleaved calls and peak additional memory, each in a process of its own.
Needs scipy, for EoMT's loss.

On a machine that others use as well, `--processor_time` counts the time of the processor instead, of one thread.
"""

import argparse
import statistics
import time

import torch
from measure import interleave, machine, peak_additional_memory
from transformers import (
    DINOv3ViTConfig,
    EomtDinov3Config,
    EomtDinov3ForUniversalSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

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
from hf_segtx.models.upsampling import upsampled_argmax


# facebook/dinov3-vits16-pretrain-lvd1689m and -vitb16-
COMMON = {"num_hidden_layers": 12, "num_register_tokens": 4, "patch_size": 16, "layer_norm_eps": 1e-5}
SIZES = {
    "small": {**COMMON, "hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6},
    "base": {**COMMON, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
}
FOUR_BLOCKS = [3, 6, 9, 12]


def make_models(size: str, num_labels: int, side: int) -> dict[str, torch.nn.Module]:
    """All models on the backbone of a size; EoMT, whose backbone is its own, takes images of `side` pixels only.

    Its 100 queries, in the last 3 of 12 blocks, are those of its authors' configurations for semantic segmentation.
    """

    def settings(out_indices: list[int]) -> dict:
        backbone_config = DINOv3ViTConfig(**SIZES[size], out_indices=out_indices)
        return {"backbone_config": backbone_config, "num_labels": num_labels}

    four = settings(FOUR_BLOCKS)
    eomt = EomtDinov3Config(**SIZES[size], image_size=side, num_queries=100, num_blocks=3, num_labels=num_labels)
    return {
        "SETR, naive": SETRForSemanticSegmentation(SETRConfig(decode_head="naive", **four)),
        "Segmenter, mask": SegmenterForSemanticSegmentation(SegmenterConfig(decode_head="mask", **settings([12]))),
        "SegFormer, all-MLP": SegFormerForSemanticSegmentation(SegFormerConfig(**four)),
        "OCRNet": OCRNetForSemanticSegmentation(OCRNetConfig(**four)),
        "transformers' UperNet": UperNetForSemanticSegmentation(UperNetConfig(**four)),
        "transformers' EoMT": EomtDinov3ForUniversalSegmentation(eomt),
    }


def label_map(model: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
    """(1, 3, H, W) -> (1, H, W)"""
    with torch.inference_mode():
        outputs, size = model(image), tuple(image.shape[2:])
        if isinstance(model, UperNetForSemanticSegmentation):  # its logits have the image's size
            return outputs.logits.argmax(1)
        if isinstance(model, EomtDinov3ForUniversalSegmentation):  # as its image processor
            masks = torch.nn.functional.interpolate(outputs.masks_queries_logits, size=size, mode="bilinear").sigmoid()
            classes = outputs.class_queries_logits.softmax(-1)[..., :-1]
            return torch.einsum("bqc, bqhw -> bchw", classes, masks).argmax(1)
        return upsampled_argmax(outputs.logits, size)


def training_step(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Loss and gradients. images (B, 3, H, W), labels (B, H, W)"""
    if isinstance(model, EomtDinov3ForUniversalSegmentation):
        classes = [x.unique() for x in labels]
        masks = [(x == found[:, None, None]).float() for x, found in zip(labels, classes)]
        loss = model(images, mask_labels=masks, class_labels=classes).loss
    else:
        loss = model(images, labels=labels).loss
    loss.backward()
    model.zero_grad(set_to_none=True)


def measured(calls: dict, rounds: int, clock) -> dict[str, list[str]]:
    """Milliseconds and MiB of each call, as columns."""
    seconds = interleave(calls, rounds, clock)
    columns = {}
    for name, call in calls.items():
        memory = peak_additional_memory(call) / 2**20
        columns[name] = [f"{1e3 * statistics.median(seconds[name]):.0f} ms", f"{memory:.0f} MiB"]
    return columns


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", default=["small"], choices=list(SIZES))
    parser.add_argument("--side", type=int, default=512, help="side of the image in inference, in pixels")
    parser.add_argument("--training_side", type=int, default=256, help="a multiple of 64")
    parser.add_argument("--batch_size", type=int, default=2, help="of the training step")
    parser.add_argument("--num_labels", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processor_time", action="store_true", help="count that of one thread, not the wall clock")
    arguments = parser.parse_args()
    clock = time.perf_counter
    if arguments.processor_time:
        torch.set_num_threads(1)
        clock = time.process_time

    print(machine())
    side, count, num_labels = arguments.training_side, arguments.batch_size, arguments.num_labels
    print(f"float32, {num_labels} classes\n")
    print(
        f"| head | backbone | M parameters | {arguments.side}x{arguments.side} to label map | additional memory ",
        end="",
    )
    print(f"| training step, {count} of {side}x{side} | additional memory |\n|---|---|---:|---:|---:|---:|---:|")
    torch.manual_seed(0)
    image = torch.randn(1, 3, arguments.side, arguments.side)
    batch = torch.randn(count, 3, side, side)
    labels = torch.randint(
        num_labels, (count, side // 64, side // 64)
    )  # a class has a mask in EoMT's loss: few of them
    labels = labels.repeat_interleave(64, 1).repeat_interleave(64, 2)
    for size in arguments.sizes:
        models = make_models(size, num_labels, arguments.side)
        for model in models.values():
            model.eval()
        models["transformers' EoMT"].attn_mask_probs.zero_()
        calls = {name: lambda model=model: label_map(model, image) for name, model in models.items()}
        inference = measured(calls, arguments.rounds, clock)
        models = make_models(size, num_labels, side)
        for model in models.values():
            model.train()
        calls = {name: lambda model=model: training_step(model, batch, labels) for name, model in models.items()}
        training = measured(calls, arguments.rounds, clock)
        for name, model in models.items():
            parameters = sum(value.numel() for value in model.parameters()) / 1e6
            print(f"| {' | '.join([name, size, f'{parameters:.1f}', *inference[name], *training[name]])} |", flush=True)


if __name__ == "__main__":
    main()
