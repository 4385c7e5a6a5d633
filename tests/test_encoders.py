"""The encoders as backbones: out of checkpoints, under transformers' models, saved and reloaded."""

import copy
import itertools
import json
import os
import subprocess
import sys

import pytest
import torch
import transformers
from tiny import CASES
from torch import nn
from transformers import AutoBackbone

from hf_segtx import (
    DilatedResNetBackbone,
    DilatedResNetConfig,
    HRNetBackbone,
    HRNetConfig,
    MiTBackbone,
    MiTConfig,
    OCRNetConfig,
    SegFormerConfig,
    SegFormerForImageClassification,
    SegFormerForSemanticSegmentation,
    SegFormerImageProcessor,
    VisionTransformerBackbone,
    VisionTransformerConfig,
)
from hf_segtx.architectures import BACKBONES
from hf_segtx.weights import load_backbone


# Class of the backbone, architecture whose tiny model has it, and the fields that make it so.
ENCODERS = {
    "mit": (MiTBackbone, "segformer", {}),
    "mit with tables": (MiTBackbone, "segformer", {"position_encoding": "learned", "image_size": 64}),
    "vit of segmenter": (VisionTransformerBackbone, "segmenter", {"use_distillation_token": True}),
    "vit of setr": (VisionTransformerBackbone, "setr", {}),
    "vit of setr mla": (VisionTransformerBackbone, "setr", {"decode_head": "mla"}),
    "hrnet": (HRNetBackbone, "ocrnet", {"align_corners": True}),
    "dilated resnet": (DilatedResNetBackbone, "ocrnet", {"backbone_type": "resnet", "stem_hidden_sizes": [8]}),
}


def randomize(model: nn.Module) -> nn.Module:
    """Weights and statistics that nothing cancels."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = 0.1 * torch.randn_like(tensor)
                tensor.copy_(1 + noise.abs() if "running_var" in name or "norm" in name else tensor + noise)
    return model.eval()


def make(name: str, **fields) -> nn.Module:
    """A tiny backbone with all its stages chosen; the ViT has four of them."""
    backbone, architecture, of_case = ENCODERS[name]
    torch.manual_seed(0)
    config = CASES[architecture].make_config(**of_case)
    if architecture == "segmenter":
        config.num_hidden_layers = 4
    return randomize(backbone(backbone.config_class.of_encoder(config, **{"out_indices": [1, 2, 3, 4], **fields})))


def features_of(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """The maps that the heads of a whole model read; of SETR's "mla" those before its neck."""
    if getattr(model.backbone, "neck", None) is not None:
        return model.backbone.vit(images, tuple(model.config.feature_indices))[1]
    return list(model.backbone(images).feature_maps)


@pytest.mark.parametrize("name", ENCODERS)
def test_comes_out_of_a_checkpoint_for_segmentation(name, tmp_path):
    """Every weight is used or of a head, and the maps are those that the heads read."""
    backbone, architecture, fields = ENCODERS[name]
    model = randomize(CASES[architecture].make_model(**fields))
    model.save_pretrained(tmp_path)
    wanted = [1, 2, 3, 4] if architecture != "segmenter" else [2]
    encoder, report = backbone.from_pretrained(tmp_path, out_indices=wanted, output_loading_info=True)
    assert not any(report.values())
    images = torch.randn(2, 3, 61, 72)
    with torch.no_grad():
        found, expected = encoder(images).feature_maps, features_of(model, images)
        maps, *_ = encoder(images, return_dict=False)
    assert [x.shape[1] for x in found] == encoder.channels and len(found) == len(expected)
    assert all(torch.equal(x, y) and torch.equal(x, z) for x, y, z in zip(found, expected, maps, strict=True))
    assert not hasattr(encoder.config, "decode_head") and not hasattr(encoder.config, "decoder_hidden_size")
    encoder.save_pretrained(tmp_path / "alone")
    again = backbone.from_pretrained(tmp_path / "alone")
    with torch.no_grad():
        assert all(torch.equal(x, y) for x, y in zip(again(images).feature_maps, expected))


