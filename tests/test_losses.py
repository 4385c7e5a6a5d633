"""The losses against the same formulas on full-size logits, with gradients by autograd."""

import types

import pytest
import torch
import torch.nn.functional as F

from hf_segtx.losses import parse_loss
from hf_segtx.models import upsampling


SIZES = [((4, 5), (16, 20)), ((7, 9), (23, 31)), ((8, 8), (3, 5)), ((1, 4), (9, 1))]  # (h, w) -> (H, W)
# sums of some 1e3 terms in another order
CLOSE = {torch.float32: {"rtol": 2e-5, "atol": 2e-6}, torch.float64: {"rtol": 1e-9, "atol": 1e-12}}


def example(size_in=(6, 7), size_out=(24, 28), classes=5, dtype=torch.float64, absent=None):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, classes, *size_in, dtype=dtype, generator=generator)
    labels = torch.randint(max(classes, 2), (2, *[-(-n // 4) for n in size_out]), generator=generator)
    labels = labels.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, : size_out[0], : size_out[1]]  # regions
    labels[labels == absent] = 0
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    return logits.requires_grad_(), labels


def config(**settings):
    return types.SimpleNamespace(semantic_loss_ignore_index=255, auxiliary_loss_weight=0.4, **settings)


# ------------------------------------------------------------------------------------- slow formulas, full-size logits


def full_size(logits, labels, align_corners):
    """Probabilities (P, K), their logarithms (P, K) and labels (P,) of the valid pixels."""
    logits = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=align_corners)
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    valid = labels != 255
    log_probabilities = logits.log_softmax(1).permute(0, 2, 3, 1)[valid]
    return log_probabilities.exp(), log_probabilities, labels[valid]


def slow_pixel_loss(per_pixel):
    def loss(logits, labels, align_corners, class_weights=None):
        _, logs, label = full_size(logits, labels, align_corners)
        weights = torch.ones(logs.shape[1]).to(logs) if class_weights is None else class_weights.to(logs)
        picked = logs[torch.arange(len(label)), label]
        return (weights[label] * per_pixel(picked, labels)).sum() / weights[label].sum()

    return loss


def boundary_factors(labels, width=3, weight=5.0):
    """Pixel by pixel: whether another class lies in the square of 2 * width + 1 pixels around it."""
    factors = []
    for image in labels:
        for i, j in (image != 255).nonzero().tolist():
            around = image[max(i - width, 0) : i + width + 1, max(j - width, 0) : j + width + 1]
            factors.append(weight if len(set(around[around != 255].tolist())) > 1 else 1.0)
    return torch.tensor(factors)


def slow_dice(logits, labels, align_corners):
    probabilities, _, label = full_size(logits, labels, align_corners)
    terms = []
    for k in label.unique():
        p, y = probabilities[:, k], (label == k).to(probabilities)
        terms.append(1 - 2 * (p * y).sum() / (p.sum() + y.sum()))
    return sum(terms) / len(terms)


def slow_lovasz(logits, labels, align_corners):
    """Algorithm 1 of the paper: the Jaccard loss of every set of the n largest errors."""
    probabilities, _, label = full_size(logits, labels, align_corners)
    terms = []
    for k in label.unique():
        y = label == k
        errors, order = torch.where(y, 1 - probabilities[:, k], probabilities[:, k]).sort(descending=True)
        sorted_y = y[order].double()
        wrong = torch.arange(len(y))[:, None] >= torch.arange(len(y))  # (n, P): row n holds the n + 1 largest errors
        intersection = (sorted_y * ~wrong).sum(1)
        union = sorted_y.sum() + ((1 - sorted_y) * wrong).sum(1)
        jaccard = 1 - intersection / union
        terms.append((errors * jaccard.diff(prepend=jaccard.new_zeros(1)).to(errors)).sum())
    return sum(terms) / len(terms)


SLOW = {
    "ce": slow_pixel_loss(lambda log_p, labels: -log_p),
    "focal": slow_pixel_loss(lambda log_p, labels: -((1 - log_p.exp()) ** 2) * log_p),
    "boundary": slow_pixel_loss(lambda log_p, labels: -boundary_factors(labels).to(log_p) * log_p),
    "dice": slow_dice,
    "lovasz": slow_lovasz,
}


def assert_same(ours, slow, logits):
    torch.testing.assert_close(ours, slow.to(ours), **CLOSE[logits.dtype])
    gradients = [torch.autograd.grad(3 * loss, logits)[0] for loss in (ours, slow)]
    torch.testing.assert_close(*gradients, **CLOSE[logits.dtype])


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("size_in", "size_out"), SIZES)
@pytest.mark.parametrize("name", SLOW)
def test_matches_the_formula_on_full_size_logits(name, size_in, size_out, align_corners, monkeypatch):
    for classes, dtype in ((1, torch.float64), (3, torch.float64), (17, torch.float32)):  # 17: the other layout
        logits, labels = example(size_in, size_out, classes, dtype, absent=2)
        labels[:, 0, 0] = 1
        slow = SLOW[name](logits, labels, align_corners)
        monkeypatch.setattr(upsampling, "BLOCK_NUMEL_CPU", 300 if classes == 3 else 2**18)  # many blocks, and one
        assert_same(parse_loss(name)(logits, labels, config(align_corners=align_corners)), slow, logits)
