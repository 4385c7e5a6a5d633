"""Backbones of transformers and timm under the four heads: a table of pairs, each trained, saved, read and used.

The networks are tiny and random: what is tested is that both libraries' backbones are what they are there, that every
pixel is where it was, and that nothing is lost on the way to a file and back.
"""

import copy
import dataclasses
import json
import os
import re
import subprocess
import sys
import types
import weakref
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoBackbone,
    AutoModel,
    BeitConfig,
    BeitImageProcessor,
    ConvNextV2Config,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ConvNextConfig,
    DINOv3ViTConfig,
    FocalNetConfig,
    HieraConfig,
    PvtV2Config,
    ResNetConfig,
    SwinConfig,
    Swinv2Config,
    TimmBackboneConfig,
    ViTConfig,
)

from hf_segtx.architectures import ARCHITECTURES
from hf_segtx.cli import main
from hf_segtx.inference import load_model, predict
from hf_segtx.models.feature_maps import layout_of
from hf_segtx.models.pretrained_backbone import default_indices
from hf_segtx.training.optim import parameter_groups
from hf_segtx.weights.to_mmsegmentation import mmsegmentation_state
from hf_segtx.weights.to_transformers import save_for_transformers


VIT = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, out_indices=[1, 2, 3, 4])
STAGES = dict(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_indices=[1, 2, 3, 4])
SWIN = dict(embed_dim=8, depths=[1, 1, 1, 2], num_heads=[1, 2, 2, 4], window_size=4, image_size=64)


@dataclasses.dataclass
class Backbone:
    """A tiny backbone.

    Args:
        kind: class of its configuration.
        fields: of the configuration.
        strides: of its maps, as published.
        fixed_size: side of the only images that it takes.
    """

    kind: type
    fields: dict
    strides: tuple[int, ...] = (4, 8, 16, 32)
    fixed_size: int | None = None

    def config(self):
        return self.kind(**copy.deepcopy(self.fields))

    @property
    def is_plain(self) -> bool:
        return len(set(self.strides)) == 1


def timm_backbone(name: str, indices: list[int], strides: tuple[int, ...] = (4, 8, 16, 32)) -> Backbone:
    return Backbone(TimmBackboneConfig, dict(backbone=name, out_indices=indices), strides)


BACKBONES = {
    "dinov2": Backbone(Dinov2Config, {**VIT, "patch_size": 14, "image_size": 56}, (14,) * 4),
    "dinov2_with_registers": Backbone(
        Dinov2WithRegistersConfig, {**VIT, "patch_size": 14, "image_size": 56}, (14,) * 4
    ),
    "dinov3_vit": Backbone(DINOv3ViTConfig, {**VIT, "intermediate_size": 64, "num_register_tokens": 4}, (16,) * 4),
    "dinov3_convnext": Backbone(DINOv3ConvNextConfig, STAGES),
    "convnextv2": Backbone(ConvNextV2Config, STAGES),
    "swin": Backbone(SwinConfig, {**SWIN, "out_indices": [1, 2, 3, 4]}),
    "swinv2": Backbone(Swinv2Config, {**SWIN, "out_indices": [1, 2, 3, 4]}),
    "pvt_v2": Backbone(PvtV2Config, {**STAGES, "num_attention_heads": [1, 2, 2, 4], "out_indices": [0, 1, 2, 3]}),
    "beit": Backbone(
        BeitConfig,
        {**VIT, "intermediate_size": 64, "image_size": 64, "use_relative_position_bias": True},
        (16,) * 4,
    ),
    "hiera": Backbone(
        HieraConfig,
        dict(embed_dim=8, image_size=[224, 224], depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], out_indices=[1, 2, 3, 4]),
        fixed_size=224,
    ),
    "resnet": Backbone(ResNetConfig, {**STAGES, "embedding_size": 32, "layer_type": "basic", "hidden_sizes": [32] * 4}),
    "focalnet": Backbone(
        FocalNetConfig,
        dict(
            embed_dim=8,
            hidden_sizes=[16, 32, 64, 64],
            depths=[1, 1, 1, 1],
            focal_levels=[1, 1, 1, 1],
            focal_windows=[3, 3, 3, 3],
            image_size=64,
            out_indices=[0, 1, 2, 4],
        ),
    ),
    "timm resnet": timm_backbone("test_resnet", [1, 2, 3, 4]),
    "timm convnext": timm_backbone("test_convnext", [0, 1, 2, 3]),
    "timm vit": timm_backbone("vit_tiny_patch16_224", [2, 5], (16,) * 2),
    "timm swin": timm_backbone("swin_tiny_patch4_window7_224", [0, 1, 2]),
    "timm eva": timm_backbone("eva02_tiny_patch14_224", [2, 5], (14,) * 2),
}
BACKBONES["timm swin"].strides = (4, 8, 16)
HEADS = {
    "setr": {"decode_head": "pup", "decoder_hidden_size": 16},
    "segformer": {"decoder_hidden_size": 16},
    "segmenter": {"decode_head": "mask", "decoder_hidden_size": 32},
    "ocrnet": {"decoder_hidden_size": 16, "decoder_key_size": 8},
}


def make_model(head: str, backbone: str, **fields):
    """A tiny model with random weights; hierarchical maps are fused for heads that read one map."""
    kind = BACKBONES[backbone]
    settings = {**HEADS[head], "num_labels": 4, "backbone_config": kind.config(), **fields}
    if head in ("setr", "segmenter") and not kind.is_plain:
        settings.setdefault("feature_scaling", "fuse")
    torch.manual_seed(0)
    return ARCHITECTURES[head].model(ARCHITECTURES[head].config(**settings))