def test_mit_comes_out_of_checkpoints_for_classification(tmp_path):
    """Our own and those of transformers, which the public ones of ImageNet are."""
    sizes = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "num_attention_heads": [1, 2, 3, 4]}
    ours = randomize(SegFormerForImageClassification(SegFormerConfig(**sizes, num_labels=5)))
    theirs = transformers.SegformerForImageClassification(transformers.SegformerConfig(**sizes, num_labels=5))
    images = torch.randn(1, 3, 64, 96)
    for model, folder in ((ours, tmp_path / "ours"), (randomize(theirs), tmp_path / "theirs")):
        model.save_pretrained(folder)
        encoder, report = MiTBackbone.from_pretrained(folder, out_indices=[4], output_loading_info=True)
        assert not any(report.values())
        # What transformers' configuration says of norms is not what its code does: 1e-5.
        assert encoder.config.layer_norm_eps == 1e-5 and not hasattr(encoder.config, "decoder_hidden_size")
        again = MiTBackbone.from_pretrained(folder, config=encoder.config)
        assert torch.equal(again.stages[3].norm.weight, encoder.stages[3].norm.weight)
        with torch.no_grad():
            body = model.backbone if model is ours else model.segformer
            expected = body(images).last_hidden_state
            # Sums in another order than transformers'.
            torch.testing.assert_close(encoder(images).feature_maps[-1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_other_maps_after_reloading(name, tmp_path):
    make(name).save_pretrained(tmp_path)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        every = type(make(name)).from_pretrained(tmp_path, out_indices=[0, 1, 2, 3, 4])(images).feature_maps
        some = type(make(name)).from_pretrained(tmp_path, out_features=["stem", "stage3"])
        stem, third = some(images).feature_maps
    assert some.config.out_indices == [0, 3] and some.channels == [stem.shape[1], third.shape[1]]
    assert torch.equal(stem, every[0]) and torch.equal(third, every[3])


@pytest.mark.parametrize("name", ENCODERS)
def test_gradient_checkpointing_gives_the_same_gradients(name):
    images, gradients = torch.randn(1, 3, 64, 64), []
    for checkpointing in (False, True):
        model = make(name).train()
        if checkpointing:
            model.activation_checkpointing_enable()
            assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        torch.manual_seed(0)  # of stochastic depth
        sum(x.square().mean() for x in model(images).feature_maps).backward()
        gradients.append({key: value.grad for key, value in model.named_parameters() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 10
    for key, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][key], rtol=1e-5, atol=1e-7)  # float32, another order of sums


def test_fields_have_the_defaults_of_the_architecture():
    resnet = OCRNetConfig.from_size("resnet50")
    wholes = ((MiTConfig, SegFormerConfig()), (HRNetConfig, OCRNetConfig()), (DilatedResNetConfig, resnet))
    for config, whole in wholes:
        assert config().to_dict() == config.of_encoder(whole).to_dict()


@pytest.mark.parametrize(
    "config, whole, message",
    [
        (MiTConfig, OCRNetConfig(), "'segtx_ocrnet' has an encoder of another kind, 'hrnet', than MiTConfig"),
        (HRNetConfig, OCRNetConfig.from_size("resnet50"), "'resnet', than HRNetConfig; .*backbone_type 'hrnet'"),
    ],
)
def test_other_encoders_are_refused(config, whole, message):
    with pytest.raises(ValueError, match=message):
        config.of_encoder(whole)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"reshape_hidden_states": False, "use_class_token": False}, "use_class_token is False; set one"),
        ({"out_indices": [13]}, "out_indices must be valid indices"),
        ({"backbone_config": {"model_type": "resnet"}}, "backbone_config is given, but a VisionTransformerConfig"),
        ({"num_attention_heads": 5}, "num_attention_heads 5 does not divide hidden_size 768"),
    ],
)
def test_wrong_combinations_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        VisionTransformerConfig(**fields)


def test_images_that_are_too_small_are_refused():
    with pytest.raises(ValueError, match="images of 20x64 pixels; this network takes at least 29 a side"):
        make("mit")(torch.zeros(1, 3, 20, 64))


