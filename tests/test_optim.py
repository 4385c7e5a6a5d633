"""Parameter groups, schedules and averages of hf_segtx/optim.py, against counting and against formulas by hand."""

import copy

import pytest
import torch
from torch import nn

import hf_segtx
from hf_segtx.training.arguments import SCHEDULES
from hf_segtx.training.optim import EMA, layer_numbers, make_schedule, parameter_groups


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


def test_norms_that_decay():
    """Of the heads alone, as SegFormer's authors have it, and of everything, as OCRNet's."""
    model = Model()
    norms = {f"backbone.{i}.{name}" for i in (0, 1) for name in ("pos_embed", "norm1.weight", "norm1.bias")}
    for which, undecayed in (("heads", {"backbone, no decay": norms}), ("all", {})):
        groups = parameter_groups(model, 1e-3, weight_decay=0.01, norm_decay=which)
        names = names_by_group(model, groups)
        assert {name: names[name] for name in names if "no decay" in name} == undecayed
        assert {group["weight_decay"] for group in groups if "no decay" not in group["name"]} == {0.01}
        assert set.union(*names.values()) == {name for name, _ in model.named_parameters()}


def test_frozen_and_shared_parameters():
    model = Model()
    model.backbone[0].requires_grad_(False)
    model.decode_head[0].weight = model.decode_head[2].weight = nn.Parameter(torch.zeros(8, 8, 1, 1))
    groups = parameter_groups(model, 1e-3)
    assert {(group["lr"], group["weight_decay"]) for group in groups} == {(1e-3, 0.0)}  # if nothing is said
    grouped = [p for group in groups for p in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped}) == len([p for p in model.parameters() if p.requires_grad])


def small_models():
    """Each kind of backbone, on the meta device, with the layers of it that named parameters have (counted by hand)."""
    vit = {"vit.cls_token": 0, "vit.pos_embed": 0, "vit.patch_embed.proj.weight": 0, "vit.blocks.0.norm1.weight": 1}
    vit |= {"vit.blocks.11.mlp.fc2.bias": 12}
    mit = {"stages.0.patch_embed.proj.weight": 0, "stages.0.blocks.1.norm1.weight": 0, "stages.2.norm.bias": 2}
    mit |= {"stages.3.patch_embed.proj.weight": 3, "stages.3.norm.weight": 3}
    hrnet = {"conv1.weight": 0, "bn2.bias": 0, "layer1.3.conv1.weight": 1, "transition1.0.0.weight": 2}
    hrnet |= {"stage2.0.branches.1.3.conv1.weight": 2, "transition2.2.0.0.weight": 3}
    hrnet |= {"stage4.2.branches.0.0.bn1.bias": 4}
    resnet = {"stem.0.weight": 0, "layer1.0.conv1.weight": 1, "layer3.22.bn2.weight": 3, "layer4.2.conv3.weight": 4}
    return [
        (hf_segtx.SETRForSemanticSegmentation, hf_segtx.SETRConfig.from_size("base"), vit, 13),
        (hf_segtx.SETRForSemanticSegmentation, hf_segtx.SETRConfig.from_size("hybrid_base"), vit, 13),
        (
            hf_segtx.SegmenterForSemanticSegmentation,
            hf_segtx.SegmenterConfig.from_size("tiny"),
            vit | {"vit.norm.weight": 13},  # the final norm is learned at the full rate
            13,
        ),
        (hf_segtx.SegFormerForSemanticSegmentation, hf_segtx.SegFormerConfig.from_size("b1"), mit, 4),
        (
            hf_segtx.OCRNetForSemanticSegmentation,
            hf_segtx.OCRNetConfig.from_size("hrnet_w18"),
            {f"encoder.{name}": layer for name, layer in hrnet.items()},
            5,
        ),
        (
            hf_segtx.OCRNetForSemanticSegmentation,
            hf_segtx.OCRNetConfig.from_size("resnet101"),
            {f"encoder.{name}": layer for name, layer in resnet.items()},
            5,
        ),
    ]


