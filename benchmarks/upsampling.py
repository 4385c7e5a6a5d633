"""Loss and label map of upsampled logits beside F.interpolate with F.cross_entropy (and its backward) or argmax.

    OMP_NUM_THREADS=2 python benchmarks/upsampling.py

For random logits and for smooth, confident ones like a trained model's, prints medians of calls that take turns,
ratios and peak additional memory; first the time of one exponential of all full-size logits, as a floor of the loss.
"""

import statistics

import torch
import torch.nn.functional as F
from measure import interleave, machine, peak_additional_memory, ratio, record

from hf_segtx.models.upsampling import upsampled_argmax, upsampled_cross_entropy


CASES = [  # (B, K, h, w), (H, W)
    ((2, 150, 128, 128), (512, 512)),
    ((1, 19, 256, 512), (1024, 2048)),
    ((8, 11, 60, 80), (240, 320)),
]


def random_logits(shape):
    return torch.randn(shape)


def confident_logits(shape):
    """Regions 16 logits wide with one class 8 above the rest, smoothed over 3 logits, and noise of deviation 1."""
    batch, classes, height, width = shape
    regions = torch.randint(classes, (batch, 1, height // 16, width // 16)).float()
    regions = F.interpolate(regions, size=(height, width)).long()[:, 0]
    logits = 8 * F.one_hot(regions, classes).permute(0, 3, 1, 2).float()
    return F.avg_pool2d(logits, 3, 1, 1, count_include_pad=False) + torch.randn(shape)


def compare(title, plain, ours):
    variants = {"plain": plain, "ours": ours}
    memory = [peak_additional_memory(variant) for variant in variants.values()]
    seconds = interleave(variants, rounds=5)
    times = [statistics.median(seconds[name]) for name in variants]
    record(title, *times, *memory)
    times, memory = [1e3 * time for time in times], [size / 2**20 for size in memory]
    share = f"{memory[0]:6.0f} {memory[1]:4.0f} {memory[1] / memory[0]:6.1%}"
    return f"{times[0]:7.1f} {times[1]:6.1f} {ratio(seconds, 'ours', 'plain'):5.1f}x {share}"


def measure(make_logits, memory_format, shape, size):
    torch.manual_seed(0)
    logits = make_logits(shape).contiguous(memory_format=memory_format).requires_grad_()
    labels = torch.randint(shape[1], (shape[0], *size))
    labels[torch.rand(labels.shape) < 0.1] = 255

    def upsample():
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)

    def plain_loss():
        F.cross_entropy(upsample(), labels, ignore_index=255).backward()
        logits.grad = None

    def loss():
        upsampled_cross_entropy(logits, labels).backward()
        logits.grad = None

    plain_argmax = torch.no_grad()(lambda: upsample().argmax(1))
    name = f"{shape} -> {size} {make_logits.__name__.split('_')[0]} {str(memory_format).split('.')[1]}"
    line = [
        compare(f"{name}: loss", plain_loss, loss),
        compare(f"{name}: label map", plain_argmax, lambda: upsampled_argmax(logits, size)),
    ]
    print(f"{name:66}", " | ".join(line), flush=True)


def main():
    print(machine())
    block, result = torch.randn(2, 2**20)
    for shape, size in CASES:
        numel = shape[0] * shape[1] * size[0] * size[1]
        seconds = interleave({"exp": lambda: torch.exp(block, out=result)}, rounds=20)["exp"]
        print(f"{shape} -> {size}: one exponential {1e3 * statistics.median(seconds) * numel / 2**20:.1f} ms")
    print(f"{'':66} {'loss: plain ms, ours ms, ratio, MiB, MiB':41} | label map: the same")
    for shape, size in CASES:
        for make_logits in (random_logits, confident_logits):
            for memory_format in (torch.contiguous_format, torch.channels_last):
                measure(make_logits, memory_format, shape, size)


if __name__ == "__main__":
    main()
