"""Checkpoints of the ViT that SETR and Segmenter share: sizes, and mmsegmentation's names."""

import re
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from ..models.vision_transformer import VisionTransformer
from .files import StateDict, backbone_of, check_tensors, count, log_left_out, read_state_dict, reason_of, renamed


def vision_transformer_fields(state: StateDict) -> dict:
    """Sizes of a SETR's or Segmenter's ViT. Heads are 64 wide and the native image is square, as published."""
    patch_weight, table = state["backbone.vit.patch_embed.proj.weight"], state["backbone.vit.pos_embed"]
    width, patch_size = patch_weight.shape[0], patch_weight.shape[-1]
    prefix = 1 + ("backbone.vit.dist_token" in state)
    return {
        "patch_size": patch_size,
        "num_channels": patch_weight.shape[1],
        "image_size": patch_size * round((table.shape[1] - prefix) ** 0.5),
        "hidden_size": width,
        "num_hidden_layers": count(state, r"backbone\.vit\.blocks\.(\d+)\."),
        "num_attention_heads": max(width // 64, 1),
        "mlp_ratio": state["backbone.vit.blocks.0.mlp.fc1.weight"].shape[0] / width,
        "use_distillation_token": prefix == 2,
    }


def add_patch_bias(state: StateDict):
    """The ViT of mmsegmentation 1.2.2 has no bias in its patch embedding unless it is asked for."""
    width = state["backbone.vit.patch_embed.proj.weight"].shape[0]
    state.setdefault("backbone.vit.patch_embed.proj.bias", torch.zeros(width))


def from_deepest(name: str) -> Callable[[re.Match], str]:
    """`name` with {} as a level counted from the shallowest of four, where the checkpoint counts from the deepest."""
    return lambda match: name.format(3 - int(match[1]))


def from_p2(name: str) -> Callable[[re.Match], str]:
    """`name` with {} as a level counted from 0, where the checkpoint calls the shallowest 2."""
    return lambda match: name.format(int(match[1]) - 2)


MMSEGMENTATION_VIT = {
    r"^backbone\.layers\.": "backbone.blocks.",
    r"^backbone\.": "backbone.vit.",
    r"patch_embed\.projection": "patch_embed.proj",
    r"\.ln(\d)\.": r".norm\1.",
    r"attn\.attn\.in_proj_(weight|bias)": r"attn.qkv.\1",
    r"attn\.attn\.out_proj": "attn.proj",
    r"ffn\.layers\.0\.0": "mlp.fc1",
    r"ffn\.layers\.1": "mlp.fc2",
}


# --- pre-trained backbones

HUB_OWNER = "timm"  # of those on the Hub

# Names -> timm's, with queries, keys and values apart.
TRANSFORMERS_VIT = {  # of files on the Hub, and of the modules of transformers 5
    r"^(vit|deit)\.": "",
    r"^embeddings\.": "",
    r"^distillation_token": "dist_token",
    r"^position_embeddings": "pos_embed",
    r"^patch_embeddings\.projection": "patch_embed.proj",
    r"^(encoder\.)?layers?\.": "blocks.",
    r"attention\.(output\.dense|o_proj)": "attn.proj",
    r"attention\.(attention\.)?(query|key|value|q|k|v)(_proj)?\.": r"attn.\2.",
    r"intermediate\.dense": "mlp.fc1",
    r"output\.dense": "mlp.fc2",
    r"layernorm_before": "norm1",
    r"layernorm_after": "norm2",
    r"^layernorm\.": "norm.",
}
JAX_VIT = {
    r"^cls$": "cls_token",
    r"^Transformer/posembed_input/pos_embedding$": "pos_embed",
    r"^embedding/": "patch_embed.proj/",
    r"^Transformer/encoderblock_(\d+)/": r"blocks.\1.",
    r"^Transformer/encoder_norm/": "norm/",
    r"LayerNorm_0/": "norm1/",
    r"LayerNorm_2/": "norm2/",
    r"MultiHeadDotProductAttention_1/out/": "attn.proj/",
    r"MultiHeadDotProductAttention_1/": "attn.",
    r"MlpBlock_3/Dense_0/": "mlp.fc1/",
    r"MlpBlock_3/Dense_1/": "mlp.fc2/",
    r"^conv_root/": "patch_embed.backbone.stem.conv/",
    r"^gn_root/": "patch_embed.backbone.stem.norm/",
    r"^block(\d)/unit(\d+)/": lambda m: f"patch_embed.backbone.stages.{int(m[1]) - 1}.blocks.{int(m[2]) - 1}.",
    r"(conv|gn)_proj/": r"downsample.\1/",
    r"gn(\d?)/": r"norm\1/",
    r"/(kernel|scale)$": ".weight",
    r"/bias$": ".bias",
}
TIMM_STEM = {  # the ResNet of ViT-hybrid -> transformers' BiT
    r"^patch_embed\.backbone\.stem\.conv\.": "patch_embed.backbone.bit.embedder.convolution.",
    r"^patch_embed\.backbone\.stem\.norm\.": "patch_embed.backbone.bit.embedder.norm.",
    r"^patch_embed\.backbone\.stages\.(\d)\.blocks\.": r"patch_embed.backbone.bit.encoder.stages.\1.layers.",
}
# Classifiers and what stands between the last norm and them.
UNUSED_OF_BACKBONE = r"^(head|head_dist|pre_logits|fc_norm|pooler|classifier|cls_classifier|distillation_classifier)\W"


def jax_layout(name: str, array: torch.Tensor) -> torch.Tensor:
    """An array of a JAX checkpoint as PyTorch lays it out; `name` is the checkpoint's."""
    if name.endswith("kernel"):
        if array.ndim == 4:  # convolution (height, width, in, out)
            return array.permute(3, 2, 0, 1)
        if array.ndim == 3:  # (in, heads, d) of query, key, value, (heads, d, out) of the projection
            array = array.flatten(0, 1) if "/out/" in name else array.flatten(1)
        return array.T
    return array if name == "cls" or name.endswith("pos_embedding") else array.flatten()


def as_timm(state: StateDict) -> StateDict:
    """A ViT's or DeiT's state dict with timm's names, whichever of the three formats it has."""
    if any(name.startswith("Transformer/") for name in state):
        state = {name: jax_layout(name, array) for name, array in state.items()}
        state = renamed(state, JAX_VIT)
    elif any(name.endswith("embeddings.cls_token") for name in state):
        state = renamed(state, TRANSFORMERS_VIT)
    for name in [name for name in state if re.search(r"\.attn\.(q|query)\.", name)]:
        parts = [
            re.sub(r"\.(q|query)\.", lambda m, part=part: f".{part if len(m[1]) > 1 else part[0]}.", name)
            for part in ("query", "key", "value")
        ]
        state[re.sub(r"\.(q|query)\.", ".qkv.", name)] = torch.cat([state.pop(part) for part in parts])
    return renamed(state, TIMM_STEM)


def resized_patch_kernel(weight: torch.Tensor, size: int) -> torch.Tensor:
    """Patch embedding for patches of another size: FlexiViT's pseudo-inverse resizing (arXiv 2212.08013, Section 3.4).

    A resized patch gives, as nearly as can be, the token that the patch gave.

    Shape:
        weight: (C, channels, p, p)
        returns: (C, channels, size, size)
    """
    side = weight.shape[-1]
    pixels = torch.eye(side * side).view(-1, 1, side, side)
    resize = F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True).flatten(1)  # (p p, size size)
    return (weight.flatten(2) @ torch.linalg.pinv(resize.T)).unflatten(2, (size, size))