def batch(backbone: str, size: tuple[int, int]) -> torch.Tensor:
    fixed = BACKBONES[backbone].fixed_size
    return torch.randn(2, 3, *((fixed, fixed) if fixed else size), generator=torch.Generator().manual_seed(1))


def sgd(model) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)


def steps(model, optimizer, images: torch.Tensor, count: int) -> list[float]:
    """Losses of so many training steps, each on the same images."""
    labels = torch.randint(4, (2, *images.shape[2:]), generator=torch.Generator().manual_seed(2))
    torch.manual_seed(3)
    losses = []
    model.train()
    for _ in range(count):
        loss = model(images, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_same_state(model, other) -> None:
    state = model.state_dict()
    assert state.keys() == other.state_dict().keys()
    assert all(tensor.equal(state[name]) for name, tensor in other.state_dict().items())


def works(head: str, backbone: str, folder: Path) -> None:
    """Trains two steps, saves, reads, predicts images of a size that is no multiple of anything, and trains on.

    The copy for inference agrees with what was read.
    """
    model, images = make_model(head, backbone), batch(backbone, (70, 90))
    before, optimizer = copy.deepcopy(model.state_dict()), sgd(model)
    losses = steps(model, optimizer, images, 2)
    assert torch.tensor(losses).isfinite().all()
    changed = {name.split(".")[0] for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}
    assert {"backbone", "decode_head"} <= changed
    model.eval().save_pretrained(folder)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    loaded = ARCHITECTURES[head].model.from_pretrained(folder).eval()
    assert_same_state(model, loaded)
    window = BACKBONES[backbone].fixed_size
    processor = ARCHITECTURES[head].processor_pil(do_resize=False, window_size=window)
    pictures = [Image.effect_noise((101, 75), 50 + 50 * seed).convert("RGB") for seed in range(2)]
    maps = predict(loaded, processor, pictures)
    assert [tuple(x.shape) for x in maps] == [(75, 101)] * 2
    assert all(x.equal(y) for x, y in zip(maps, predict(model, processor, pictures), strict=True))
    with torch.no_grad():
        expected, found = loaded(images).logits, loaded.optimize_for_inference()(images).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.std()))  # rounding
    resumed = sgd(loaded)
    resumed.load_state_dict(torch.load(folder / "optimizer.pt"))
    assert steps(loaded, resumed, images, 1) == steps(model, optimizer, images, 1)
    assert_same_state(model, loaded)


QUICK_BACKBONES = ["dinov2", "dinov3_vit", "hiera", "focalnet", "timm convnext"]  # of both libraries, plain and not


def mostly_slow(cases, quick):
    """Parameters of a test that are all tried where there is time, and the quick ones always."""
    return [case if case in quick else pytest.param(*as_tuple(case), marks=pytest.mark.slow) for case in cases]


def as_tuple(case) -> tuple:
    return case if isinstance(case, tuple) else (case,)


PAIRS = [(head, backbone) for backbone in BACKBONES for head in HEADS]
QUICK = [
    ("segmenter", "dinov3_vit"),
    ("setr", "dinov2"),
    ("segformer", "resnet"),
    ("ocrnet", "timm convnext"),
    ("segmenter", "swin"),
    ("ocrnet", "pvt_v2"),
]


@pytest.mark.parametrize(("head", "backbone"), mostly_slow(PAIRS, QUICK))
def test_pair(head, backbone, tmp_path):
    works(head, backbone, tmp_path)


# -------------------------------------------------------------------------------------------------- pre-trained weights


def pretrained_folder(backbone: str, folder: Path) -> torch.nn.Module:
    """Saves the backbone's whole model, as on the Hub, under random weights; returns it."""
    torch.manual_seed(3)
    kind = BACKBONES[backbone]
    if kind.kind is TimmBackboneConfig:
        model = timm.create_model(kind.fields["backbone"], num_classes=7)
        timm.models.save_for_hf(model, folder, safe_serialization=True)
        return model.eval()
    config = kind.config()
    config.num_labels = 1000
    model = AutoModel.from_config(config).eval()
    model.save_pretrained(folder)
    BeitImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(folder)
    return model


PRETRAINED = {  # what images are padded to, twice the patch of a plain ViT for its pyramid; what is said about norms
    "dinov3_vit": (32, ""),
    "dinov2": (28, ""),
    "resnet": (32, ""),
    "swin": (32, "hidden_states_norms"),
    "timm resnet": (32, ""),
    "timm vit": (32, ""),
    "timm convnext": (32, ""),
}


