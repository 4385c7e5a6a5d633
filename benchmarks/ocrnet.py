"""OCRNet beside mmsegmentation's: same weights, same images, interleaved in one run; and OCR beside PPM and ASPP.

    OMP_NUM_THREADS=2 python benchmarks/ocrnet.py                          # hrnet_w18, hrnet_w48, resnet101 at 512x512
    OMP_NUM_THREADS=2 python benchmarks/ocrnet.py --sizes hrnet_w18 --image_size 1024 2048 --num_labels 19
    OMP_NUM_THREADS=2 python benchmarks/ocrnet.py --sizes --context        # Table 1 of the paper only

Needs mmsegmentation (see mmsegmentation.py). Prints medians, the ratio of medians, peak additional memory (each in a
process of its own), the largest difference of the logits, and how far we are from the floor: the multiply-adds that the
network needs, at the speed that one large matrix product reaches here. In inference ours is the copy that
`optimize_for_inference` returns; training is the model itself.
"""

import argparse
import statistics

import mmsegmentation
import torch
import torch.nn.functional as F
from measure import compare, interleave, machine, multiply_adds, peak_additional_memory, print_header
from torch import nn

from hf_segtx import OCRNetConfig
from hf_segtx.models.configuration_ocrnet import SIZES
from hf_segtx.models.layers import ConvNormAct
from hf_segtx.models.modeling_ocrnet import OCRNetDecodeHead
from hf_segtx.models.upsampling import upsampled_argmax
from hf_segtx.weights import load_original


def theirs(size: str, num_labels: int) -> nn.Module:
    """mmsegmentation's OCRNet, as configs/_base_/models/ocrnet_hr18.py and ocrnet_r50-d8.py."""
    batch_norm, fields = dict(type="BN"), SIZES[size]
    common = dict(num_classes=num_labels, norm_cfg=batch_norm, align_corners=False)
    if size.startswith("hrnet"):
        widths, depths, modules = fields["hidden_sizes"], fields["depths"], fields["num_modules"]
        extra = {
            f"stage{i + 1}": dict(
                num_modules=modules[i],
                num_branches=i + 1,
                block="BASIC" if i else "BOTTLENECK",
                num_blocks=(depths[i],) * (i + 1),
                num_channels=tuple(widths[: i + 1]) if i else (64,),
            )
            for i in range(4)
        }
        backbone = dict(type="HRNet", norm_cfg=batch_norm, extra=extra)
        common |= dict(in_channels=widths, in_index=(0, 1, 2, 3), input_transform="resize_concat", dropout_ratio=-1)
        regions, pixels = dict(channels=sum(widths), kernel_size=1), {}
    else:
        backbone = dict(
            type="ResNetV1c",
            depth=int(size.removeprefix("resnet")),
            out_indices=(0, 1, 2, 3),
            strides=(1, 2, 1, 1),
            dilations=(1, 1, 2, 4),
            contract_dilation=True,
            norm_cfg=batch_norm,
        )
        regions, pixels = dict(in_channels=1024, in_index=2, channels=256), dict(in_channels=2048, in_index=3)
    heads = [
        dict(
            type="FCNHead",
            num_convs=1,
            concat_input=False,
            loss_decode=dict(type="CrossEntropyLoss", loss_weight=0.4),
            **{**common, **regions},
        ),
        dict(type="OCRHead", channels=512, ocr_channels=256, **{**common, **pixels}),
    ]
    return mmsegmentation.build(
        dict(
            type="CascadeEncoderDecoder",
            num_stages=2,
            backbone=backbone,
            decode_head=heads,
            test_cfg=dict(mode="whole"),
        )
    )


