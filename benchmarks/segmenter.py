"""Segmenter beside mmsegmentation's: same weights, same images, interleaved in one run.

    OMP_NUM_THREADS=2 python benchmarks/segmenter.py                       # tiny, small, base; linear and mask
    OMP_NUM_THREADS=2 python benchmarks/segmenter.py --sizes base --heads mask --steps training

Needs mmsegmentation (see mmsegmentation.py). Prints medians, the ratio of medians, peak additional memory (each in a
process of its own), the largest difference of the logits, and how far we are from the floor: the multiply-adds that the
network needs, at the speed that one large matrix product reaches here. In inference ours is the copy that
`optimize_for_inference` returns; training is the model itself.
"""

import argparse

import mmsegmentation
import torch
from measure import compare, machine, multiply_adds, print_header

from hf_segtx.models.configuration_segmenter import SIZES
from hf_segtx.models.upsampling import upsampled_argmax
from hf_segtx.weights import load_original


def theirs(size: str, decode_head: str, num_labels: int, side: int) -> torch.nn.Module:
    """mmsegmentation's Segmenter, as configs/_base_/models/segmenter_vit-b16_mask.py and the files built on it."""
    width, depth, heads = (SIZES[size][name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    common = dict(in_channels=width, channels=width, num_classes=num_labels, dropout_ratio=0.0)
    if decode_head == "mask":
        head = dict(type="SegmenterMaskTransformerHead", num_layers=2, num_heads=heads, embed_dims=width, **common)
    else:
        head = dict(type="FCNHead", num_convs=0, concat_input=False, norm_cfg=dict(type="BN"), **common)
    backbone = dict(
        type="VisionTransformer",
        img_size=(side, side),
        patch_size=16,
        embed_dims=width,
        num_layers=depth,
        num_heads=heads,
        drop_path_rate=0.1,
        final_norm=True,
        norm_cfg=dict(type="LN", eps=1e-6),
        interpolate_mode="bicubic",
        patch_bias=True,
    )
    return mmsegmentation.build(
        dict(type="EncoderDecoder", backbone=backbone, decode_head=head, test_cfg=dict(mode="whole"))
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", default=["tiny", "small", "base"], choices=list(SIZES))
    parser.add_argument("--heads", nargs="*", default=["linear", "mask"], choices=["linear", "mask"])
    parser.add_argument("--steps", nargs="*", default=["logits", "label_map", "training"], help="what is measured")
    parser.add_argument("--side", type=int, default=512, help="side of the images in pixels")
    parser.add_argument("--num_labels", type=int, default=150)
    parser.add_argument("--batch_size", type=int, default=2, help="of the training step; inference takes one image")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    side = arguments.side

    print(machine())
    print(f"float32, {side}x{side}, {arguments.num_labels} classes")
    print_header("mmsegmentation")
    image = torch.randn(1, 3, side, side)
    batch = torch.randn(arguments.batch_size, 3, side, side)
    labels = torch.randint(0, arguments.num_labels, (arguments.batch_size, side, side))
    for size in arguments.sizes:
        for decode_head in arguments.heads:
            peer = theirs(size, decode_head, arguments.num_labels, side).eval()
            ours = load_original(peer.state_dict())
            optimized = ours.optimize_for_inference()

            def logits(model, peer=peer):
                with torch.inference_mode():
                    return model._forward(image) if model is peer else model(image).logits

            def label_map(model, peer=peer):
                with torch.inference_mode():
                    if model is peer:
                        return mmsegmentation.label_map(model, image)
                    return upsampled_argmax(model(image).logits, (side, side))

            def training(model, peer=peer):
                model.train()
                if model is peer:
                    loss = mmsegmentation.training_loss(model, batch, labels)
                else:
                    loss = model(batch, labels=labels).loss
                loss.backward()
                model.zero_grad(set_to_none=True)

            expected = logits(peer)
            difference = (logits(optimized) - expected).abs().max() / expected.std()
            for step in (logits, label_map, training):
                if step.__name__ in arguments.steps:
                    models = (peer, ours if step is training else optimized)
                    steps = [lambda model=model, step=step: step(model) for model in models]
                    # backward: as many products for weights and for inputs
                    products = 3 * multiply_adds(ours, batch) if step is training else multiply_adds(ours, image)
                    count = arguments.batch_size if step is training else 1
                    rounds = max(2, arguments.rounds // 2) if step is training else arguments.rounds
                    compare(f"Segmenter {size} {decode_head}: {step.__name__}, batch {count}", *steps, products, rounds)
            print(f"{'':32} largest difference of the logits: {difference:.1e} of their standard deviation")


if __name__ == "__main__":
    main()