@pytest.mark.parametrize("case", range(6), ids=["vit", "hybrid", "segmenter", "mit", "hrnet", "resnet"])
def test_layer_decay_matches_the_layers_counted_by_hand(case):
    model_class, config, layers, depth = small_models()[case]
    with torch.device("meta"):
        model = model_class(config)
    groups = parameter_groups(model, 1e-3, weight_decay=0.01, head_lr_multiplier=10, layer_decay=0.5)
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(id(p) for p in model.parameters())
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    names = dict(model.named_parameters())
    for name, layer in layers.items():
        assert rate[id(names[f"backbone.{name}"])] == pytest.approx(1e-3 * 0.5 ** (depth - layer)), name
    heads = {rate[id(p)] for name, p in names.items() if not name.startswith("backbone.")}
    assert heads == {1e-3 * 10}
    finals = {1e-3} if "vit.norm.weight" in layers else set()
    backbone = {rate[id(p)] for name, p in names.items() if name.startswith("backbone.")}
    assert backbone == {1e-3 * 0.5**k for k in range(1, depth + 1)} | finals


def test_what_is_behind_the_only_layer_is_learned_as_a_head():
    backbone = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(1, 1)]), "norm": nn.LayerNorm(1)})
    numbers, depth = layer_numbers(backbone)
    assert depth == 1 and [numbers[id(parameter)] for parameter in backbone.parameters()] == [0, 0, 1, 1]


def test_layer_decay_refuses_bad_values():
    for value in (-0.5, 0, 1.5):
        with pytest.raises(ValueError, match=f"layer_decay is {value}"):
            parameter_groups(Model(), 1e-3, layer_decay=value)
    with pytest.raises(ValueError, match="Sequential has no layers with numbers"):
        parameter_groups(Model(), 1e-3, layer_decay=0.5)


def rates(schedule, steps):
    values = []
    for _ in range(steps):
        values.append(schedule.get_last_lr())
        schedule.optimizer.step()
        schedule.step()
    return values + [schedule.get_last_lr()]


def test_schedule_matches_the_formula():
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (1e-2, 1e-1)]
    schedule = make_schedule(
        "polynomial", torch.optim.SGD(groups), warmup_steps=10, total_steps=100, power=0.9, min_learning_rate=1e-4,
        warmup_start_factor=0.1,
    )  # fmt: skip
    values = rates(schedule, 103)
    for group, base in enumerate((1e-2, 1e-1)):
        assert values[0][group] == pytest.approx(0.1 * base)  # step 0: the start factor of the full rate
        # end of the warm-up: what the decay alone gives there
        assert values[10][group] == pytest.approx((base - 1e-4) * 0.9**0.9 + 1e-4)
        assert values[5][group] == pytest.approx(0.55 * ((base - 1e-4) * 0.95**0.9 + 1e-4))
        assert values[99][group] == pytest.approx((base - 1e-4) * 0.01**0.9 + 1e-4)
        assert values[100][group] == values[103][group] == pytest.approx(1e-4)  # after the last step: the minimum


def test_schedule_without_warmup_starts_at_the_full_rate():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    assert rates(make_schedule("polynomial", optimizer, 0, 4), 4) == [[0.5], [0.375], [0.25], [0.125], [0.0]]


def test_schedule_at_its_bounds():
    """Warm-up in all steps, from a millionth of the rate; no steps, and a minimum that is the rate."""

    def values(warmup_steps, total_steps, **settings):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
        shape = "polynomial" if settings else "constant"
        return [rate for (rate,) in rates(make_schedule(shape, optimizer, warmup_steps, total_steps, **settings), 4)]

    assert values(4, 4) == pytest.approx([0.5 * (1e-6 + (1 - 1e-6) * share) for share in (0, 0.25, 0.5, 0.75, 1)])
    assert values(0, 4, min_learning_rate=0.5) == [0.5] * 5
    assert values(0, 0, power=1.0) == [0.0] * 5


def test_schedule_refuses_bad_values():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    with pytest.raises(ValueError, match="does not fit into 5 steps"):
        make_schedule("polynomial", optimizer, 6, 5)
    with pytest.raises(ValueError, match="warm-up of -1 steps"):
        make_schedule("polynomial", optimizer, -1, 5)
    with pytest.raises(ValueError, match="lower min_learning_rate"):
        make_schedule("polynomial", optimizer, 0, 5, min_learning_rate=1.0)