def resized(state: StateDict, vit: VisionTransformer) -> StateDict:
    """The weights with position table and patch kernel of the model's sizes; without a second token it does not have.

    Raises:
        ValueError: if the table is of no square image.
    """
    prefix, patches = state["pos_embed"].tensor_split((1 + ("dist_token" in state),), dim=1)
    if vit.dist_token is None:
        prefix = prefix[:, :1]
    side = round(patches.shape[1] ** 0.5)
    if side**2 != patches.shape[1]:
        raise ValueError(f"the position table has {patches.shape[1]} patches, which is no square")
    if (side, side) != vit.grid_size:
        patches = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, C, side, side)
        patches = F.interpolate(patches, size=vit.grid_size, mode=vit.position_resize_mode, align_corners=False)
        patches = patches.flatten(2).transpose(1, 2)
    kernel, size = state["patch_embed.proj.weight"], vit.patch_embed.proj.weight.shape[-1]
    if kernel.shape[-1] != size:
        kernel = resized_patch_kernel(kernel, size)
    return {**state, "pos_embed": torch.cat((prefix, patches), dim=1), "patch_embed.proj.weight": kernel}


def load_backbone(backbone: PreTrainedModel, file: Path) -> None:
    """The part of `load_backbone` that is SETR's and Segmenter's: a ViT or DeiT, whichever format it has."""
    vit, where = backbone.vit, str(file)
    state = backbone_of(read_state_dict(file), where)
    try:
        state = as_timm({name.removeprefix("vit."): tensor for name, tensor in state.items()})
        if "pos_embed" not in state or "cls_token" not in state:
            found = ", ".join(list(state)[:5])
            raise ValueError(f"it is no ViT with class token and position table; its first keys: {found}")
        unused = [name for name in state if re.search(UNUSED_OF_BACKBONE, name)]
        if isinstance(vit.norm, torch.nn.Identity):
            unused += [name for name in ("norm.weight", "norm.bias") if name in state]
        if vit.dist_token is None and "dist_token" in state:
            unused.append("dist_token")
        log_left_out(unused, where)
        check_tensors({name: tensor for name, tensor in state.items() if name not in unused})
        weights = resized({name: tensor.float() for name, tensor in state.items()}, vit)
        vit.load_state_dict({name: tensor for name, tensor in weights.items() if name not in unused})
    except (LookupError, RuntimeError, ValueError) as error:
        raise ValueError(f"{where} does not fit the backbone: {reason_of(error)}") from error