@pytest.mark.parametrize("backbone", mostly_slow(PRETRAINED, ["dinov3_vit", "swin", "timm resnet"]))
def test_pretrained_backbone_of_a_folder(backbone, tmp_path, caplog):
    """The features are those of the library's own model on the same folder."""
    caplog.set_level("INFO", "hf_segtx")
    whole = pretrained_folder(backbone, tmp_path)
    patch, norms = PRETRAINED[backbone]
    model, processor = ARCHITECTURES["segformer"].model.from_backbone(tmp_path, num_labels=3)
    assert model.config.feature_scaling == ("pyramid" if BACKBONES[backbone].is_plain else "none")
    assert norms in caplog.text and bool(norms) == ("begin with scale 1" in caplog.text)
    is_timm = backbone.startswith("timm")
    assert list(processor.image_mean) == (list(whole.pretrained_cfg["mean"]) if is_timm else [0.1, 0.2, 0.3])
    assert processor.size_divisor == patch and model.config.num_labels == 3
    assert len(getattr(model.config.backbone_config, "id2label", {})) < 10
    assert model.backbone.encoder.strides == ([patch // 2] if BACKBONES[backbone].is_plain else [4, 8, 16, 32])
    assert ("has no use for fc.bias, fc.weight\n" in caplog.text) == (backbone == "timm resnet")
    images = torch.randn(2, 3, 224, 224) if backbone == "timm vit" else torch.randn(2, 3, 2 * patch, 3 * patch)
    with torch.no_grad():
        last = model.backbone(images).feature_maps[-1]
        if is_timm:
            expected = whole.forward_intermediates(images, intermediates_only=True)[-1]
        else:  # windows stay windows in Swin's backbone, however small the map
            expected = whole(images, **{"always_partition": True} if backbone == "swin" else {}).last_hidden_state
        if expected.ndim == 3:
            prefix = expected.shape[1] - last[0, 0].numel()
            expected = expected[:, prefix:].transpose(1, 2).unflatten(2, last.shape[2:])
    torch.testing.assert_close(last, expected, rtol=1e-5, atol=1e-5)  # the same operations, other kernels at most


def test_network_of_timm_that_its_name_does_not_describe_is_refused(tmp_path):
    shape = {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
    network = timm.create_model("convnext_atto", **shape)
    timm.models.save_for_hf(network, tmp_path, model_args=shape, safe_serialization=True)
    with pytest.raises(ValueError, match="has no weight stem.0.weight of the shape .40, 3, 4, 4."):
        ARCHITECTURES["segformer"].model.from_backbone(tmp_path, num_labels=3)


@pytest.mark.parametrize(
    ("settings", "mean", "std"),
    [
        ({"image_mean": [0.1] * 3, "image_std": [0.4] * 3}, 0.1, 0.4),
        ({"image_mean": [0.1] * 3, "image_std": [0.4] * 3, "do_normalize": False}, 0, 1),
    ],
)
def test_images_are_normalised_unless_the_backbones_processor_says_otherwise(settings, mean, std, tmp_path):
    pretrained_folder("dinov3_vit", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    _, processor = ARCHITECTURES["segmenter"].model.from_backbone(tmp_path, num_labels=3)
    assert [*processor.image_mean, *processor.image_std] == [mean] * 3 + [std] * 3


@pytest.mark.parametrize(
    ("head", "backbone", "fields", "indices", "scaling"),
    [
        ("segformer", "dinov3_vit", {}, [4], "pyramid"),
        ("ocrnet", "dinov3_vit", {"feature_scaling": "none"}, [1, 2, 3, 4], "none"),
        ("segformer", "dinov3_vit", {"out_indices": [2, 4]}, [2, 4], "none"),
        ("setr", "dinov3_vit", {}, [1, 2, 3, 4], "none"),
        ("segmenter", "dinov3_vit", {}, [4], "none"),
        ("segformer", "resnet", {"out_indices": [4]}, [4], "none"),
        ("segformer", "resnet", {}, [1, 2, 3, 4], "none"),
        ("setr", "resnet", {}, [3, 4], "fuse"),
    ],
)
def test_what_is_read_if_nothing_is_said(head, backbone, fields, indices, scaling, tmp_path):
    pretrained_folder(backbone, tmp_path)
    model, _ = ARCHITECTURES[head].model.from_backbone(tmp_path, num_labels=3, **fields)
    assert (model.config.backbone_config.out_indices, model.config.feature_scaling) == (indices, scaling)
    every = list(range({"pyramid": 4, "fuse": 1}.get(scaling, len(indices))))
    read = {"segformer": "decoder_stages", "setr": "feature_indices"}.get(head)  # the others' heads have no choice
    assert read is None or list(getattr(model.config, read)) == every


@pytest.mark.parametrize(("blocks", "indices"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [2, 4, 6, 8])])
def test_four_blocks_at_even_distances(blocks, indices):
    config = Dinov2Config(**{**VIT, "num_hidden_layers": blocks, "out_indices": None})
    assert default_indices(config, "layers") == indices


@pytest.mark.parametrize("backbone", ["resnet", "timm resnet"])
def test_revision_of_a_hub_in_a_cache(backbone, tmp_path):
    repository = tmp_path / "models--me--network"
    (repository / "refs").mkdir(parents=True)
    for number, revision in enumerate(("main", "second")):
        snapshot = repository / "snapshots" / f"{number:040}"
        snapshot.mkdir(parents=True)
        (repository / "refs" / revision).write_text(snapshot.name)
        pretrained_folder(backbone, snapshot)
        state = {name: (1 + number) * tensor for name, tensor in load_file(snapshot / "model.safetensors").items()}
        save_file(state, snapshot / "model.safetensors", {"format": "pt"})
    model, _ = ARCHITECTURES["segformer"].model.from_backbone("me/network", revision="second", cache_dir=tmp_path)
    for tensor in model.backbone.encoder.backbone.parameters():
        assert any(tensor.equal(other) for other in state.values())


def test_random_weights_are_refused(tmp_path):
    """What the folder lacks, or has for another network, is said by name."""
    pretrained_folder("dinov3_vit", tmp_path)
    segmenter = ARCHITECTURES["segmenter"].model
    state = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in state if name.endswith("layer.1.mlp.up_proj.weight"))
    save_file(
        {name: tensor for name, tensor in state.items() if name != lost},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ValueError, match=r"lacks 1 weights of DINOv3ViTBackbone, such as .*up_proj.weight"):
        segmenter.from_backbone(tmp_path)
    state[lost] = torch.full_like(state[lost], torch.inf)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="up_proj.weight is not finite"):
        segmenter.from_backbone(tmp_path)
    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no backbone of the model_type 'vit'; take one that it has"):
        segmenter.from_backbone(tmp_path)
    with pytest.raises(OSError, match="no such folder, and the Hub gives none"):
        segmenter.from_backbone(tmp_path / "nothing")


def test_other_programs_have_no_such_networks(tmp_path):
    model = make_model("segformer", "resnet")
    with pytest.raises(ValueError, match="backbone_config"):
        save_for_transformers(model, ARCHITECTURES["segformer"].processor(), tmp_path)
    for head in HEADS:
        with pytest.raises(ValueError, match="backbone_config"):
            mmsegmentation_state(make_model(head, "resnet"))


def test_weights_file_of_timm(tmp_path):
    torch.manual_seed(0)
    whole = timm.create_model("test_resnet", num_classes=1000).eval()
    save_file(whole.state_dict(), tmp_path / "weights.safetensors")
    model, processor = ARCHITECTURES["segmenter"].model.from_backbone(
        "timm/test_resnet", weights_file=tmp_path / "weights.safetensors", feature_norm="layer_norm", num_labels=3
    )
    assert model.config.feature_scaling == "fuse" and model.backbone.encoder.strides == [16, 32]
    assert processor.size_divisor == 32 and model.config.patch_size == 32
    state = model.backbone.encoder.backbone.state_dict()
    assert all(tensor.equal(whole.state_dict()[name.removeprefix("_backbone.")]) for name, tensor in state.items())


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "field",
    [{"backbone": "resnet18"}, {"use_pretrained_backbone": True}, {"use_timm_backbone": True}, {"backbone_kwargs": {}}],
)
def test_what_would_drop_weights_is_refused(head, field):
    with pytest.raises(ValueError, match=f"{next(iter(field))} is .* call from_backbone"):
        ARCHITECTURES[head].config(**field)


