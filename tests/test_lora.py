"""LoRA through peft: what was trained, saved, read again and merged predicts the same; only what should moves."""

import copy
import re

import pytest
import torch
from safetensors.torch import load_file
from tiny import CASES

from hf_segtx.models import cpu


peft = pytest.importorskip("peft")

from hf_segtx.training.lora import add_adapters, lora_config, merged  # noqa: E402


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_trains_saves_reloads_and_merges(case, tmp_path):
    original = case.row.model(case.make_config())
    model = peft.get_peft_model(copy.deepcopy(original), lora_config(original, r=4))
    size = case.image_size
    pixel_values, labels = torch.randn(2, 3, size, size), torch.zeros(2, size, size, dtype=torch.long)
    labels[:, :, size // 2 :] = 1
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    model.train()
    losses = []
    for _ in range(8):
        loss = model(pixel_values=pixel_values, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval()
    with torch.no_grad():
        logits = model(pixel_values=pixel_values).logits
        assert not torch.allclose(logits, original.eval()(pixel_values).logits, atol=1e-3)
        model.save_pretrained(tmp_path)
        saved = load_file(tmp_path / "adapter_model.safetensors")
        heads = {name for name, _ in original.named_parameters() if not name.startswith("backbone.")}
        assert heads <= {name.removeprefix("base_model.model.") for name in saved}
        reloaded = peft.PeftModel.from_pretrained(copy.deepcopy(original), tmp_path).eval()
        assert torch.equal(reloaded(pixel_values=pixel_values).logits, logits)
        merged = reloaded.merge_and_unload()
        assert type(merged) is type(original)
        # W x + B (A x) and (W + B A) x differ in rounding
        torch.testing.assert_close(merged(pixel_values).logits, logits, rtol=1e-3, atol=1e-4)
        merged.save_pretrained(tmp_path / "merged")
        again = type(original).from_pretrained(tmp_path / "merged")
        assert torch.equal(again(pixel_values).logits, merged(pixel_values).logits)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_model_without_adapters_predicts_as_the_one_with_them(case):
    """Product of the factors times alpha / rank = 2, in the model as it trains and in what is saved of it."""
    model = case.make_model()
    original = copy.deepcopy(model)
    add_adapters(model, rank=3)
    norms = tuple(f"{name}." for name, module in original.named_modules() if isinstance(module, torch.nn.BatchNorm2d))
    trained = {name for name, _ in original.named_parameters() if not name.startswith("backbone.")}
    trained |= {name for name, _ in original.named_parameters() if name.startswith(norms)}
    trained |= {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained
    factors = [parameter for name, parameter in model.named_parameters() if ".lora_" in name]
    for factor in factors:
        torch.nn.init.normal_(factor, std=0.2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = merged(model)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert plain.state_dict().keys() == original.state_dict().keys()
    pixel_values = torch.randn(2, 3, case.image_size, case.image_size)
    with torch.no_grad():
        expected = model(pixel_values=pixel_values).logits
        assert not torch.allclose(expected, original(pixel_values=pixel_values).logits, atol=1e-3)
        # W x + B (A x) and (W + B A) x differ in rounding, which goes through all layers
        difference = (plain(pixel_values=pixel_values).logits - expected).abs().max()
        assert difference < 1e-4 * expected.std()
    name, layer = next((name, module) for name, module in model.named_modules() if hasattr(module, "lora_A"))
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    product = 2 * (up.flatten(1) @ down.flatten(1)).view_as(original.get_submodule(name).weight)
    torch.testing.assert_close(plain.get_submodule(name).weight, original.get_submodule(name).weight + product)


HEADS = [(name, {}) for name in CASES] + [("setr", {"decode_head": "mla"}), ("segformer", {"decoder_stages": [3]})]
READ = {  # by a head, instead of calling the layer
    "segformer": {"decode_head.fuse"},
    "ocrnet": {"decode_head.pixels.conv", "decode_head.augmented.conv", "auxiliary_heads.#.conv.conv"},
    "setr": {"decode_head.classifier"},
}


@pytest.mark.parametrize("name, fields", HEADS, ids=[f"{name}-{'-'.join(fields)}" for name, fields in HEADS])
def test_an_adapter_on_any_layer_has_its_effect_or_is_refused(name, fields):
    """Oracle: the weights that peft merges. Predicted, with gradients, and by the copy for inference."""
    case, refused, count = CASES[name], set(), 0
    original = case.make_model(**fields)
    kinds = {}
    for layer_name, layer in original.named_modules():
        if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)) and getattr(layer, "groups", 1) == 1:
            kinds.setdefault(re.sub(r"\d+", "#", layer_name), layer_name)
    pixel_values = torch.randn(1, 3, case.image_size, case.image_size)
    with torch.no_grad():
        plain = original(pixel_values).logits
    for kind, layer_name in kinds.items():
        adapted = peft.get_peft_model(copy.deepcopy(original), peft.LoraConfig(r=2, target_modules=[layer_name])).eval()
        torch.nn.init.normal_(next(p for n, p in adapted.named_parameters() if ".lora_B." in n))
        expected = copy.deepcopy(adapted).merge_and_unload()(pixel_values).logits.detach()
        try:
            found = [adapted(pixel_values).logits.detach()]
        except ValueError as error:
            assert "would have no effect" in str(error) and "modules_to_save" in str(error)
            refused.add(kind)
            continue
        with torch.no_grad():
            found += [adapted(pixel_values).logits]
            found += [adapted.get_base_model().optimize_for_inference()(pixel_values).logits]
        for logits in found:  # W x + B (A x) and (W + B A) x differ in rounding, which goes through all layers
            assert (logits - expected).abs().max() < 1e-4 * expected.std()
        count += bool((expected - plain).abs().max() > 1e-2 * plain.std())
    assert refused == (READ.get(name, set()) if name != "setr" or fields else set())
    assert count >= 3


def test_adapters_on_a_head_train_with_avx2(monkeypatch):
    """There the head asks its convolutions for the size of their kernel."""
    monkeypatch.setattr(cpu, "INSTRUCTION_SET", "AVX2")
    case = CASES["setr"]
    model = case.make_model(decode_head="mla")
    layers = [name for name, layer in model.decode_head.named_modules() if isinstance(layer, torch.nn.Conv2d)]
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=[f"decode_head.{layers[0]}"])).train()
    assert adapted(torch.randn(2, 3, case.image_size, case.image_size)).logits.isfinite().all()