@pytest.mark.parametrize(
    ("name", "foreign"),
    [
        ("mit", False),
        ("vit of segmenter", False),
        *itertools.product(("setr", "segformer", "segmenter"), (False, True)),
    ],
)
def test_input_embeddings_take_the_image(name, foreign):
    """peft and gradient checkpointing hook them; of encoders, of whole models, and of these on another's encoder."""
    seen, images = [], torch.randn(1, 3, 64, 64)
    other = {"backbone_config": make("vit of setr").config} if foreign else {}
    model = make(name) if name in ENCODERS else CASES[name].make_model(**other)
    model.get_input_embeddings().register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(images)
    assert len(seen) == 1 and torch.equal(seen[0], images)


def test_class_token_and_patches():
    """Without reshaping: the class token, then the patches; the distillation token is left out."""
    maps, tokens = make("vit of segmenter"), make("vit of segmenter", reshape_hidden_states=False)
    images = torch.randn(2, 3, 40, 64)
    with torch.no_grad():
        for x, y in zip(maps(images).feature_maps, tokens(images).feature_maps):
            assert y.shape == (2, 1 + 5 * 8, 32)
            assert torch.equal(x, y[:, 1:].unflatten(1, (5, 8)).permute(0, 3, 1, 2))
    states = tokens(images, output_hidden_states=True).hidden_states
    assert torch.equal(tokens.vit.norm(states[-1])[:, 0], tokens(images).feature_maps[-1][:, 0])


def test_auto_classes_know_them():
    for config, backbone in BACKBONES.items():
        assert backbone.config_class is config
        assert transformers.CONFIG_MAPPING[config.model_type] is config
        with torch.device("meta"):
            assert type(AutoBackbone.from_config(config())) is backbone


WITHOUT_THE_PACKAGE = """
import sys
sys.modules["hf_segtx"] = None
import torch
from transformers import AutoBackbone, AutoConfig
config = AutoConfig.from_pretrained({folder!r}, trust_remote_code=True)
backbone = type(AutoBackbone.from_config(config, trust_remote_code=True)).from_pretrained({folder!r})
print(backbone(torch.ones(1, 3, 64, 64)).feature_maps[-1].flatten().tolist())
"""


@pytest.mark.slow  # a fresh process
def test_code_travels_with_the_weights(tmp_path):
    model = make("mit")
    model.save_pretrained(tmp_path / "mit")
    code = WITHOUT_THE_PACKAGE.format(folder=str(tmp_path / "mit"))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = model(torch.ones(1, 3, 64, 64)).feature_maps[-1]
    found = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    torch.testing.assert_close(found, expected.flatten())  # rounding of float32: only predictions fuse GELU


@pytest.mark.parametrize("architecture", CASES)
def test_under_the_heads_of_this_package(architecture, tmp_path):
    """An encoder of one architecture under the head of another, by `backbone_config`."""
    name = "hrnet" if architecture in ("segformer", "ocrnet") else "vit of segmenter"
    config = make("mit" if architecture == "ocrnet" else name).config
    fields = {"feature_indices": [0, 1, 2, 3]} if architecture == "setr" else {}
    model = randomize(CASES[architecture].make_model(backbone_config=config, **fields))
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(images).logits, copy.deepcopy(again)(images).logits)


# ------------------------------------------------------------------------------------------- under transformers' models

DECODER = {"encoder_layers": 1, "decoder_layers": 2, "num_queries": 5, "num_labels": 4}
WIDTHS = {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2}


def upernet(config):
    channels = AutoBackbone.from_config(config).channels
    return transformers.UperNetForSemanticSegmentation(
        transformers.UperNetConfig(
            backbone_config=config, hidden_size=16, pool_scales=[1, 2], auxiliary_in_channels=channels[2], num_labels=4
        )
    )


def mask2former(config):
    widths = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "num_attention_heads": 2}
    return transformers.Mask2FormerForUniversalSegmentation(
        transformers.Mask2FormerConfig(
            backbone_config=config, encoder_feedforward_dim=16, dim_feedforward=16, **widths, **DECODER
        )
    )


def detr(config):
    return transformers.DetrForObjectDetection(
        transformers.DetrConfig(
            backbone_config=config, use_timm_backbone=False, backbone=None, d_model=16, **WIDTHS, **DECODER
        )
    )