@pytest.mark.parametrize(
    ("head", "fields", "message"),
    [
        ("setr", {"feature_norm": "batch_norm"}, "feature_norm is 'batch_norm', but there is no backbone_config"),
        ("setr", {"backbone_config": {"model_type": "x"}}, "model_type 'x'; give that of a backbone"),
        ("segmenter", {"backbone_config": ResNetConfig(), "feature_scaling": "up"}, "feature_scaling is 'up'; choose"),
        ("segformer", {"backbone_config": ResNetConfig(), "decoder_stages": [0, 1]}, "out_indices in backbone_config"),
        (
            "setr",
            {"backbone_config": ResNetConfig(), "feature_indices": [1]},
            "numbers of the backbone's maps from 0 to 0",
        ),
        ("segmenter", {"backbone_config": ResNetConfig(num_channels=4)}, "num_channels is 3, in backbone_config 4"),
    ],
)
def test_impossible_configurations(head, fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ARCHITECTURES[head].config(**fields)


# ------------------------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("backbone", mostly_slow(BACKBONES, QUICK_BACKBONES))
def test_bright_square_is_where_it_was(backbone):
    """What changes in the logits when a square of the image does, has its centre there.

    The networks do not attend, so that they are local. Up to half a patch is lost to rounding; 3/4 of the coarsest
    stride where convolutions of stride 2 and an odd kernel look half a stride to the upper left, as published. The
    image lacks a pixel to whole patches: without its remainder and stretched, DINOv2's last square would be 11 off.
    """
    model = make_model("segformer", backbone).eval()
    for name, parameter in model.backbone.named_parameters():
        if re.search(r"(attention|attn)\.(o_proj|proj|output\.dense)\.", name):
            torch.nn.init.zeros_(parameter)
    kind, side = BACKBONES[backbone], 40
    stride = max(kind.strides)
    height, width = (kind.fixed_size or n // stride * stride - 1 for n in (160, 224))
    background, other = torch.randn(2, 4, 3, height, width)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    with torch.no_grad():
        plain = model(background).logits
        for top, left in [(0, 0), (30, 90), (height - side - 20, 10), (height - side, width - side)]:
            image = background.clone()
            image[:, :, top : top + side, left : left + side] = 3 * other[:, :, top : top + side, left : left + side]
            change = (model(image).logits - plain).square().sum(dim=(0, 1))
            change = F.interpolate(change[None, None], (height, width), mode="bilinear")[0, 0]
            y, x = (float((change * n).sum() / change.sum()) for n in (rows, columns))
            wanted = (top + side / 2 - 0.5, left + side / 2 - 0.5)
            assert (y, x) == pytest.approx(wanted, abs=stride / 2 if kind.is_plain else 0.75 * stride)


def source_maps(model, backbone: str, images: torch.Tensor) -> list[torch.Tensor]:
    """The chosen maps (B, C, h, w) by the library's own way, with the model's weights."""
    encoder, kind = model.backbone.encoder, BACKBONES[backbone]
    if kind.kind is TimmBackboneConfig:  # timm's own wrapper, in which it applies each fixed size to itself
        options = {"img_size": tuple(images.shape[2:])} if kind.is_plain else {}
        if "swin" in backbone:
            options = {"strict_img_size": False}
        features = timm.create_model(
            kind.fields["backbone"], features_only=True, out_indices=kind.fields["out_indices"], **options
        ).eval()
        state = {name.removeprefix("_backbone."): tensor for name, tensor in encoder.backbone.state_dict().items()}
        if "pos_embed" in "".join(state):
            resized = {name: tensor for name, tensor in state.items() if "pos_embed" not in name}
            features.load_state_dict(resized, strict=False)
            table = features.model.pos_embed
            table.data = resample_abs_pos_embed(state["model.pos_embed"], features.model.patch_embed.grid_size)
        else:
            features.load_state_dict(state)
        maps = features(images)
        return [x if x.shape[1] == n else x.permute(0, 3, 1, 2) for n, x in zip(encoder.channels, maps, strict=True)]
    if backbone == "hiera":  # whose backbone of transformers 5.24 shuffles its maps
        whole, norms = AutoModel.from_config(encoder.backbone.config).eval(), encoder.backbone.hidden_states_norms
        whole.load_state_dict(encoder.backbone.state_dict(), strict=False)
        maps = whole(images, output_hidden_states=True).reshaped_hidden_states[1:]
        return [norm(x).permute(0, 3, 1, 2) for norm, x in zip(norms.values(), maps, strict=True)]
    plain = AutoBackbone.from_config(kind.config()).eval()
    plain.load_state_dict(encoder.backbone.state_dict())
    return list(plain(images).feature_maps)


@pytest.mark.parametrize("backbone", mostly_slow(BACKBONES, QUICK_BACKBONES))
def test_maps_are_those_of_the_library(backbone):
    """Channels and strides, which were measured, are those of the maps; and the maps are the library's."""
    model = make_model("segformer", backbone).eval()
    encoder, kind = model.backbone.encoder, BACKBONES[backbone]
    stride = max(kind.strides)
    images = torch.randn(2, 3, *([kind.fixed_size] * 2 if kind.fixed_size else (4 * stride, 7 * stride)))
    with torch.no_grad():
        maps = encoder(images)
        expected = source_maps(model, backbone, images)
        recorded = model(images, output_hidden_states=True).hidden_states
        last, *_ = model.backbone(images, return_dict=False)
    assert last.equal(maps[-1])
    assert all(x.equal(y) for x, y in zip(recorded, maps, strict=True))
    assert tuple(encoder.strides) == kind.strides and encoder.fixed_size in (None, (224, 224))
    assert [x.shape[1] for x in maps] == encoder.channels
    assert [images.shape[3] // x.shape[3] for x in maps] == list(kind.strides)
    for x, y in zip(maps, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)  # the same operations


@pytest.mark.parametrize("backbone", BACKBONES)
def test_strides_are_measured(backbone):
    layout, kind = layout_of(BACKBONES[backbone].config()), BACKBONES[backbone]
    assert layout.strides == kind.strides and layout.fixed_size == (kind.fixed_size and (kind.fixed_size,) * 2)


@pytest.mark.parametrize("name, channels", [("csatv2", 386), ("efficientvim_m1", 320)])
def test_stride_of_64_is_measured(name, channels):
    """As timm's `feature_info` says; maps of 3x10 pixels would be taken for some with the channels last."""
    layout = layout_of(TimmBackboneConfig(backbone=name, out_indices=(-1,), use_pretrained_backbone=False))
    assert (layout.channels, layout.strides, layout.channels_last) == ((channels,), (64,), False)


def layout_of_map(shape: tuple[int, int, int], monkeypatch):
    """What is measured of a backbone that makes such a map of the image of 448x1344 pixels."""
    backbone = torch.nn.Linear(1, 1)
    output = types.SimpleNamespace(feature_maps=[torch.empty(1, *shape, device="meta")])
    monkeypatch.setattr(backbone, "forward", lambda pixels, return_dict: output)
    monkeypatch.setattr(AutoBackbone, "from_config", lambda config: backbone)
    return layout_of(ResNetConfig(embedding_size=sum(shape)))  # each measured for itself


@pytest.mark.parametrize("shape", [(32, 112, 336), (14, 42, 150), (14, 42, 12)])
def test_channels_are_found_whatever_their_number(shape, monkeypatch):
    """More rows than channels, and a few channels more or less than columns."""
    layout = layout_of_map(shape, monkeypatch)
    is_last = shape[0] == 14
    assert layout[:3] == ((shape[2] if is_last else 32,), (32 if is_last else 4,), is_last)


@pytest.mark.parametrize("rows, columns", [(12, 42), (14, 40), (13, 41)])
def test_maps_that_lack_rows_or_columns_are_refused(rows, columns, monkeypatch):
    with pytest.raises(ValueError, match=f"makes maps of {rows}x{columns} of images of 448x1344: it cuts off borders"):
        layout_of_map((8, rows, columns), monkeypatch)


def test_backbone_that_cuts_off_borders_is_refused():
    config = TimmBackboneConfig(backbone="inception_v3", out_indices=(-1,), use_pretrained_backbone=False)
    with pytest.raises(ValueError, match="inception_v3 makes maps of 12x40 of images of 448x1344: it cuts"):
        layout_of(config)


@pytest.mark.parametrize("size", [(70, 75), (51, 84), (51, 75)])
def test_images_are_padded_to_whole_patches(size):
    """At the right and bottom; what was added is cropped from the logits."""
    model, images = make_model("segmenter", "dinov2").eval(), batch("dinov2", size)
    padded, taken = F.pad(images, (0, -size[1] % 14, 0, -size[0] % 14)), []
    model.backbone.encoder.backbone.register_forward_pre_hook(lambda module, args: taken.append(args[0]))
    with torch.no_grad():
        maps, expected = (model.backbone(x).feature_maps for x in (images, padded))
        assert taken[1] is padded  # whole patches are not copied
        assert all(x.equal(y) for x, y in zip(maps, expected, strict=True))
        logits = F.interpolate(model(padded).logits, padded.shape[2:], mode="bilinear")
        assert model(images).logits.equal(logits[..., : size[0], : size[1]])


@pytest.mark.parametrize("backbone", ["swin", "hiera", "pvt_v2", "resnet", "dinov2"])
def test_one_image_as_in_a_batch(backbone):
    """On a CPU the layout of a map in memory chooses the way of computing, and that of a single map is another."""
    model, images = make_model("segformer", backbone).eval(), batch(backbone, (256, 256))
    with torch.no_grad():
        together, alone = model(images).logits, model(images[:1]).logits
    torch.testing.assert_close(alone, together[:1], rtol=1e-4, atol=1e-5)  # sums in another order


# ------------------------------------------------------------------------------------------------------------- training


CANNOT_CHECKPOINT = {
    "dinov3_convnext": "DINOv3ConvNextBackbone",
    "convnextv2": "ConvNextV2Backbone",
    "resnet": "ResNetBackbone",
}


@pytest.mark.parametrize("backbone", mostly_slow(BACKBONES, [*QUICK_BACKBONES, "resnet"]))
def test_gradient_checkpointing(backbone):
    """Less is kept for the backward pass, and the gradients are the same; or it is said that it cannot be."""
    model, images = make_model("ocrnet", backbone).train(), batch(backbone, (64, 64))

    def step():
        """Gradients, and how many numbers the forward pass keeps."""
        torch.manual_seed(0)
        model.zero_grad()
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            loss = model(images, labels=torch.zeros(2, *images.shape[2:], dtype=torch.long)).loss
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, sum(kept)

    expected, most = step()
    if backbone in CANNOT_CHECKPOINT:
        with pytest.raises(ValueError, match=f"{CANNOT_CHECKPOINT[backbone]} cannot recompute activations; omit"):
            model.activation_checkpointing_enable()
        return
    model.activation_checkpointing_enable()
    gradients, kept = step()
    assert kept < 0.9 * most
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)  # sums in another order


class LiveMemory(TorchDispatchMode):
    """The most bytes that tensors made inside of it take at one time."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.known |= {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for storage in [x.untyped_storage() for x in tree_leaves(result) if isinstance(x, torch.Tensor)]:
            if storage._cdata not in self.known:  # neither a view nor a parameter
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.release, storage._cdata, storage.nbytes())
        return result

    def release(self, key: int, size: int) -> None:
        self.known.remove(key)
        self.now -= size


DEEPER = {  # kinds of backbones -> fields of one that has two blocks more in front of a map that is read
    **dict.fromkeys(("dinov2", "dinov2_with_registers", "dinov3_vit", "beit"), {"num_hidden_layers": 6}),
    **dict.fromkeys(("dinov3_convnext", "convnextv2", "pvt_v2", "hiera", "resnet"), {"depths": [1, 1, 3, 1]}),
    **dict.fromkeys(("swin", "swinv2"), {"depths": [1, 1, 3, 2]}),
    "focalnet": {"depths": [1, 1, 3, 1], "focal_levels": [1] * 4},
    **dict.fromkeys(("timm vit", "timm eva"), {"out_indices": [4]}),
}


@pytest.mark.parametrize("backbone", mostly_slow(DEEPER, ["dinov2", "dinov3_vit", "beit"]))
def test_only_chosen_blocks_are_kept(backbone):
    """Prediction takes as much memory with more blocks, of which the head reads the last one, or four."""
    kind = BACKBONES[backbone]

    def most(**fields) -> int:
        fields = {**kind.fields, **fields}
        if "num_hidden_layers" in fields:
            fields["out_indices"] = [fields["num_hidden_layers"]]
        model = make_model("segformer", backbone, backbone_config=kind.kind(**fields)).eval()
        with torch.no_grad(), LiveMemory() as memory:
            model.backbone(batch(backbone, (64, 96)))
        return memory.most

    few = most(**({"out_indices": [2]} if backbone.startswith("timm") else {}))
    assert most(**DEEPER[backbone]) <= few  # less where a table of positions is cached from the first time


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_compiles_in_one_graph(backbone):
    """Loss and gradients in training, as `torch.compile` traces them, without the minutes of its C++ compiler."""
    torch._dynamo.reset()
    model, images = make_model("segformer", backbone).train(), batch(backbone, (64, 96))
    labels = torch.zeros(2, *images.shape[2:], dtype=torch.long)
    compiled = torch.compile(model, fullgraph=True, backend="eager")

    def step(function) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model.zero_grad()
        loss = function(images, labels=labels).loss
        loss.backward()
        return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    expected = step(model)
    for x, y in zip(step(compiled), expected, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_learning_rates_fall_from_layer_to_layer(backbone):
    with torch.device("meta"):
        model = make_model("segformer", backbone)
    groups = parameter_groups(model, 1.0, layer_decay=0.5, head_lr_multiplier=7.0)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert all(id(parameter) in rates for parameter in model.parameters())
    assert {rates[id(parameter)] for parameter in model.decode_head.parameters()} == {7.0}
    backbone_rates = [rates[id(parameter)] for parameter in model.backbone.parameters()]
    depth = len(set(backbone_rates)) - 1
    assert depth >= len(BACKBONES[backbone].strides) - 1 and min(backbone_rates) == backbone_rates[0]


def test_training_on_a_backbone_of_a_folder(tmp_path, monkeypatch):
    """The command, with a frozen DINOv3 of a folder; the model goes on training, and predicts, from what it saved."""
    pretrained_folder("dinov3_vit", tmp_path / "dinov3")
    flags = (
        f"--backbone {tmp_path / 'dinov3'} --architecture segmenter --decode_head mask --tune frozen --crop_size 64 "
    )
    flags += "--max_train_samples 4 --max_eval_samples 2 --per_device_train_batch_size 2 --max_train_steps 2 "
    flags = [*flags.split(), *"--evaluation_steps 1 --num_warmup_steps 0 --save_total_limit 2".split()]
    assert main(["train", *flags, "--output_dir", str(tmp_path / "out")]) == 0  # on the scenes that come along
    model, processor = load_model(tmp_path / "out")
    assert type(model).__name__ == "SegmenterForSemanticSegmentation" and model.config.patch_size == 16
    assert list(processor.image_mean) == [0.1, 0.2, 0.3] and processor.size_divisor == 16
    trained, start = model.backbone.encoder.backbone.state_dict(), load_file(tmp_path / "dinov3" / "model.safetensors")
    assert all(any(tensor.equal(other) for other in start.values()) for tensor in trained.values())
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    again = ["--resume_from_checkpoint", str(tmp_path / "out" / "step_1"), "--output_dir", str(tmp_path / "again")]
    assert main(["train", *flags, *again]) == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == weights


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "backbone"),
    [("setr", "dinov2"), ("segformer", "hiera"), ("segmenter", "timm resnet"), ("ocrnet", "swin")],
)
def test_training_goes_on_from_a_checkpoint(head, backbone, tmp_path):
    """A run that was stopped after its first step ends with the bits of one that was not."""
    kind = BACKBONES[backbone]
    fields = {**HEADS[head], "backbone_config": json.loads(kind.config().to_json_string())}
    if head in ("setr", "segmenter") and not kind.is_plain:
        fields["feature_scaling"] = "fuse"
    flags = [
        "--architecture",
        head,
        "--config_overrides",
        json.dumps(fields),
        "--crop_size",
        str(kind.fixed_size or 64),
    ]
    flags += "--max_train_samples 4 --max_eval_samples 1 --per_device_train_batch_size 2 --num_warmup_steps 0".split()
    flags += "--max_train_steps 2 --evaluation_steps 1 --save_total_limit 2".split()
    flags += ["--eval_mode", "slide"] * (kind.fixed_size is not None)
    assert main(["train", *flags, "--output_dir", str(tmp_path / "out")]) == 0
    again = ["--resume_from_checkpoint", str(tmp_path / "out" / "step_1"), "--output_dir", str(tmp_path / "again")]
    assert main(["train", *flags, *again]) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again", "out/step_1")]
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.slow
def test_code_travels_with_the_model(tmp_path):
    """A process without this package loads the checkpoint by the code beside it, and predicts the same."""
    model = make_model("segmenter", "timm vit").eval()
    model.save_pretrained(tmp_path)
    images = torch.arange(2 * 3 * 50 * 70).reshape(2, 3, 50, 70).remainder(97) / 97
    code = f"""
import sys; sys.modules["hf_segtx"] = None
import torch; from transformers import AutoModelForSemanticSegmentation
model = AutoModelForSemanticSegmentation.from_pretrained({str(tmp_path)!r}, trust_remote_code=True).eval()
images = torch.arange(2 * 3 * 50 * 70).reshape(2, 3, 50, 70).remainder(97) / 97
torch.save(model(images).logits.detach(), {str(tmp_path / "logits.pt")!r})
"""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=600)
    with torch.no_grad():
        assert torch.load(tmp_path / "logits.pt").equal(model(images).logits)


# ---------------------------------------------------------------------------------------------------- necks and heads


def test_pyramid_of_a_plain_backbone():
    """ViTDet's: 4, 2, 1 and 1/2 times the resolution of the last map; all that is new of it is trained."""
    model = make_model("segformer", "dinov2", feature_scaling="pyramid", feature_norm="batch_norm").train()
    images = batch("dinov2", (70, 90))
    maps = model.neck(model.backbone(images).feature_maps)
    assert [tuple(x.shape[1:]) for x in maps] == [(8, 24, 32), (16, 12, 16), (32, 6, 8), (32, 3, 4)]  # of 84x112 pixels
    assert (list(model.neck.channels), list(model.neck.strides)) == ([8, 16, 32, 32], [3.5, 7, 14, 28])
    torch.testing.assert_close(maps[2].mean((0, 2, 3)), torch.zeros(32), rtol=0, atol=1e-5)  # the norm's; rounding
    torch.testing.assert_close(maps[3], F.max_pool2d(maps[2], 2))
    model(images, labels=torch.zeros(2, 70, 90, dtype=torch.long)).loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.neck.parameters())
    model = make_model("segformer", "swin", feature_scaling="pyramid")  # of the last of several maps
    maps = model.neck(model.backbone(batch("swin", (64, 96))).feature_maps)
    assert [tuple(x.shape[1:]) for x in maps] == [(16, 8, 16), (32, 4, 8), (64, 2, 4), (64, 1, 2)]  # of 64x128
    assert (model.neck.channels, model.neck.strides) == ((16, 32, 64, 64), (8, 16, 32, 64))
    half = Dinov2Config(**{**VIT, "patch_size": 7, "image_size": 56})
    assert make_model("segformer", "dinov2", feature_scaling="pyramid", backbone_config=half).neck.strides[1] == 3.5


def test_fused_stages():
    """Oracle: the sum written out."""
    model = make_model("segmenter", "resnet", feature_norm="layer_norm").eval()
    maps = model.backbone(batch("resnet", (64, 96))).feature_maps
    total = 0
    for x, project in zip(maps, model.neck.projections, strict=True):
        x = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2)
        total = total + F.interpolate(project(x), (16, 24), mode="bilinear")
    (fused,) = model.neck(maps)
    torch.testing.assert_close(fused, total)
    assert (model.neck.channels, model.neck.strides) == ((32,), (4,))
    assert all(project.bias is None for project in model.neck.projections)  # their sum has one number too many
    assert all(project.kernel_size == (1, 1) for project in model.neck.projections)