class PyramidPooling(nn.Module):
    """PPM (arXiv 1612.01105): four pooled maps beside the map, and a 3x3 convolution. 23.1 M in Table 1."""

    def __init__(self, channels: int = 2048, width: int = 512):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(bins), ConvNormAct(channels, width)) for bins in (1, 2, 3, 6)
        )
        self.fuse = ConvNormAct(channels + 4 * width, width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = [F.interpolate(branch(x), size=x.shape[2:], mode="bilinear") for branch in self.branches]
        return self.fuse(torch.cat([x, *pooled], dim=1))


class AtrousPyramidPooling(nn.Module):
    """ASPP (arXiv 1706.05587): three dilated convolutions, a 1x1 one and the mean. 15.5 M in Table 1."""

    def __init__(self, channels: int = 2048, width: int = 256):
        super().__init__()
        self.branches = nn.ModuleList(
            [ConvNormAct(channels, width)] + [ConvNormAct(channels, width, 3, dilation=d) for d in (12, 24, 36)]
        )
        self.mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvNormAct(channels, width))
        self.fuse = ConvNormAct(5 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.mean(x).expand(-1, -1, *x.shape[2:])
        return self.fuse(torch.cat([branch(x) for branch in self.branches] + [mean], dim=1))


class ObjectContext(OCRNetDecodeHead):
    """OCR on 2048 channels; region logits are given, as in Table 1."""

    def __init__(self):
        super().__init__(OCRNetConfig.from_size("resnet101", num_labels=19), 2048)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward([x], x[:, :19])[0]


def compare_context(side: int, rounds: int):
    """Table 1: parameters, operations (two a multiply-add), memory and time of three heads on 1x2048xside^2."""
    heads = {"PPM": PyramidPooling().eval(), "ASPP": AtrousPyramidPooling().eval(), "OCR": ObjectContext().eval()}
    x = torch.randn(1, 2048, side, side).contiguous(memory_format=torch.channels_last)

    def step(head):
        with torch.inference_mode():
            return head(x)

    steps = {name: lambda head=head: step(head) for name, head in heads.items()}
    seconds = {name: statistics.median(values) for name, values in interleave(steps, rounds).items()}
    print(f"Table 1 at 1x2048x{side}x{side}: parameters (M), GFLOPs, peak additional memory (MiB), milliseconds")
    for name, head in heads.items():
        parameters = sum(p.numel() for p in head.parameters()) / 1e6
        operations = 2e-9 * multiply_adds(head, x)
        memory = peak_additional_memory(steps[name]) / 2**20
        print(f"{name:6} {parameters:6.1f} {operations:7.0f} {memory:7.0f} {seconds[name] * 1e3:8.0f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", default=["hrnet_w18", "hrnet_w48", "resnet101"], choices=list(SIZES))
    parser.add_argument("--steps", nargs="*", default=["logits", "label_map", "training"], help="what is measured")
    parser.add_argument("--image_size", type=int, nargs=2, default=[512, 512], help="height and width in pixels")
    parser.add_argument("--num_labels", type=int, default=150)
    parser.add_argument("--batch_size", type=int, default=2, help="of the training step; inference takes one image")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--context", action="store_true", help="compare OCR with PPM and ASPP, too")
    parser.add_argument("--context_side", type=int, default=128, help="side of the map that these take")
    arguments = parser.parse_args()
    size = tuple(arguments.image_size)

    if arguments.context:
        compare_context(arguments.context_side, arguments.rounds)
    print(machine())
    print(f"float32, {size[0]}x{size[1]}, {arguments.num_labels} classes")
    print_header("mmsegmentation")
    image = torch.randn(1, 3, *size)
    batch = torch.randn(arguments.batch_size, 3, *size)
    labels = torch.randint(0, arguments.num_labels, (arguments.batch_size, *size))
    for name in arguments.sizes:
        peer = theirs(name, arguments.num_labels).eval()
        model = load_original(peer.state_dict())
        fused = model.optimize_for_inference()

        def logits(network, peer=peer):
            with torch.inference_mode():
                if network is not peer:
                    return network(image).logits
                features = peer.extract_feat(image)
                return peer.decode_head[1](features, peer.decode_head[0](features))

        def label_map(network, peer=peer):
            with torch.inference_mode():
                if network is peer:
                    return mmsegmentation.label_map(network, image)
                return upsampled_argmax(network(image).logits, size)

        def training(network, peer=peer):
            network.train()
            if network is peer:
                loss = mmsegmentation.training_loss(network, batch, labels)
            else:
                loss = network(batch, labels=labels).loss
            loss.backward()
            network.zero_grad(set_to_none=True)

        expected = logits(peer)
        difference = (logits(fused) - expected).abs().max() / expected.std()
        for step in (logits, label_map, training):
            if step.__name__ in arguments.steps:
                networks = (peer, model if step is training else fused)
                steps = [lambda network=network, step=step: step(network) for network in networks]
                # backward: as many products for weights and for inputs
                products = 3 * multiply_adds(model, batch) if step is training else multiply_adds(fused, image)
                count = arguments.batch_size if step is training else 1
                rounds = max(2, arguments.rounds // 2) if step is training else arguments.rounds
                compare(f"{name} {size[0]}x{size[1]}: {step.__name__}, batch {count}", *steps, products, rounds)
        print(f"{'':32} largest difference of the logits: {difference:.1e} of their standard deviation")


if __name__ == "__main__":
    main()
