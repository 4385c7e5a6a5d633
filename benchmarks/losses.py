"""The losses beside the same formulas on full-size logits: time and peak memory of forward and backward pass.

    OMP_NUM_THREADS=2 python benchmarks/losses.py

Medians of calls that take turns. Full size: F.interpolate and the textbook formula.
"""

import math
import statistics
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from measure import interleave, machine, peak_additional_memory, ratio, record
from upsampling import confident_logits

from hf_segtx.losses import parse_loss


CASES = [  # (B, K, h, w), (H, W)
    ((2, 150, 128, 128), (512, 512)),
    ((1, 19, 256, 256), (1024, 1024)),
]
CONFIG = SimpleNamespace(semantic_loss_ignore_index=255)


def focal(logits, labels):
    loss = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")
    return ((1 - torch.exp(-loss)) ** 2 * loss).sum() / (labels != 255).sum()


def class_probabilities(logits, labels):
    """Pairs of a class's probabilities and whether it is the label, of the valid pixels, for the classes there are."""
    valid = labels != 255
    probabilities, labels = logits.softmax(1).permute(0, 2, 3, 1)[valid], labels[valid]
    return [(probabilities[:, k], (labels == k).float()) for k in labels.unique()]


def dice(logits, labels):
    terms = [1 - 2 * (p * y).sum() / (p.sum() + y.sum()) for p, y in class_probabilities(logits, labels)]
    return sum(terms) / len(terms)


def lovasz(logits, labels):
    terms = []
    for p, y in class_probabilities(logits, labels):
        errors, order = (y - p).abs().sort(descending=True)
        y = y[order]
        jaccard = 1 - (y.sum() - y.cumsum(0)) / (y.sum() + (1 - y).cumsum(0))
        terms.append(errors @ jaccard.diff(prepend=jaccard.new_zeros(1)))
    return sum(terms) / len(terms)


def rmi(logits, labels):
    """Region mutual information as openseg.pytorch computes it, all classes at once (see hf_segtx/losses.py)."""
    valid = (labels != 255).unsqueeze(1)
    truth = torch.zeros_like(logits).scatter_(1, labels.unsqueeze(1).masked_fill(~valid, 0), 1.0) * valid
    bce = F.binary_cross_entropy_with_logits(logits, truth, valid.expand_as(logits).float(), reduction="sum")
    maps = [
        F.max_pool2d(values, 3, padding=1).flatten(0, 1).unsqueeze(1) for values in (truth, logits.sigmoid() * valid)
    ]
    y, p = (points - points.mean(2, keepdim=True) for points in (F.unfold(values.double(), 3) for values in maps))
    ridge = 1e-3 * torch.eye(9, dtype=torch.float64)
    left = y @ y.mT - y @ p.mT @ torch.linalg.inv(p @ p.mT + ridge) @ p @ y.mT
    mutual = (torch.logdet(left + ridge) / 2 - 9 * math.log(1e-3) / 2).sum() / 9 / len(logits)
    return (bce / valid.sum() + mutual.float()) / 2


def measure(formula, shape, size):
    torch.manual_seed(0)
    logits = confident_logits(shape).requires_grad_()
    with torch.no_grad():  # classes in regions, some 20 in a batch as in photographs
        labels = F.interpolate(logits, size, mode="bilinear").argmax(1).remainder(20)
    labels[torch.rand(labels.shape) < 0.1] = 255
    loss = parse_loss(formula.__name__)

    def full():
        formula(F.interpolate(logits, size, mode="bilinear"), labels).backward()
        logits.grad = None

    def ours():
        loss(logits, labels, CONFIG).backward()
        logits.grad = None

    memory = [peak_additional_memory(function) for function in (full, ours)]
    seconds = interleave({"full": full, "ours": ours}, rounds=3)
    times = [statistics.median(seconds[name]) for name in seconds]
    title = f"{formula.__name__} {shape} -> {size}"
    record(title, *times, *memory)
    times, memory = [1e3 * time for time in times], [peak / 2**20 for peak in memory]
    print(
        f"{title:46} {times[0]:8.0f} {times[1]:8.0f} "
        f"{ratio(seconds, 'ours', 'full'):5.1f}x {memory[0]:8.0f} {memory[1]:8.0f}",
        flush=True,
    )


def main():
    print(machine())
    print(f"{'':46} {'full ms':>8} {'ours ms':>8} {'ratio':>6} {'full MiB':>8} {'ours MiB':>8}")
    for shape, size in CASES:
        for formula in (focal, dice, lovasz, rmi):
            measure(formula, shape, size)


if __name__ == "__main__":
    main()
