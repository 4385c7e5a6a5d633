"""Optimizers, parameter groups and the polynomial learning-rate schedule of the papers' recipes.

Run the tests: `python -m pytest tests/test_optim.py`.

The rules are those of the authors' configurations: no weight decay on normalisation layers and position tables
(SegFormer, arXiv 2105.15203: `decay_mult=0` for `norm` and `pos_block`), a multiple of the learning rate for whatever
is not the pre-trained backbone (SegFormer and SETR: 10), and a polynomial decay that a linear warm-up is multiplied on.
Difference: a layer counts as a norm by its class, not by its name, so the batch norm of a head is exempt too.
"""

import torch
from torch import nn


# Parameters that are tables of positions or single tokens; decaying them would pull all positions together.
UNDECAYED_NAMES = ("pos_embed", "position_embedding", "cls_token", "dist_token", "cls_emb")


def is_undecayed(module: nn.Module, name: str) -> bool:
    """Whether weight decay leaves the parameter `name` of `module` alone: norms, position tables, tokens."""
    # By class name as well, so that LayerNorm2d, RMSNorm and timm's BatchNormAct2d count without importing them.
    is_norm = isinstance(module, nn.modules.batchnorm._NormBase) or "Norm" in type(module).__name__
    return is_norm or name.startswith(UNDECAYED_NAMES)


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float = 0.0, head_lr_multiplier: float = 1.0
) -> list[dict]:
    """Splits the trainable parameters into at most four groups: backbone or head, decayed or not.

    The backbone is `model.base_model` (transformers' word for what a head sits on); the heads are all the rest, and
    the whole of a model that has no backbone of its own is backbone.

    Args:
        learning_rate: of the backbone, per optimizer step.
        weight_decay: as the optimizer understands it (decoupled for AdamW); 0 for norms and position tables.
        head_lr_multiplier: the heads' learning rate divided by the backbone's.

    Returns:
        groups for a torch optimizer, each parameter in exactly one, with a `name` such as "head, no decay".
    """
    backbone = {id(parameter) for parameter in getattr(model, "base_model", model).parameters()}
    groups: dict[tuple[bool, bool], dict] = {}
    seen = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:  # a shared parameter belongs to its first owner
                continue
            seen.add(id(parameter))
            key = (id(parameter) not in backbone, is_undecayed(module, name))
            if key not in groups:
                is_head, undecayed = key
                groups[key] = {
                    "params": [],
                    "lr": learning_rate * (head_lr_multiplier if is_head else 1.0),
                    "weight_decay": 0.0 if undecayed else weight_decay,
                    "name": f"{'head' if is_head else 'backbone'}, {'no decay' if undecayed else 'decay'}",
                }
            groups[key]["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def polynomial_schedule(
    optimizer: torch.optim.Optimizer,
    warmup_steps: int,
    total_steps: int,
    power: float = 1.0,
    min_learning_rate: float = 0.0,
    warmup_start_factor: float = 1e-6,
) -> torch.optim.lr_scheduler.LambdaLR:
    """Polynomial decay over all steps, multiplied by a linear warm-up (mmcv's `PolyLrUpdaterHook` with `warmup`).

    The rate of step s (from 0) of a group with rate r is

        warmup(s) * ((r - min_learning_rate) * (1 - s / total_steps) ** power + min_learning_rate)

    with warmup(s) going from `warmup_start_factor` at step 0 to 1 at step `warmup_steps`. Step it once per optimizer
    step, and do not pass it through `accelerator.prepare`: that steps it once per process.

    Args:
        warmup_steps: optimizer steps of warm-up; 0 for none.
        total_steps: optimizer steps of the whole training, warm-up included.
        power: 1 is linear, 0.9 usual for segmentation, 0 constant.
        min_learning_rate: where the decay ends, the same for all groups (SETR: 1e-4, Segmenter: 1e-5).
        warmup_start_factor: fraction of the rate at step 0.

    Raises:
        ValueError: if `warmup_steps` does not lie in [0, total_steps], or a group's rate is below the minimum.
    """
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warm-up of {warmup_steps} steps does not fit into {total_steps} steps; shorten the warm-up")
    bases = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]  # initial_lr: after a resume
    smallest = min(bases)
    if smallest < min_learning_rate:
        raise ValueError(f"learning rate {smallest:g} is below the minimum {min_learning_rate:g}; lower the minimum")

    def factor_for(base: float):
        floor = min_learning_rate / base if base else 0.0

        def factor(step: int) -> float:
            warmup = 1.0
            if step < warmup_steps:
                warmup = warmup_start_factor + (1 - warmup_start_factor) * step / warmup_steps
            remaining = max(0.0, 1 - step / total_steps) if total_steps else 0.0  # stays at the floor after the end
            return warmup * ((1 - floor) * remaining**power + floor)

        return factor

    return torch.optim.lr_scheduler.LambdaLR(optimizer, [factor_for(base) for base in bases])
