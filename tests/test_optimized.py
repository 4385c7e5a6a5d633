"""The copy that `optimize_for_inference` makes: the same function, only that; the model stays as it is."""

import copy

import pytest
import torch
from PIL import Image
from tiny import CASES
from torch import nn
from transformers import ResNetConfig, pipeline

from hf_segtx import SegFormerConfig, SegFormerForSemanticSegmentation, SegFormerImageProcessor
from hf_segtx.models import cpu
from hf_segtx.models.cpu import Linear, PackedLinear
from hf_segtx.models.modeling_segformer import FoldedSegFormerHead


FIELDS = [
    ("setr", {"decode_head": "naive"}),
    ("setr", {"decode_head": "pup"}),
    ("setr", {"decode_head": "mla"}),
    ("segformer", {}),
    ("segformer", {"decoder_projection_norm": True}),
    ("segformer", {"decoder_stages": [1, 3]}),
    ("segformer", {"decoder_stages": [3], "decoder_fusion": False}),
    ("segformer", {"backbone_config": ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4)}),
    ("segmenter", {"decode_head": "linear"}),
    ("segmenter", {"decode_head": "mask"}),
    ("ocrnet", {}),
]


def randomized(name: str, **fields):
    """A tiny model whose norms have statistics, scales and shifts that are not 0 and 1."""
    model = CASES[name].make_model(**fields)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, std=0.2)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


@pytest.mark.parametrize(("name", "fields"), FIELDS, ids=str)
def test_the_copy_is_the_same_function(name, fields, monkeypatch):
    """Oracle: the model itself; 1e-5 of the deviation is rounding."""
    monkeypatch.setattr(cpu, "BLOCK_NUMEL_CPU", 0)  # several blocks of rows
    model = randomized(name, **fields)
    before = copy.deepcopy(model.state_dict())
    optimized = model.train().optimize_for_inference()
    assert model.training and not any(module.training for module in optimized.modules())
    assert not any(type(module) in (Linear, nn.BatchNorm2d) for module in optimized.modules())
    assert not any(parameter.requires_grad for parameter in optimized.parameters())
    for size in ((1, 3, 184, 120), (3, 3, 64, 64)):
        inputs = torch.randn(size)
        with torch.no_grad():
            expected = model.eval()(inputs).logits
            found = optimized(inputs).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.std()))
        torch.testing.assert_close(optimized(inputs).logits, found, rtol=0, atol=1e-5 * float(expected.std()))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_head_with_adapters_is_kept():
    """An adapter stands in the place of its layer: what is folded without it would be another function."""

    class Adapter(Linear):
        def forward(self, x):
            return super().forward(x) + 1

    model = randomized("segformer")
    layer = model.decode_head.projections[0]
    assert type(model.optimize_for_inference().decode_head) is FoldedSegFormerHead
    adapter = Adapter(layer.in_features, layer.out_features)
    adapter.load_state_dict(layer.state_dict())
    model.decode_head.projections[0] = adapter
    inputs = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, found = model(inputs).logits, model.optimize_for_inference()(inputs).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.std()))


def test_other_dtypes_are_computed_as_they_are():
    model = randomized("segmenter").bfloat16()
    optimized = model.optimize_for_inference()
    assert not any(isinstance(module, PackedLinear) for module in optimized.modules())
    inputs = torch.randn(1, 3, 32, 32, dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(optimized(inputs).logits, model(inputs).logits)


def test_under_autocast():
    """The packed layers stay in float32: closer to the model in float32 than the model under autocast."""
    model = randomized("segmenter")
    optimized, inputs = model.optimize_for_inference(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(inputs).logits
        with torch.autocast("cpu", torch.bfloat16):
            found, lossy = optimized(inputs).logits, model(inputs).logits
    assert (found - expected).std() < (lossy - expected).std()


def test_what_the_copy_refuses(tmp_path):
    model = randomized("segformer")
    optimized = model.optimize_for_inference()
    for save in (optimized.state_dict, lambda: optimized.save_pretrained(tmp_path)):
        with pytest.raises(RuntimeError, match="cannot be saved; save the model"):
            save()
    for place in ("meta", torch.half, torch.double):
        with pytest.raises(RuntimeError, match="cannot be moved to .* move the model, then call"):
            model.optimize_for_inference().to(place)
    optimized.to("cpu")  # where it is
    inputs = torch.randn(1, 3, 64, 64)
    with pytest.raises(RuntimeError, match="neither compiled nor differentiated"):
        optimized(inputs.requires_grad_())
    with pytest.raises(RuntimeError, match="neither compiled nor differentiated"):
        torch.export.export(optimized, (inputs.detach(),), strict=False)
    assert not list(tmp_path.glob("*.safetensors"))
    model.save_pretrained(tmp_path)  # which is what may be saved


def test_in_a_pipeline():
    model, processor = randomized("segformer"), SegFormerImageProcessor()
    picture = Image.fromarray(torch.randint(0, 256, (50, 60, 3), dtype=torch.uint8).numpy())
    found, expected = (
        pipeline("image-segmentation", model=network, image_processor=processor)(picture)
        for network in (model.optimize_for_inference(), model)
    )
    assert [part["label"] for part in found] == [part["label"] for part in expected]
    assert all(a["mask"].tobytes() == b["mask"].tobytes() for a, b in zip(found, expected, strict=True))


def test_packed_layer_of_any_number_of_tokens():
    """The order of the weight is chosen for 1024 tokens."""
    layer = Linear(24, 40)
    packed = PackedLinear(layer)
    for shape in ((24,), (1, 24), (7, 24), (2, 3, 5, 24), (1, 1025, 24), (0, 24)):
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(packed(x), layer(x))
    assert "weight" not in dict(packed.named_parameters())


def test_a_plain_copy_of_a_whole_network_has_no_second_weights():
    """Peak memory is the point of not keeping the plain weights."""
    model = SegFormerForSemanticSegmentation(SegFormerConfig(depths=[1, 1, 1, 1]))
    linear = sum(m.weight.numel() for m in model.backbone.modules() if type(m) is Linear)
    kept = sum(p.numel() for p in model.optimize_for_inference().backbone.parameters())
    assert kept == sum(p.numel() for p in model.backbone.parameters()) - linear