def test_other_shapes_match_their_formulas():
    def values(name, **settings):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        return [rate for (rate,) in rates(make_schedule(name, optimizer, 0, 20, **settings), 20)]

    assert values("cosine")[::5] == pytest.approx([1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0])
    assert values("cosine", min_learning_rate=0.1)[10] == pytest.approx(0.55)
    assert values("constant") == [1.0] * 21
    wsd = values("wsd", decay_share=0.2)
    assert wsd == pytest.approx([1.0] * 17 + [0.75, 0.5, 0.25, 0])
    assert values("wsd")[-3:] == pytest.approx([1.0, 0.5, 0])  # the last tenth
    assert values("inverse_sqrt")[:1] == [1.0]  # one of transformers'
    with pytest.raises(ValueError, match="nonsense"):
        values("nonsense")


class Normalized(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self[0].bias.requires_grad_(False)


def train_step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(8, 3)).square().mean().backward()
    optimizer.step()


def test_average_matches_the_recursion_with_buffers():
    torch.manual_seed(0)
    model = Normalized()
    ema, optimizer = EMA(model, 0.2), torch.optim.SGD(model.parameters(), lr=0.1)
    expected = copy.deepcopy(model.state_dict())
    for step in range(1, 6):
        train_step(model, optimizer)
        ema.update()
        decay = min(0.2, (1 + step) / (10 + step))  # both are met: 2/11 and 0.2
        for name, value in model.state_dict().items():
            is_float = value.is_floating_point()
            expected[name] = decay * expected[name] + (1 - decay) * value if is_float else value
    own = copy.deepcopy(model.state_dict())
    with ema.swapped():
        torch.testing.assert_close(model.state_dict(), expected)
        assert not torch.equal(model[1].running_mean, own["1.running_mean"])
    torch.testing.assert_close(model.state_dict(), own, rtol=0, atol=0)


def test_average_of_the_first_steps_by_hand():
    """The weight is 0, then 1: the decays are 2/11, 3/12 and 4/13, as in timm and in TensorFlow, from (1+n)/(10+n)."""
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.zero_()
    ema = EMA(model, 0.999)
    model.weight.data.fill_(1)
    expected = 0.0
    for decay in (2 / 11, 3 / 12, 4 / 13):
        ema.update()
        expected = decay * expected + (1 - decay)
        assert ema.averages[0].item() == pytest.approx(expected, abs=1e-6)  # float32


def test_schedules_are_those_that_can_be_chosen():
    """Each takes steps alone; one that transformers knows and that needs more is refused."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    for name in SCHEDULES:
        schedule = make_schedule(name, optimizer, 1, 4)
        for _ in range(4):
            optimizer.step()
            schedule.step()
        assert 0 <= schedule.get_last_lr()[0] <= 1
    for name in ("reduce_lr_on_plateau", "greedy", "warmup_stable_decay", "cosine_with_min_lr", "often"):
        with pytest.raises(ValueError, match=f"schedule '{name}' is not known; choose one of polynomial"):
            make_schedule(name, optimizer, 1, 4)


def test_average_goes_on_after_saving_and_loading(tmp_path):
    torch.manual_seed(0)
    model = Normalized()
    optimizer, ema = torch.optim.SGD(model.parameters(), lr=0.1), EMA(model, 0.9)
    train_step(model, optimizer)
    ema.update()
    torch.save(ema.state_dict(), tmp_path / "ema.pt")
    other = copy.deepcopy(model)
    resumed = EMA(other, 0.9)
    resumed.load_state_dict(torch.load(tmp_path / "ema.pt", weights_only=True))
    for trained, average in ((model, ema), (other, resumed)):
        torch.manual_seed(1)
        train_step(trained, torch.optim.SGD(trained.parameters(), lr=0.1))
        average.update()
    assert all(torch.equal(a, b) for a, b in zip(ema.averages, resumed.averages, strict=True))
    for other, name in ((nn.Linear(3, 4), "0.weight"), (nn.Sequential(nn.Linear(3, 4, bias=False)), "1.bias")):
        with pytest.raises(ValueError, match=f"saved for another model: {name} is in one of them only"):
            EMA(other, 0.9).load_state_dict(ema.state_dict())
    for decay in (1.0, -0.1):
        with pytest.raises(ValueError, match="at least 0 and below 1"):
            EMA(model, decay)


def test_half_precision_weights_are_averaged_in_float32_and_come_back_bit_by_bit():
    model = nn.Linear(4, 4).bfloat16()
    ema, own = EMA(model, 0.999), copy.deepcopy(model.state_dict())
    for _ in range(3):
        ema.update()
    with ema.swapped():
        pass
    assert ema.averages[0].dtype == torch.float32
    torch.testing.assert_close(model.state_dict(), own, rtol=0, atol=0)