@pytest.mark.parametrize(("head", "fields"), [("segmenter", {"decode_head": "linear"}), ("setr", {})])
def test_stages_without_scaling(head, fields):
    """The head reads the last map; SETR's auxiliary heads each read their own, whatever its channels."""
    model, images = make_model(head, "swin", feature_scaling="none", **fields).train(), batch("swin", (64, 96))
    output = model(images, labels=torch.zeros(2, 64, 96, dtype=torch.long))
    output.loss.backward()
    assert output.logits.shape == ((2, 4, 2, 3) if head == "segmenter" else (2, 4, 16, 24))


def test_probe_head():
    """DINOv3's: dropout of channels, BatchNorm, classifier of standard deviation 0.01."""
    model = make_model("segmenter", "dinov3_vit", decode_head="probe", num_labels=200).eval()
    head, x = model.decode_head, 5 * torch.randn(2, 32, 3, 4) + 1
    assert head.classifier.weight.std().item() == pytest.approx(0.01, rel=0.05) and not head.classifier.bias.any()
    assert head.classifier.weight.mean().item() == pytest.approx(0, abs=0.001)
    head.train().dropout.p = 0.0
    expected = F.conv2d(F.batch_norm(x, None, None, training=True), head.classifier.weight)
    torch.testing.assert_close(head(x), expected, rtol=1e-4, atol=1e-6)  # sums in another order
    head.dropout.p = 0.5
    dropped = head.dropout(torch.ones(4, 32, 3, 4)).flatten(2)
    assert (dropped == dropped[..., :1]).all() and set(dropped.unique().tolist()) == {0.0, 2.0}