def dpt(config):
    return transformers.DPTForDepthEstimation(
        transformers.DPTConfig(
            backbone_config=config, neck_hidden_sizes=[8] * 4, fusion_hidden_size=8, readout_type="project"
        )
    )


MODELS = [(model, name) for model in (upernet, mask2former, detr) for name in ("mit", "vit of setr", "hrnet")]
MODELS += [(upernet, "dilated resnet"), (mask2former, "dilated resnet"), (detr, "dilated resnet")]
MODELS += [(dpt, "vit of segmenter")]


@pytest.mark.parametrize("make_model, name", MODELS, ids=[f"{model.__name__}-{name}" for model, name in MODELS])
def test_under_models_of_transformers(make_model, name, tmp_path):
    """Saved and reloaded, the outputs are the same bit by bit; a step moves the encoder."""
    fields = {"reshape_hidden_states": False} if make_model is dpt else {}
    config = make(name, **fields).config
    torch.manual_seed(0)
    model = make_model(copy.deepcopy(config)).eval()
    encoder = next(module for module in model.modules() if isinstance(module, tuple(BACKBONES.values())))
    model.save_pretrained(tmp_path)
    again, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert any(type(module) is type(encoder) for module in again.modules())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        # A copy, because weights in a mapped file are aligned otherwise, on which the order of sums depends.
        expected, found = model(images)[0], copy.deepcopy(again).eval()(images)[0]
    assert torch.equal(found, expected)
    model.train()(images)[0].float().square().mean().backward()
    moved = [parameter for parameter in encoder.parameters() if parameter.grad is not None]
    assert len(moved) > len(list(encoder.parameters())) / 2 and all(bool(x.grad.isfinite().all()) for x in moved)


def test_weights_of_a_checkpoint_under_a_model(tmp_path):
    """The way that the documentation shows: all keys of the backbone match."""
    CASES["segformer"].make_model().save_pretrained(tmp_path)
    encoder = MiTBackbone.from_pretrained(tmp_path, out_indices=[1, 2, 3, 4])
    model = upernet(encoder.config)
    model.backbone.load_state_dict(encoder.state_dict())
    assert torch.equal(model.backbone.stages[0].patch_embed.proj.weight, encoder.stages[0].patch_embed.proj.weight)


# ------------------------------------------------------------------------------- weights of a backbone_config's network


def test_weights_of_timm_by_file(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model("resnet18")
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    fields = {"model_type": "timm_backbone", "backbone": "resnet18", "out_indices": [1, 2, 3, 4]}
    model = SegFormerForSemanticSegmentation(SegFormerConfig(backbone_config=fields, decoder_hidden_size=16))
    load_backbone(model, tmp_path / "resnet18.pth")
    found = model.backbone.encoder.backbone.state_dict()
    assert found and all(
        torch.equal(x, theirs.state_dict()[key.removeprefix("_backbone.")]) for key, x in found.items()
    )
    fields["backbone"] = "resnet34"
    deeper = SegFormerForSemanticSegmentation(SegFormerConfig(backbone_config=fields, decoder_hidden_size=16))
    with pytest.raises(ValueError, match="resnet34"):
        load_backbone(deeper, tmp_path / "resnet18.pth")


def test_weights_of_an_encoder_by_folder(tmp_path, caplog):
    encoder = make("mit")
    encoder.save_pretrained(tmp_path / "mit")
    SegFormerImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(tmp_path / "mit")
    model = CASES["ocrnet"].make_model(backbone_config=copy.deepcopy(encoder.config))
    load_backbone(model, tmp_path / "mit")
    assert "trained on images of mean [0.5, 0.5, 0.5]" in caplog.text
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found, expected = model.backbone(images).feature_maps, encoder(images).feature_maps
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
    make("hrnet").save_pretrained(tmp_path / "hrnet")
    with pytest.raises(ValueError, match="hrnet is no segtx_mit"):
        load_backbone(model, tmp_path / "hrnet")
    with pytest.raises(ValueError, match="give the folder of both"):
        load_backbone(model, tmp_path / "mit/model.safetensors")
