"""Backbones of transformers and timm under the four heads: a table of pairs, each trained, saved, read and used.

The networks are tiny and random: what is tested is that both libraries' backbones are what they are there, that every
pixel is where it was, and that nothing is lost on the way to a file and back.
"""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    BeitConfig,
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
)

from hf_segtx.architectures import ARCHITECTURES
from hf_segtx.inference import predict


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
    "resnet": Backbone(ResNetConfig, {**STAGES, "embedding_size": 8, "layer_type": "basic"}),
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
    if head == "segformer":
        settings.setdefault("decoder_stages", list(range(len(kind.strides))))
    torch.manual_seed(0)
    return ARCHITECTURES[head].model(ARCHITECTURES[head].config(**settings))


def batch(backbone: str, size: tuple[int, int]) -> torch.Tensor:
    fixed = BACKBONES[backbone].fixed_size
    return torch.randn(2, 3, *((fixed, fixed) if fixed else size), generator=torch.Generator().manual_seed(1))


def steps(model, images: torch.Tensor, count: int = 2) -> list[float]:
    """Losses of so many training steps, each on the same images."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    labels = torch.randint(4, (2, *images.shape[2:]), generator=torch.Generator().manual_seed(2))
    losses = []
    model.train()
    for _ in range(count):
        loss = model(images, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


def works(head: str, backbone: str, folder: Path) -> None:
    """Trains two steps, saves, reads, and predicts images of a size that is no multiple of anything."""
    model = make_model(head, backbone)
    before = copy.deepcopy(model.state_dict())
    losses = steps(model, batch(backbone, (70, 90)))
    assert torch.tensor(losses).isfinite().all()
    changed = {name.split(".")[0] for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}
    assert {"backbone", "decode_head"} <= changed
    model.eval().save_pretrained(folder)
    loaded = ARCHITECTURES[head].model.from_pretrained(folder).eval()
    state = model.state_dict()
    assert state.keys() == loaded.state_dict().keys()
    assert all(tensor.equal(state[name]) for name, tensor in loaded.state_dict().items())
    window = BACKBONES[backbone].fixed_size
    processor = ARCHITECTURES[head].processor_pil(do_resize=False, window_size=window)
    images = [Image.effect_noise((101, 75), 50 + 50 * seed).convert("RGB") for seed in range(2)]
    maps = predict(loaded, processor, images)
    assert [tuple(x.shape) for x in maps] == [(75, 101)] * 2
    assert all(x.equal(y) for x, y in zip(maps, predict(model, processor, images), strict=True))


PAIRS = [(head, backbone) for backbone in BACKBONES for head in HEADS]
QUICK = [
    ("segmenter", "dinov3_vit"),
    ("setr", "dinov2"),
    ("segformer", "resnet"),
    ("ocrnet", "timm convnext"),
    ("segformer", "timm vit"),
    ("segmenter", "swin"),
    ("ocrnet", "pvt_v2"),
]


@pytest.mark.parametrize(
    ("head", "backbone"), [pair if pair in QUICK else pytest.param(*pair, marks=pytest.mark.slow) for pair in PAIRS]
)
def test_pair(head, backbone, tmp_path):
    works(head, backbone, tmp_path)
