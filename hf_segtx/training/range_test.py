"""The range test of learning rates, for architectures whose rates nobody has written down.

    losses = measure_losses(arguments, steps=60)
    rate = suitable_rate(losses, steps=60)

Leslie N. Smith, "Cyclical Learning Rates for Training Neural Networks" (arXiv 1506.01186, Section 3.3): a short
training whose rate grows with each step. The loss stays, then falls, then rises where the rate is too high.
"""

import math
from dataclasses import replace

import numpy as np
import torch
from accelerate.utils import set_seed

from . import setup
from .arguments import Arguments


LOWEST, HIGHEST = 1e-6, 1e-1  # rates of the first and of the last step
STEPS, FEWEST_STEPS = 60, 25
AVERAGED = 5  # steps, about, in the moving average of the loss
SMOOTHING = 1 - 1 / AVERAGED
TOO_HIGH = 2.0  # times the lowest loss so far: the test is over
# The rate of the lowest loss is already close to where it rises. On CamVid a third of it is 8e-4 for SegFormer-B0 and
# 1.5e-3 for Segmenter-Ti from random weights; long runs found 1.5e-3 and 1e-3.
BELOW_LOWEST = 3.0


def range_rates(steps: int) -> np.ndarray:
    """The rate of each step: (steps,), with equal ratios between them."""
    return np.geomspace(LOWEST, HIGHEST, steps)


def measure_losses(arguments: Arguments, steps: int) -> list[float]:
    """The loss of each step with its rate, up to `steps` of them; fewer if the loss becomes far too high.

    Trains the run's model on its data, as the run will, in full precision.
    """
    usual = {"optimizer": "adamw", "head_lr_multiplier": 1.0, "max_grad_norm": 1.0, "num_warmup_steps": 0}
    arguments = replace(arguments, **usual, mixed_precision="no")
    accelerator = setup.build_accelerator(arguments, on_cpu=not torch.accelerator.is_available())
    set_seed(arguments.seed)
    train_dataset, _, labels = setup.read_data(arguments, check=False)
    model, processor = setup.build_model(arguments, labels)
    weights = setup.count_class_weights(arguments, train_dataset, labels)
    _, model.loss_function = setup.build_loss(arguments, weights, accelerator)
    setup.choose_parameters(arguments, model)
    model, optimizer, _ = setup.prepare(arguments, accelerator, model, steps)
    loader = setup.build_loader(arguments, accelerator, train_dataset, processor, labels, start_step=0)
    model.train()
    losses = []
    for rate, batch in zip(range_rates(steps), loader, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model(**batch).loss
        losses.append(loss.item())
        if not math.isfinite(losses[-1]) or smoothed(losses)[-1] > TOO_HIGH * smoothed(losses).min():
            break
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), arguments.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return losses


def smoothed(losses: list[float]) -> np.ndarray:
    """Their moving average, which begins with the first one: (steps,)."""
    means, total, weight = [], 0.0, 0.0
    for loss in losses:
        total, weight = SMOOTHING * total + loss, SMOOTHING * weight + 1
        means.append(total / weight)
    return np.array(means)


def suitable_rate(losses: list[float], steps: int) -> float:
    """A third of the rate at which the smoothed loss was lowest, in two digits.

    Args:
        steps: of the test, of which `losses` may be the first ones.
    """
    means = smoothed([loss for loss in losses if math.isfinite(loss)])
    first = min(AVERAGED, len(means) - 1)  # those before are means of fewer steps
    lowest = first + int(means[first:].argmin())
    return float(f"{range_rates(steps)[lowest] / BELOW_LOWEST:.2g}")
