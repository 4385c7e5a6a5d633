"""SegFormer's checkpoints: of the authors, of transformers and of mmsegmentation."""

import re
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..models.modeling_segformer import TRANSFORMERS_NAMES
from .files import Source, StateDict, check_tensors, count, log_left_out, read_state_dict, renamed


HUB_OWNER = "nvidia"  # of the pre-trained backbones on the Hub: mit-b0 to mit-b5


def backbone_fields(state: StateDict) -> dict:
    """Sizes of a MiT. Heads are as wide as the first stage, as published; strides are 4, 2, 2, 2."""
    stages = range(count(state, r"backbone\.stages\.(\d+)\.patch_embed\."))
    patch_weights = [state[f"backbone.stages.{i}.patch_embed.proj.weight"] for i in stages]
    widths = [weight.shape[0] for weight in patch_weights]
    reductions = [state.get(f"backbone.stages.{i}.blocks.0.attn.reduction.weight") for i in stages]
    hidden = [state[f"backbone.stages.{i}.blocks.0.mlp.fc1.weight"].shape[0] for i in stages]
    fields = {
        "num_channels": patch_weights[0].shape[1],
        "hidden_sizes": widths,
        "depths": [count(state, rf"backbone\.stages\.{i}\.blocks\.(\d+)\.") for i in stages],
        "num_attention_heads": [width // widths[0] for width in widths],
        "patch_sizes": [weight.shape[-1] for weight in patch_weights],
        "sr_ratios": [1 if weight is None else weight.shape[-1] for weight in reductions],
        "mlp_ratios": [wide // width for wide, width in zip(hidden, widths)],
    }
    if "backbone.stages.0.patch_embed.pos_embed" in state:
        fields["position_encoding"] = "learned"
        fields["image_size"] = [4 * side for side in state["backbone.stages.0.patch_embed.pos_embed"].shape[2:]]
    return fields


def segformer_fields(state: StateDict) -> dict:
    """Fields of SegFormer that are read off shapes."""
    fields = backbone_fields(state)
    projections = range(count(state, r"decode_head\.projections\.(\d)\."))
    read = [state[f"decode_head.projections.{i}.weight"].shape[1] for i in projections]
    return {
        **fields,
        "num_labels": state["decode_head.classifier.weight"].shape[0],
        "decoder_hidden_size": state["decode_head.classifier.weight"].shape[1],
        "decoder_stages": [stage for stage, width in enumerate(fields["hidden_sizes"]) if width in read],
        "decoder_fusion": "decode_head.fuse.weight" in state,
        "decoder_projection_norm": "decode_head.projection_norms.0.weight" in state,
    }


def split_rows(state: StateDict, name: str, parts: tuple[str, ...]):
    """Every tensor called `name` becomes several of equal height, called `parts`."""
    for key in [key for key in state if f".{name}." in key]:
        tensor = state.pop(key)
        for part, rows in zip(parts, tensor.chunk(len(parts))):
            state[key.replace(f".{name}.", f".{part}.")] = rows.clone()


def unify_backbone(state: StateDict):
    """Brings a backbone of any source to this package's layout: queries, keys, values apart, linear layers."""
    split_rows(state, "attn.kv", ("attn.key", "attn.value"))  # the authors'
    split_rows(state, "attn.qkv", ("attn.query", "attn.key", "attn.value"))  # mmsegmentation's, and 1x1 convolutions
    for key in [key for key in state if re.search(r"mlp\.fc\d\.weight$", key)]:
        state[key] = state[key].flatten(1)


def segformer_authors(state: StateDict) -> dict:
    unify_backbone(state)
    return {**segformer_fields(state), "layer_norm_eps": 1e-6}


def segformer_transformers(state: StateDict) -> dict:
    return segformer_fields(state)


def segformer_mmsegmentation(state: StateDict) -> dict:
    unify_backbone(state)
    for key in [key for key in state if re.search(r"projections\.\d\.weight$", key)]:
        state[key] = state[key].flatten(1)  # a 1x1 convolution that is a linear layer here
    # The concatenation starts with the finest stage.
    parts = state["decode_head.fuse.weight"].chunk(count(state, r"decode_head\.projections\.(\d)\."), dim=1)
    state["decode_head.fuse.weight"] = torch.cat(parts[::-1], dim=1)
    return {**segformer_fields(state), "layer_norm_eps": 1e-6, "embedding_layer_norm_eps": 1e-6}


# The first mark of each is that of its backbone.
SOURCES = {
    "SegFormer of this package": Source(
        marks=(r"^backbone\.stages\.\d\.patch_embed\.proj\.", r"^decode_head\.projections\."),
        read=segformer_fields,
    ),
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
        marks=(
            r"^segformer\.(encoder\.)?(patch_embeddings\.0|stages\.0\.patch_embeddings)\.",
            r"^decode_head\.linear_",
        ),
        names=TRANSFORMERS_NAMES,
        read=segformer_transformers,
    ),
    "SegFormer of mmsegmentation": Source(
        marks=(r"^backbone\.layers\.0\.1\.0\.attn\.attn\.in_proj_weight", r"^decode_head\.fusion_conv\."),
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


def load_backbone(backbone: PreTrainedModel, file: Path) -> None:
    """The part of `load_backbone` that is SegFormer's: a MiT, alone, with a classifier or under a head."""
    state, where = read_state_dict(file), str(file)
    found = [
        (source, prefix)
        for source in SOURCES.values()
        for prefix in ("", "backbone.", "segformer.")  # a backbone alone has its names without one of the last two
        if any(re.search(source.marks[0], prefix + name) for name in state)
    ]
    if not found:
        raise ValueError(
            f"{where} is no MiT; its first keys: {', '.join(list(state)[:5])}. What fits a SegFormer: the authors' "
            "mit_b0.pth to mit_b5.pth, nvidia/mit-b0 to nvidia/mit-b5 of the Hub, and whole SegFormers"
        )
    source, prefix = found[0]
    try:
        state = renamed({prefix + name: tensor for name, tensor in state.items()}, source.names)
        unused = [name for name in state if re.search(r"(^|\.)(decode_head|auxiliary_head|classifier|head)\.", name)]
        log_left_out(unused, where)
        state = {name: tensor for name, tensor in state.items() if name not in unused}
        check_tensors(state)
        unify_backbone(state)
        backbone.load_state_dict({name.removeprefix("backbone."): tensor for name, tensor in state.items()})
    except (IndexError, RuntimeError, ValueError) as error:
        config = backbone.config
        raise ValueError(
            f"{where} does not fit the backbone of hidden_sizes {list(config.hidden_sizes)} and depths "
            f"{list(config.depths)}; take the size of the weights, as SegFormerConfig.from_size('b2') does: {error}"
        ) from error
