"""Parameter groups, learning-rate schedules and averaged weights.

Run the tests: `python -m pytest tests/test_optim.py`.

The rules are those of the authors' configurations: no weight decay on normalisation layers and position tables
(SegFormer, arXiv 2105.15203: `decay_mult=0` for `norm` and `pos_block`), a multiple of the learning rate for whatever
is not the pre-trained backbone (SegFormer and SETR: 10), and a polynomial decay that a linear warm-up is multiplied on.
Difference: a layer counts as a norm by its class, not by its name, so the batch norm of a head is exempt too.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import get_scheduler

from .arguments import SCHEDULES


# Parameters that are tables of positions or single tokens; decaying them would pull all positions together.
UNDECAYED_NAMES = ("pos_embed", "position_embedding", "cls_token", "dist_token", "cls_emb")


def is_undecayed(module: nn.Module, name: str) -> bool:
    """Whether weight decay leaves the parameter `name` of `module` alone: norms, position tables, tokens."""
    # By class name as well, so that LayerNorm2d, RMSNorm and timm's BatchNormAct2d count without importing them.
    is_norm = isinstance(module, nn.modules.batchnorm._NormBase) or "Norm" in type(module).__name__
    return is_norm or name.startswith(UNDECAYED_NAMES)


# A numbered layer of a backbone: `blocks.7` of a ViT, `stages.2` of a MiT, `layer3` of a ResNet, `stage3` of an HRNet,
# whose `transition2` makes the branch that stage 3 begins with. Whatever is in a ViT's `patch_embed` is before them.
LAYER = re.compile(r"(?:^|\.)(?:patch_embed|(?:blocks|layers?|stages?|(?P<before>transition))[._]?(?P<number>\d+))\.")


def layer_numbers(backbone: nn.Module) -> tuple[dict[int, int], int]:
    """The layer, from 0, of each of a backbone's parameters, by its `id`, and the number of layers.

    What comes before the first numbered layer is a layer of its own; what comes behind the last (the final norm of a
    ViT) gets the number of layers, as a head would.

    Raises:
        ValueError: if the backbone has no numbered layers.
    """
    found = {}
    for name, parameter in backbone.named_parameters():  # in the order of the forward pass
        match = LAYER.search(name)
        if match and match["number"]:
            found[id(parameter)] = int(match["number"]) + bool(match["before"])
        else:
            found[id(parameter)] = math.inf if any(number >= 0 for number in found.values()) else -1
    layers = sorted({number for number in found.values() if number < math.inf})
    if layers in ([], [-1]):
        raise ValueError(
            f"{type(backbone).__name__} has no layers with numbers (blocks.0, stages.0, layer1, ...) to decay the "
            "learning rate over; use a layer decay of 1"
        )
    rank = {number: index for index, number in enumerate([*layers, math.inf])}
    return {key: rank[number] for key, number in found.items()}, len(layers)


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float = 0.0,
    head_lr_multiplier: float = 1.0,
    layer_decay: float = 1.0,
    norm_decay: str = "none",
) -> list[dict]:
    """Splits the trainable parameters into groups: backbone (a layer of it) or head, decayed or not.

    The backbone is `model.base_model` (transformers' word for what a head sits on); the heads are all the rest, and
    the whole of a model that has no backbone of its own is backbone.

    Args:
        learning_rate: of the backbone, per optimizer step.
        weight_decay: as the optimizer understands it (decoupled for AdamW).
        head_lr_multiplier: the heads' learning rate divided by the backbone's.
        layer_decay: factor of the learning rate from a layer of the backbone to the one before it, in (0, 1] (BEiT,
            arXiv 2106.08254: 0.65 to 0.9). The last of L layers has `layer_decay` times the rate, the first, which has
            the embeddings of a ViT, `layer_decay ** L`. Layers are a ViT's blocks, else stages.
        norm_decay: "none" leaves norms and position tables without weight decay, "heads" those of the backbone
            (SegFormer's authors), "all" nothing (OCRNet's).

    Returns:
        groups for a torch optimizer, each parameter in exactly one, with a `name` such as "head, no decay".

    Raises:
        ValueError: if `layer_decay` is not in (0, 1], or the backbone has no layers that could be told apart.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay is {layer_decay}; it is a factor from layer to layer, above 0, at most 1")
    backbone_module = getattr(model, "base_model", model)
    backbone, depth = {id(parameter): 0 for parameter in backbone_module.parameters()}, 0
    if layer_decay < 1:
        backbone, depth = layer_numbers(backbone_module)
    groups: dict[tuple[bool, int, bool], dict] = {}
    seen = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:  # a shared parameter belongs to its first owner
                continue
            seen.add(id(parameter))
            is_head, layer = id(parameter) not in backbone, backbone.get(id(parameter), depth)
            decays = norm_decay == "all" or (norm_decay == "heads" and is_head) or not is_undecayed(module, name)
            key = (is_head, layer, not decays)
            if key not in groups:
                part = "head" if is_head else "backbone"
                groups[key] = {
                    "params": [],
                    "lr": learning_rate * (head_lr_multiplier if is_head else layer_decay ** (depth - layer)),
                    "weight_decay": 0.0 if key[2] else weight_decay,
                    "name": f"{part}{f' layer {layer}' * (layer < depth)}, {'no decay' if key[2] else 'decay'}",
                }
            groups[key]["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def make_schedule(
    name: str,
    optimizer: torch.optim.Optimizer,
    warmup_steps: int,
    total_steps: int,
    power: float = 1.0,
    min_learning_rate: float = 0.0,
    warmup_start_factor: float = 1e-6,
    decay_share: float = 0.1,
) -> torch.optim.lr_scheduler.LRScheduler:
    """A decay over all steps, multiplied by a linear warm-up (mmcv's `PolyLrUpdaterHook` with `warmup`).

    The rate of step s (from 0) of a group with rate r is

        warmup(s) * ((r - min_learning_rate) * shape(s / total_steps) + min_learning_rate)

    with warmup(s) going from `warmup_start_factor` at step 0 to 1 at step `warmup_steps`, and shape(t) being

        polynomial  (1 - t) ** power
        cosine      (1 + cos(pi t)) / 2
        constant    1
        wsd         1 until the last `decay_share` of the steps, there from 1 to 0 linearly (warm-up, stable, decay)

    The other names of `SCHEDULES` are those of `transformers.get_scheduler`, which gets the steps alone. Step it once
    per optimizer step, and do not pass it through `accelerator.prepare`: that steps it once per process.

    Args:
        warmup_steps: optimizer steps of warm-up; 0 for none.
        total_steps: optimizer steps of the whole training, warm-up included.
        power: 1 is linear, 0.9 usual for segmentation.
        min_learning_rate: where the decay ends, the same for all groups (SETR: 1e-4, Segmenter: 1e-5).
        warmup_start_factor: fraction of the rate at step 0.
        decay_share: of the steps, in (0, 1].

    Raises:
        ValueError: if `warmup_steps` does not lie in [0, total_steps], a group's rate is below the minimum, or the name
            is unknown.
    """
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(
            f"warm-up of {warmup_steps} steps does not fit into {total_steps} steps; lower num_warmup_steps"
        )
    shapes = {
        "polynomial": lambda t: (1 - t) ** power,
        "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
        "constant": lambda t: 1.0,
        "wsd": lambda t: min(1.0, (1 - t) / decay_share),
    }
    if name not in SCHEDULES:  # transformers has others that need the loss, or settings of their own
        raise ValueError(f"the schedule {name!r} is not known; choose one of {', '.join(SCHEDULES)}")
    if name not in shapes:
        return get_scheduler(name, optimizer, warmup_steps, total_steps)
    bases = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]  # initial_lr: after a resume
    smallest = min(bases)
    if smallest < min_learning_rate:
        raise ValueError(
            f"learning rate {smallest:g} is below the minimum {min_learning_rate:g}; lower min_learning_rate"
        )

    def factor_for(base: float):
        floor = min_learning_rate / base if base else 0.0

        def factor(step: int) -> float:
            warmup = 1.0
            if step < warmup_steps:
                warmup = warmup_start_factor + (1 - warmup_start_factor) * step / warmup_steps
            done = min(1.0, step / total_steps) if total_steps else 1.0  # stays at the floor after the end
            return warmup * ((1 - floor) * shapes[name](done) + floor)

        return factor

    return torch.optim.lr_scheduler.LambdaLR(optimizer, [factor_for(base) for base in bases])


