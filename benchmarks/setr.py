"""SETR beside mmsegmentation's: same weights, same images, interleaved in one run.

    OMP_NUM_THREADS=2 python benchmarks/setr.py                            # base and large; naive, pup and mla
    OMP_NUM_THREADS=2 python benchmarks/setr.py --sizes base --heads pup --steps logits --rounds 3

Needs mmsegmentation (see mmsegmentation.py). Prints medians, the ratio of medians, peak additional memory (each in a
process of its own), the largest difference of the logits, and how far we are from the floor: the multiply-adds that the
network needs, at the speed that one large matrix product reaches here. In inference ours is the copy that
`optimize_for_inference` returns; training is the model itself, with auxiliary heads as in mmsegmentation's
configurations for ADE20K.
"""

import argparse

import mmsegmentation
import torch
import torch.nn.functional as F
from measure import compare, machine, multiply_adds, print_header

from hf_segtx.models.configuration_setr import SETRConfig
from hf_segtx.models.upsampling import upsampled_argmax
from hf_segtx.weights import load_original


def theirs(size: str, decode_head: str, num_labels: int, side: int) -> torch.nn.Module:
    """mmsegmentation's SETR, as configs/setr/setr_vit-l_{naive,pup,mla}_*_ade20k-512x512.py."""
    config = SETRConfig.from_size(size, decode_head=decode_head)
    width = config.hidden_size
    loss = dict(type="CrossEntropyLoss", loss_weight=0.4)
    common = dict(num_classes=num_labels, dropout_ratio=0, norm_cfg=dict(type="BN"))
    backbone = dict(
        type="VisionTransformer",
        img_size=(side, side),
        patch_size=16,
        embed_dims=width,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        out_indices=config.feature_indices,
        norm_cfg=dict(type="LN", eps=1e-6),
        with_cls_token=decode_head != "mla",
        interpolate_mode="bilinear",
        patch_bias=True,
    )
    network = dict(type="EncoderDecoder", backbone=backbone, test_cfg=dict(mode="whole"))
    if decode_head == "mla":
        level = dict(type="FCNHead", in_channels=256, channels=256, num_convs=0, kernel_size=1, concat_input=False)
        network["neck"] = dict(
            type="MLANeck",
            in_channels=[width] * 4,
            out_channels=256,
            norm_cfg=dict(type="BN"),
            act_cfg=dict(type="ReLU"),
        )
        network["decode_head"] = dict(
            type="SETRMLAHead", in_channels=(256,) * 4, in_index=(0, 1, 2, 3), channels=512, mla_channels=128, **common
        )
        network["auxiliary_head"] = [dict(**level, in_index=i, loss_decode=loss, **common) for i in range(4)]
    else:
        head = dict(type="SETRUPHead", in_channels=width, channels=256, kernel_size=1 if decode_head == "naive" else 3)
        main = dict(num_convs=1, up_scale=4) if decode_head == "naive" else dict(num_convs=4, up_scale=2)
        network["decode_head"] = dict(**head, **main, in_index=3, **common)
        network["auxiliary_head"] = [
            dict(**head, num_convs=2, up_scale=4, in_index=i, loss_decode=loss, **common) for i in range(3)
        ]
    return mmsegmentation.build(network)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", default=["base", "large"], choices=["base", "large"])
    parser.add_argument("--heads", nargs="*", default=["naive", "pup", "mla"], choices=["naive", "pup", "mla"])
    parser.add_argument("--steps", nargs="*", default=["logits", "label_map", "training"], help="what is measured")
    parser.add_argument("--side", type=int, default=512, help="side of the images in pixels")
    parser.add_argument("--num_labels", type=int, default=150)
    parser.add_argument("--batch_size", type=int, default=2, help="of the training step; inference takes one image")
    parser.add_argument("--rounds", type=int, default=5)
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
            own = F.interpolate(logits(optimized), size=expected.shape[2:], mode="bilinear", align_corners=False)
            difference = (own - expected).abs().max() / expected.std()
            for step in (logits, label_map, training):
                if step.__name__ in arguments.steps:
                    models = (peer, ours if step is training else optimized)
                    steps = [lambda model=model, step=step: step(model) for model in models]
                    # backward: as many products for weights and for inputs
                    products = 3 * multiply_adds(ours, batch) if step is training else multiply_adds(ours, image)
                    count = arguments.batch_size if step is training else 1
                    rounds = max(2, arguments.rounds // 2) if step is training else arguments.rounds
                    compare(f"SETR {size} {decode_head}: {step.__name__}, batch {count}", *steps, products, rounds)
            print(f"{'':32} largest difference of the logits: {difference:.1e} of their standard deviation")


if __name__ == "__main__":
    main()
