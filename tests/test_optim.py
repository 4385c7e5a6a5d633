"""Parameter groups and schedule of hf_segtx/optim.py, against counting and against the formula by hand."""

import pytest
import torch
from torch import nn

from hf_segtx.optim import parameter_groups, polynomial_schedule


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 4, 8))
        self.projection = nn.Linear(8, 8)
        self.norm1 = nn.LayerNorm(8)


class Model(nn.Module):
    """A backbone and a head as transformers models have them; the head's batch norm is not called norm."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(Block(), Block())
        self.decode_head = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 1))

    @property
    def base_model(self):
        return self.backbone


def names_by_group(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group["name"]: {names[id(parameter)] for parameter in group["params"]} for group in groups}


def test_every_parameter_in_exactly_one_group():
    model = Model()
    groups = parameter_groups(model, 1e-3, weight_decay=0.01, head_lr_multiplier=10)
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(id(p) for p in model.parameters())


def test_groups_follow_the_recipe():
    model = Model()
    groups = parameter_groups(model, 1e-3, weight_decay=0.01, head_lr_multiplier=10)
    names = names_by_group(model, groups)
    assert names["backbone, no decay"] == {
        f"backbone.{i}.{name}" for i in (0, 1) for name in ("pos_embed", "norm1.weight", "norm1.bias")
    }
    assert names["head, no decay"] == {"decode_head.1.weight", "decode_head.1.bias"}
    settings = {group["name"]: (group["lr"], group["weight_decay"]) for group in groups}
    assert settings == {
        "backbone, decay": (1e-3, 0.01),
        "backbone, no decay": (1e-3, 0.0),
        "head, decay": (1e-2, 0.01),
        "head, no decay": (1e-2, 0.0),
    }


def test_frozen_and_shared_parameters():
    model = Model()
    model.backbone[0].requires_grad_(False)
    model.decode_head[0].weight = model.decode_head[2].weight = nn.Parameter(torch.zeros(8, 8, 1, 1))
    grouped = [p for group in parameter_groups(model, 1e-3) for p in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped}) == len([p for p in model.parameters() if p.requires_grad])


def rates(schedule, steps):
    values = []
    for _ in range(steps):
        values.append(schedule.get_last_lr())
        schedule.optimizer.step()
        schedule.step()
    return values + [schedule.get_last_lr()]


def test_schedule_matches_the_formula():
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (1e-2, 1e-1)]
    schedule = polynomial_schedule(
        torch.optim.SGD(groups), warmup_steps=10, total_steps=100, power=0.9, min_learning_rate=1e-4,
        warmup_start_factor=0.1,
    )  # fmt: skip
    values = rates(schedule, 100)
    for group, base in enumerate((1e-2, 1e-1)):
        assert values[0][group] == pytest.approx(0.1 * base)  # step 0: the start factor of the full rate
        # end of the warm-up: what the decay alone gives there
        assert values[10][group] == pytest.approx((base - 1e-4) * 0.9**0.9 + 1e-4)
        assert values[5][group] == pytest.approx(0.55 * ((base - 1e-4) * 0.95**0.9 + 1e-4))
        assert values[99][group] == pytest.approx((base - 1e-4) * 0.01**0.9 + 1e-4)
        assert values[100][group] == pytest.approx(1e-4)  # after the last step: the minimum


def test_schedule_without_warmup_starts_at_the_full_rate():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    assert polynomial_schedule(optimizer, 0, 4, power=1.0).get_last_lr() == [0.5]


def test_schedule_refuses_bad_values():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    with pytest.raises(ValueError, match="does not fit into 5 steps"):
        polynomial_schedule(optimizer, 10, 5)
    with pytest.raises(ValueError, match="lower the minimum"):
        polynomial_schedule(optimizer, 0, 5, min_learning_rate=1.0)