class EMA:
    """Exponential moving average of the weights, for evaluation (Polyak averaging; decay 0.999 to 0.9999 is usual).

    After step n, with d = min(decay, (1 + n) / (10 + n)), so that a short training is averaged over its last part:

        average = d * average + (1 - d) * weights

    What is averaged: trainable parameters and buffers of floating point (the statistics of batch norms), as in timm.
    Frozen parameters and integer buffers are the model's own. Make it when the model is on its device, after
    `accelerator.prepare`; `accelerator.register_for_checkpointing` saves and restores it.

    Args:
        decay: in [0, 1); larger is slower.

    Example:
        >>> ema = EMA(model, 0.999)
        >>> optimizer.step(); ema.update()
        >>> with ema.swapped():  # the model has the averaged weights
        ...     evaluate(model, ...)
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"the EMA's decay is {decay}; it must be at least 0 and below 1, such as 0.999")
        self.decay = decay
        self.updates = 0
        self.tensors = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.tensors |= {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
        # In float32 at least: in half precision the small differences would be lost.
        self.averages = [
            tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
            for tensor in self.tensors.values()
        ]

    def update(self) -> None:
        """To be called after each optimizer step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = [w.detach().to(a.dtype) for w, a in zip(self.tensors.values(), self.averages, strict=True)]
        torch._foreach_lerp_(self.averages, weights, 1 - decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for tensor, average in zip(self.tensors.values(), self.averages, strict=True):
            weights = tensor.clone()
            tensor.copy_(average)
            average.copy_(weights)

    def state_dict(self) -> dict:
        return {"updates": self.updates, "averages": dict(zip(self.tensors, self.averages, strict=True))}

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError if the state is that of another model."""
        if state["averages"].keys() != self.tensors.keys():
            different = sorted(state["averages"].keys() ^ self.tensors.keys())
            raise ValueError(f"the EMA was saved for another model: {different[0]} is in one of them only")
        self.updates = state["updates"]
        for name, average in zip(self.tensors, self.averages, strict=True):
            average.copy_(state["averages"][name])
