"""The copy that `optimize_for_inference` makes: the same function, only that; the model stays as it is."""

import copy

import pytest
import torch
from PIL import Image
from tiny import CASES
from torch import nn
from transformers import Dinov2Config, ResNetConfig, pipeline
from transformers.activations import ACT2FN, GELUActivation

from hf_segtx import SegFormerConfig, SegFormerForSemanticSegmentation, SegFormerImageProcessor
from hf_segtx.models import cpu
from hf_segtx.models.cpu import Linear, PackedLinear, PackedPatches, conv_gelu, is_faster_by_winograd
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
    ours = [module for name, module in optimized.named_modules() if not name.startswith("backbone.encoder.")]
    assert not any(type(module) in (Linear, nn.BatchNorm2d) for module in ours)
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
    packed = PackedLinear(layer.weight, layer.bias)
    for shape in ((24,), (1, 24), (7, 24), (2, 3, 5, 24), (1, 1025, 24), (0, 24)):
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(packed(x), layer(x))
    assert "weight" not in dict(packed.named_parameters())


@pytest.mark.parametrize("side", [1, 2, 4])
@pytest.mark.parametrize("size", [(2, 6, 12, 20), (1, 6, 13, 19), (2, 6, 5, 5), (0, 6, 12, 20)])
def test_packed_patches(side, size):
    """Oracle: the convolution; what is left at the right and below belongs to no patch there, too."""
    conv = nn.Conv2d(6, 10, side, stride=side)
    packed = PackedPatches(conv)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(size).contiguous(memory_format=memory_format)
        with torch.no_grad():
            torch.testing.assert_close(packed(x), conv(x))


def test_backbones_of_other_packages_are_not_packed():
    """DINOv2 of transformers asks its patch embedding for the weight's dtype."""
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=56, out_features=["stage2"]
    )
    model = randomized("segmenter", backbone_config=config)
    optimized, inputs = model.optimize_for_inference(), torch.randn(1, 3, 56, 70)
    assert not any(isinstance(module, (PackedLinear, PackedPatches)) for module in optimized.backbone.modules())
    with torch.no_grad():
        expected = model(inputs).logits
        torch.testing.assert_close(optimized(inputs).logits, expected, rtol=0, atol=1e-5 * float(expected.std()))


class Reparametrized(nn.Module):
    """As timm's RepViT: a norm beside a convolution whose result is not all that it is given."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(x) + x)


def test_norms_in_modules_of_others_are_not_folded_unless_they_are_a_sequence():
    """Who gives them what, only the other package knows; a sequence of torch's does what it says."""
    model = nn.Sequential(Reparametrized(), nn.Sequential(nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5)))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
    model, x = model.eval(), torch.randn(1, 4, 6, 7)
    folded = cpu.fold(copy.deepcopy(model))
    assert [type(m) for m in folded.modules() if isinstance(m, (nn.BatchNorm2d, nn.Identity))] == [
        nn.BatchNorm2d,
        nn.Identity,
    ]
    torch.testing.assert_close(folded(x), model(x))


@pytest.mark.parametrize("name", CASES)
def test_hooks_have_their_effect_in_the_copy(name):
    """On any layer: oracle is the model."""
    model, inputs = randomized(name), torch.randn(1, 3, 64, 64)
    layers = {}
    for path, layer in model.named_modules():
        if not list(layer.children()):
            layers.setdefault((type(layer), path.split(".")[0]), path)  # one of a kind
    for path in layers.values():
        hook = lambda module, arguments, result: 1.5 * result if torch.is_tensor(result) else result  # noqa: E731
        handle = model.get_submodule(path).register_forward_hook(hook)
        with torch.no_grad():
            expected = model(inputs).logits
            found = model.optimize_for_inference()(inputs).logits
        handle.remove()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.std()), msg=path)


@pytest.mark.parametrize("name", ["segformer", "segmenter"])
def test_a_copy_of_a_copy_is_itself(name):
    optimized = randomized(name).optimize_for_inference()
    assert optimized.optimize_for_inference() is optimized


def test_grouped_convolutions_are_no_case_for_winograd():
    with torch.device("meta"):
        assert not is_faster_by_winograd(nn.Conv2d(512, 256, 3, groups=2))
        assert is_faster_by_winograd(nn.Conv2d(256, 256, 3))


def test_what_is_packed():
    """SegFormer reduces keys and values by such convolutions; ViT embeds its patches by one."""
    for name in ("segformer", "segmenter", "setr"):
        model = randomized(name)
        depths_and_ratios = zip(model.config.depths, model.config.sr_ratios) if name == "segformer" else [(1, 16)]
        modules = model.optimize_for_inference().modules()
        count = sum(isinstance(module, PackedPatches) for module in modules)
        assert count == sum(depth for depth, ratio in depths_and_ratios if ratio > 1)


@pytest.mark.parametrize("size", [(2, 8, 9, 7), (1, 8, 1, 1), (0, 8, 4, 4)])
@pytest.mark.parametrize("groups", [1, 8])
def test_gelu_within_a_convolution(size, groups):
    """Oracle: float64. oneDNN's erf is a polynomial in float32, 1e-6 off where PyTorch's is 5e-7."""
    conv, activation = nn.Conv2d(8, 8, 3, padding=1, groups=groups), GELUActivation()
    x = 3 * torch.randn(size)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = x.contiguous(memory_format=memory_format)
        with torch.no_grad():
            found, expected = conv_gelu(conv.eval(), activation, x), activation(conv(x))
            exact = activation(copy.deepcopy(conv).double()(x.double()))
            assert found.dtype == torch.float32 and found.shape == expected.shape
            torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=4e-6)


@pytest.mark.parametrize(
    "case", ["training", "gradients", "hook", "adapter", "approximation", "bfloat16", "prediction"]
)
def test_gelu_within_a_convolution_only_where_it_is_the_same(case, monkeypatch):
    conv, activation, x = nn.Conv2d(8, 8, 3, groups=8).eval(), GELUActivation(), torch.randn(1, 8, 9, 7)
    if case == "training":
        conv.train()
    elif case == "hook":
        conv.register_forward_hook(lambda module, arguments, result: None)
    elif case == "adapter":
        conv = nn.utils.parametrizations.weight_norm(conv)
    elif case == "approximation":
        activation = ACT2FN["gelu_new"]
    elif case == "bfloat16":
        conv, x = conv.bfloat16(), x.bfloat16()
    called = []
    monkeypatch.setattr(type(activation), "forward", lambda self, x: called.append(self) or x)
    with torch.set_grad_enabled(case == "gradients"):
        conv_gelu(conv, activation, x)
    assert bool(called) == (case != "prediction")


def test_a_plain_copy_of_a_whole_network_has_no_second_weights():
    """Peak memory is the point of not keeping the plain weights."""
    model = SegFormerForSemanticSegmentation(SegFormerConfig(depths=[1, 1, 1, 1]))
    packed = [m for m in model.backbone.modules() if type(m) is Linear or PackedPatches.is_for(m)]
    kept = sum(p.numel() for p in model.optimize_for_inference().backbone.parameters())
    assert kept == sum(p.numel() for p in model.backbone.parameters()) - sum(m.weight.numel() for m in packed)
