"""Ways of computing the layers that take the time, in GFLOP/s and as a share of the speed of one large matrix product.

    OMP_NUM_THREADS=1 python benchmarks/layers.py                         # and with 2
    OMP_NUM_THREADS=1 python benchmarks/layers.py --parts linear --backward
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 OMP_NUM_THREADS=1 \
        python benchmarks/layers.py                                       # as on a processor without AVX-512

`hf_segtx/models/cpu.py` chooses by what this prints: its choice has a star, and one that costs more than a tenth of the
time of the best way an exclamation mark. The least of many interleaved calls, as other work on the machine only adds;
with one thread its processor time. float32; a multiply-add counts as two operations, and Winograd's convolution as many
as the direct one.
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from measure import interleave, machine, matrix_speed

from hf_segtx.models import cpu


LINEAR = [  # (tokens, channels in, channels out): SegFormer-B0, B2 to B5, ViT-Ti to ViT-L at 512x512
    *[(16384, 32, 32), (16384, 32, 128), (16384, 128, 32), (4096, 64, 64), (4096, 64, 256), (4096, 256, 64)],
    *[(1024, 160, 160), (1024, 160, 640), (1024, 640, 160), (256, 256, 1024), (256, 1024, 256), (16384, 256, 150)],
    *[(16384, 64, 256), (16384, 256, 64), (4096, 128, 512), (4096, 512, 128), (1024, 320, 1280), (1024, 1280, 320)],
    *[(256, 512, 2048), (256, 2048, 512), (4096, 768, 768), (1025, 192, 576), (1025, 384, 1536), (1025, 768, 768)],
    *[(1025, 768, 2304), (1025, 768, 3072), (1025, 3072, 768), (1025, 1024, 4096), (1025, 4096, 1024)],
]
CONVOLUTION = [  # (channels in, channels out, side of the map)
    *[(18, 18, 128), (48, 48, 128), (64, 64, 128), (96, 96, 64), (128, 128, 64), (192, 192, 32), (256, 256, 32)],
    *[(256, 256, 128), (384, 384, 16), (512, 512, 32), (720, 512, 128)],
]
ATTENTION = [  # (heads, queries, keys, channels of a head)
    *[(1, 16384, 256, 32), (2, 4096, 256, 32), (5, 1024, 256, 32), (8, 256, 256, 32), (1, 16384, 256, 64)],
    *[(12, 1025, 1025, 64)],
]


def clock() -> Callable[[], float]:
    """What is least disturbed by other work on the machine."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def print_ways(title: str, multiply_adds: float, ways: dict[str, Callable], chosen: str, rounds: int, peak: float):
    """A line: each way's GFLOP/s and share of the peak, with a mark at the one that the package chooses."""
    best = {name: min(seconds) for name, seconds in interleave(ways, rounds, clock()).items()}
    parts = []
    for name, seconds in best.items():
        mark = "" if name != chosen else "!" if seconds > 1.1 * min(best.values()) else "*"
        parts.append(f"{name} {2e-9 * multiply_adds / seconds:6.1f} ({multiply_adds / seconds / peak:4.0%}){mark:1}")
    print(f"{title:34} {' | '.join(parts)}", flush=True)


def linear(rounds: int, peak: float, backward: bool) -> None:
    for tokens, width_in, width_out in LINEAR:
        x = torch.randn(1, tokens, width_in, requires_grad=backward)
        weight, bias = torch.randn(width_out, width_in, requires_grad=backward), torch.randn(width_out)
        gradient = torch.randn(1, tokens, width_out)

        def as_convolution(dilation, x=x, weight=weight, bias=bias):
            image = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)
            y = F.conv2d(image, weight[:, :, None, None], bias, dilation=dilation)
            return y.permute(0, 2, 3, 1).reshape(1, -1, len(weight))

        def step(function, inputs=(x, weight), gradient=gradient):
            def run():
                with torch.set_grad_enabled(backward):
                    y = function()
                    return torch.autograd.grad(y, inputs, gradient) if backward else y

            return run

        ways = {
            "F.linear": step(lambda x=x, weight=weight, bias=bias: F.linear(x, weight, bias)),
            "1x1 convolution": step(lambda convolution=as_convolution: convolution(1)),
            "dilated": step(lambda convolution=as_convolution: convolution(2)),
        }
        with torch.set_grad_enabled(backward):
            chosen = "dilated" if cpu.is_faster_as_convolution(x, weight) else "F.linear"
        products = (3 if backward else 1) * tokens * width_in * width_out
        print_ways(f"linear {tokens} x {width_in} -> {width_out}", products, ways, chosen, rounds, peak)


def convolution(rounds: int, peak: float, backward: bool) -> None:
    for width_in, width_out, side in CONVOLUTION:
        conv = torch.nn.Conv2d(width_in, width_out, 3, padding=1).to(memory_format=torch.channels_last)
        x = torch.randn(1, width_in, side, side).contiguous(memory_format=torch.channels_last)
        ways = {name: torch.inference_mode()(lambda layer=layer, x=x: layer(x)) for name, layer in
                (("direct", conv), ("Winograd", cpu.WinogradConv2d(conv)))}  # fmt: skip
        chosen = "Winograd" if cpu.is_faster_by_winograd(conv) else "direct"
        products = 9 * width_in * width_out * side**2
        print_ways(f"3x3 {width_in} -> {width_out}, {side}x{side}", products, ways, chosen, rounds, peak)


def attention(rounds: int, peak: float, backward: bool) -> None:
    for heads, queries, keys, width in ATTENTION:
        query, key = torch.randn(1, heads, queries, width), torch.randn(1, heads, keys, width)

        def plain(query, key=key):
            return ((query @ key.mT) * query.shape[-1] ** -0.5).softmax(-1) @ key

        def fused(query, key=key):
            return F.scaled_dot_product_attention(query, key, key)

        def in_blocks(function, count, query=query):
            return torch.cat([function(block) for block in query.split(count, dim=2)], dim=2)

        ways = {
            "SDPA": lambda query=query, fused=fused: fused(query),
            "plain": lambda query=query, plain=plain: plain(query),
        }
        for count in (256, 1024):
            if count < queries:
                ways[f"SDPA by {count}"] = lambda blocks=in_blocks, function=fused, count=count: blocks(function, count)
                ways[f"plain by {count}"] = lambda blocks=in_blocks, function=plain, count=count: blocks(
                    function, count
                )
        ways = {name: torch.inference_mode()(way) for name, way in ways.items()}
        title = f"attention {heads} x {queries} to {keys}, {width} wide"
        print_ways(title, 2 * heads * queries * keys * width, ways, "SDPA", rounds, peak)


PARTS = {"linear": linear, "convolution": convolution, "attention": attention}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--backward", action="store_true", help="linear layers with their gradients")
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    print(machine())
    peak = matrix_speed(clock())
    print(f"one large matrix product: {2e-9 * peak:.0f} GFLOP/s")
    for part in arguments.parts:
        PARTS[part](arguments.rounds, peak, arguments.backward)


if __name__ == "__main__":
    main()