def test_what_does_not_fit_is_said():
    with pytest.raises(
        ValueError, match=r"200x224 pixels; this backbone takes 224x224 only.*window_size to \[224, 224\]"
    ):
        make_model("segformer", "hiera")(torch.zeros(1, 3, 200, 224))
    with torch.device("meta"), pytest.raises(ValueError, match="75x101 pixels; this backbone takes 224x224 only"):
        config = TimmBackboneConfig(backbone="hiera_tiny_224", out_indices=[2, 3])
        assert layout_of(config)[:2] == ((384, 768), (16, 32))
        make_model("segformer", "resnet", backbone_config=config)(torch.zeros(1, 3, 75, 101))
    with pytest.raises(ValueError, match=r"maps of one size, .* strides \[4, 8, 16, 32\]"):
        make_model("setr", "resnet", decode_head="mla", feature_scaling="none")
    with pytest.raises(ValueError, match="gives tokens, .* set reshape_hidden_states=True"):
        kind = BACKBONES["dinov2"]
        make_model("setr", "dinov2", backbone_config=kind.kind(**kind.fields, reshape_hidden_states=False))
    with pytest.raises(ValueError, match="of 'nonsense', gives no backbone that works: .*Unknown model"):
        make_model("setr", "dinov2", backbone_config={"model_type": "timm_backbone", "backbone": "nonsense"})
    assert make_model("setr", "dinov2", decode_head="mla")(batch("dinov2", (56, 56))).logits.shape == (2, 4, 16, 16)


