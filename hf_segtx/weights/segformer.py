"""SegFormer's checkpoints: of the authors, of transformers and of mmsegmentation."""

import re

import torch

from ..models.modeling_segformer import TRANSFORMERS_NAMES
from .files import Source, StateDict, count


def segformer_fields(state: StateDict) -> dict:
    """Sizes of SegFormer. Heads are as wide as the first stage, as published; strides are 4, 2, 2, 2."""
    stages = range(count(state, r"backbone\.stages\.(\d+)\.patch_embed\."))
    patch_weights = [state[f"backbone.stages.{i}.patch_embed.proj.weight"] for i in stages]
    widths = [weight.shape[0] for weight in patch_weights]
    reductions = [state.get(f"backbone.stages.{i}.blocks.0.attn.reduction.weight") for i in stages]
    hidden = [state[f"backbone.stages.{i}.blocks.0.mlp.fc1.weight"].shape[0] for i in stages]
    return {
        "num_labels": state["decode_head.classifier.weight"].shape[0],
        "num_channels": patch_weights[0].shape[1],
        "hidden_sizes": widths,
        "depths": [count(state, rf"backbone\.stages\.{i}\.blocks\.(\d+)\.") for i in stages],
        "num_attention_heads": [width // widths[0] for width in widths],
        "patch_sizes": [weight.shape[-1] for weight in patch_weights],
        "sr_ratios": [1 if weight is None else weight.shape[-1] for weight in reductions],
        "mlp_ratios": [wide // width for wide, width in zip(hidden, widths)],
        "decoder_hidden_size": state["decode_head.fuse.weight"].shape[0],
    }


def split_rows(state: StateDict, name: str, parts: tuple[str, ...]):
    """Every tensor called `name` becomes several of equal height, called `parts`."""
    for key in [key for key in state if f".{name}." in key]:
        tensor = state.pop(key)
        for part, rows in zip(parts, tensor.chunk(len(parts))):
            state[key.replace(f".{name}.", f".{part}.")] = rows.clone()


def segformer_authors(state: StateDict) -> dict:
    split_rows(state, "attn.kv", ("attn.key", "attn.value"))
    return segformer_fields(state)


def segformer_transformers(state: StateDict) -> dict:
    return {**segformer_fields(state), "layer_norm_eps": 1e-5}


def segformer_mmsegmentation(state: StateDict) -> dict:
    split_rows(state, "attn.qkv", ("attn.query", "attn.key", "attn.value"))
    for key in list(state):  # 1x1 convolutions that are linear layers here
        if re.search(r"(mlp\.fc\d|projections\.\d)\.weight$", key):
            state[key] = state[key].flatten(1)
    # The concatenation starts with the finest stage.
    parts = state["decode_head.fuse.weight"].chunk(count(state, r"decode_head\.projections\.(\d)\."), dim=1)
    state["decode_head.fuse.weight"] = torch.cat(parts[::-1], dim=1)
    return {**segformer_fields(state), "embedding_layer_norm_eps": 1e-6, "decoder_projection_norm": True}


SOURCES = {
    "SegFormer of the authors (NVlabs/SegFormer)": Source(
        marks=(r"^backbone\.patch_embed1\.proj", r"^decode_head\.linear_c1\.proj"),
        left_out=r"\.conv_seg\.",
        names={
            r"^backbone\.patch_embed(\d)\.": lambda m: f"backbone.stages.{int(m[1]) - 1}.patch_embed.",
            r"^backbone\.block(\d)\.": lambda m: f"backbone.stages.{int(m[1]) - 1}.blocks.",
            r"^backbone\.norm(\d)\.": lambda m: f"backbone.stages.{int(m[1]) - 1}.norm.",
            r"\.attn\.q\.": ".attn.query.",
            r"\.attn\.sr\.": ".attn.reduction.",
            r"\.attn\.norm\.": ".attn.reduction_norm.",
            r"dwconv\.dwconv": "dwconv",
            r"\.linear_c(\d)\.proj\.": lambda m: f".projections.{int(m[1]) - 1}.",
            r"\.linear_fuse\.conv\.": ".fuse.",
            r"\.linear_fuse\.bn\.": ".norm.",
            r"\.linear_pred\.": ".classifier.",
        },
        read=segformer_authors,
    ),
    "SegFormer of transformers": Source(
        marks=(r"^segformer\.", r"^decode_head\.linear_fuse\."),
        left_out=r"^$",
        names=TRANSFORMERS_NAMES,
        read=segformer_transformers,
    ),
    "SegFormer of mmsegmentation": Source(
        marks=(r"^backbone\.layers\.0\.1\.0\.attn\.attn\.in_proj_weight", r"^decode_head\.fusion_conv\."),
        left_out=r"^$",
        names={
            r"^backbone\.layers\.(\d)\.0\.projection\.": r"backbone.stages.\1.patch_embed.proj.",
            r"^backbone\.layers\.(\d)\.0\.norm\.": r"backbone.stages.\1.patch_embed.norm.",
            r"^backbone\.layers\.(\d)\.1\.": r"backbone.stages.\1.blocks.",
            r"^backbone\.layers\.(\d)\.2\.": r"backbone.stages.\1.norm.",
            r"attn\.attn\.in_proj_(weight|bias)": r"attn.qkv.\1",
            r"attn\.attn\.out_proj": "attn.proj",
            r"\.attn\.sr\.": ".attn.reduction.",
            r"\.attn\.norm\.": ".attn.reduction_norm.",
            r"ffn\.layers\.0\.": "mlp.fc1.",
            r"ffn\.layers\.1\.": "mlp.dwconv.",
            r"ffn\.layers\.4\.": "mlp.fc2.",
            r"\.convs\.(\d)\.conv\.": r".projections.\1.",
            r"\.convs\.(\d)\.bn\.": r".projection_norms.\1.",
            r"\.fusion_conv\.conv\.": ".fuse.",
            r"\.fusion_conv\.bn\.": ".norm.",
            r"\.conv_seg\.": ".classifier.",
        },
        read=segformer_mmsegmentation,
    ),
}