# ----------------------------------------------------------------------------------------------------------- the page


PAGE = Path(__file__).parents[1] / "docs/backbones.md"


def table() -> str:
    """What works, for docs/backbones.md: the pairs that `test_pair` tries, and what else is tested of each backbone."""
    rows = [
        "| backbone | maps at | sizes | SETR | Segmenter | SegFormer | OCRNet | recomputes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, kind in BACKBONES.items():
        plain = kind.is_plain
        strides = f"1/{kind.strides[0]}" if plain else ", ".join(f"1/{stride}" for stride in kind.strides)
        size = f"{kind.fixed_size} only; windows" if kind.fixed_size else "any"
        heads = ["blocks" if plain else "fused"] * 2 + ["blocks" if plain else "stages"] * 2
        assert all((head, name) in PAIRS for head in HEADS)
        recomputes = "no" if name in CANNOT_CHECKPOINT else "yes"
        rows.append(f"| {name} | {strides} | {size} | {' | '.join(heads)} | {recomputes} |")
    return "\n".join(rows)


def test_page_has_the_table():
    """`python tests/test_backbones.py` writes it anew."""
    assert table() in PAGE.read_text()


if __name__ == "__main__":
    text = PAGE.read_text()
    PAGE.write_text(re.sub(r"\| backbone \| maps.*?\n(?=\n)", table() + "\n", text, flags=re.S))


@pytest.mark.parametrize("name", ["maxvit_tiny_rw_224", "coatnet_0_rw_224", "gcvit_xxtiny"])
def test_windows_that_suit_multiples_of_one_size_only_are_seen(name):
    """The first image that is sent through is two of theirs high and six wide, which suits windows of 7 patches."""
    assert layout_of(TimmBackboneConfig(backbone=name)).fixed_size == (224, 224)
