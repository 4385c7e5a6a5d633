"""Our models under mmsegmentation's names: a checkpoint for its `EncoderDecoder` (of OCRNet `CascadeEncoderDecoder`).

What its configuration has to say besides the sizes is returned with the tensors. Biases of convolutions before a
BatchNorm, which it does not have, go into the running mean: BN(x + b) with mean m is BN(x) with mean m - b.
"""

import re
from pathlib import Path

import torch
from transformers import PreTrainedModel

from .files import StateDict, renamed


VISION_TRANSFORMER = {
    r"^backbone\.vit\.": "backbone.",
    r"^backbone\.norm\.": "backbone.ln1.",
    r"(blocks\.\d+)\.norm([12])\.": r"\1.ln\2.",
    r"\.attn\.qkv\.(weight|bias)": r".attn.attn.in_proj_\1",
    r"\.attn\.proj\.": ".attn.attn.out_proj.",
    r"\.mlp\.fc1\.": ".ffn.layers.0.0.",
    r"\.mlp\.fc2\.": ".ffn.layers.1.",
    r"\.blocks\.": ".layers.",
    r"patch_embed\.proj\.": "patch_embed.projection.",
}
SEGFORMER = {
    r"^backbone\.stages\.(\d)\.patch_embed\.proj\.": r"backbone.layers.\1.0.projection.",
    r"^backbone\.stages\.(\d)\.patch_embed\.norm\.": r"backbone.layers.\1.0.norm.",
    r"^backbone\.stages\.(\d)\.norm\.": r"backbone.layers.\1.2.",
    r"^backbone\.stages\.(\d)\.blocks\.": r"backbone.layers.\1.1.",
    r"\.attn\.reduction\.": ".attn.sr.",
    r"\.attn\.reduction_norm\.": ".attn.norm.",
    r"\.attn\.proj\.": ".attn.attn.out_proj.",
    r"\.mlp\.fc1\.": ".ffn.layers.0.",
    r"\.mlp\.dwconv\.": ".ffn.layers.1.",
    r"\.mlp\.fc2\.": ".ffn.layers.4.",
    r"^decode_head\.projections\.(\d)\.": r"decode_head.convs.\1.conv.",
    r"^decode_head\.projection_norms\.(\d)\.": r"decode_head.convs.\1.bn.",
    r"^decode_head\.fuse\.": "decode_head.fusion_conv.conv.",
    r"^decode_head\.norm\.": "decode_head.fusion_conv.bn.",
    r"^decode_head\.classifier\.": "decode_head.conv_seg.",
}
SETR_UPSAMPLING = {
    **VISION_TRANSFORMER,
    r"^auxiliary_heads\.": "auxiliary_head.",
    r"\.convs\.(\d)\.norm\.": r".convs.\1.bn.",
    r"\.convs\.(\d)\.": r".up_convs.\1.0.",
    r"\.classifier\.": ".conv_seg.",
}
SETR_MLA = {
    r"^backbone\.neck\.norms\.": "neck.norm.",
    r"^backbone\.neck\.projections\.": "neck.mla.channel_proj.",
    r"^backbone\.neck\.convs\.(\d)\.": lambda m: f"neck.mla.feat_extract.{3 - int(m[1])}.",
    **VISION_TRANSFORMER,
    r"^decode_head\.convs\.(\d)\.": lambda m: f"decode_head.up_convs.{3 - int(m[1])}.",
    r"^(neck\.mla|decode_head\.up_convs)\.(.*)\.norm\.": r"\1.\2.bn.",
    r"^decode_head\.classifier\.": "decode_head.conv_seg.",
}
SEGMENTER = {
    **VISION_TRANSFORMER,
    r"^decode_head\.norm\.": "decode_head.decoder_norm.",
    r"^decode_head\.projection\.": "decode_head.dec_proj.",
    r"\.class_embeddings$": ".cls_emb",
    r"\.patch_projection\.": ".patch_proj.",
    r"\.class_projection\.": ".classes_proj.",
    r"\.classifier\.": ".conv_seg.",
}
OCRNET = {
    r"^backbone\.encoder\.": "backbone.",
    r"^auxiliary_heads\.0\.conv\.": "decode_head.0.convs.0.",
    r"^auxiliary_heads\.0\.classifier\.": "decode_head.0.conv_seg.",
    r"^decode_head\.augmented\.": "decode_head.1.object_context_block.bottleneck.",
    r"^decode_head\.(query|key|value)\.": r"decode_head.1.object_context_block.\1_project.",
    r"^decode_head\.context\.": "decode_head.1.object_context_block.out_project.",
    r"^decode_head\.pixels\.": "decode_head.1.bottleneck.",
    r"^decode_head\.classifier\.": "decode_head.1.conv_seg.",
    r"^(decode_head\.[01]\..*)\.norm\.": r"\1.bn.",
}


def refuse(config, **there) -> None:
    """Raises ValueError for the first field whose value is not the one that mmsegmentation's code has."""
    for field, value in there.items():
        own = getattr(config, field)
        if (list(own) if isinstance(own, tuple) else own) != value:
            raise ValueError(f"{field} is {own}, which mmsegmentation's network, with {value}, cannot express")


def move_biases(state: StateDict) -> None:
    """Biases of convolutions before a BatchNorm become a part of its running mean."""
    for name in [name for name in state if name.endswith(".conv.bias")]:
        mean = name.replace(".conv.bias", ".norm.running_mean")
        if mean in state:
            state[mean] = state[mean] - state.pop(name)


def join_rows(state: StateDict) -> None:
    """Queries, keys and values become one tensor."""
    for name in [name for name in state if ".attn.query." in name]:
        parts = [state.pop(name.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
        state[re.sub(r"query\.(weight|bias)", r"attn.in_proj_\1", name)] = torch.cat(parts)


def as_convolutions(state: StateDict, pattern: str) -> None:
    """Weights (O, C) of linear layers become those (O, C, 1, 1) of 1x1 convolutions."""
    for name in [name for name in state if re.search(pattern, name) and state[name].ndim == 2]:
        state[name] = state[name][:, :, None, None]


def reversed_columns(weight: torch.Tensor, parts: int) -> torch.Tensor:
    """The blocks of input channels in the opposite order."""
    return torch.cat(weight.chunk(parts, dim=1)[::-1], dim=1)


def segformer(config, state: StateDict) -> tuple[dict, list[str]]:
    stages = list(range(len(config.hidden_sizes)))
    refuse(config, position_encoding="mix_ffn", decoder_projection_norm=True, decoder_stages=stages)
    refuse(config, decoder_fusion=True)
    refuse(config, embedding_layer_norm_eps=config.layer_norm_eps)
    join_rows(state)
    as_convolutions(state, r"\.mlp\.fc\d\.weight$|\.projections\.\d\.weight$")
    state["decode_head.fuse.weight"] = reversed_columns(state["decode_head.fuse.weight"], len(stages))
    return SEGFORMER, [f"backbone: norm_cfg=dict(type='LN', eps={config.layer_norm_eps:g})"]


def vision_transformer_settings(config) -> list[str]:
    """What mmsegmentation's ViT has to be told; raises for what it cannot be told."""
    refuse(config, use_distillation_token=False)
    if getattr(config, "stem_depths", None) is not None:  # SETR's hybrid
        refuse(config, stem_depths=None)
    return [
        f"backbone: patch_bias=True, norm_cfg=dict(type='LN', eps={config.layer_norm_eps:g}), "
        f"interpolate_mode={config.position_resize_mode!r}"
    ]


def setr(config, state: StateDict) -> tuple[dict, list[str]]:
    settings = vision_transformer_settings(config)
    move_biases(state)
    if config.decode_head == "mla":
        refuse(config, mla_align_corners=False, mla_classifier_kernel_size=1)
        name = "decode_head.classifier.weight"
        state[name] = reversed_columns(state[name], len(config.feature_indices))
        heads = {key: state.pop(key) for key in list(state) if key.startswith("auxiliary_heads.")}
        for number, level in enumerate(config.auxiliary_levels):  # its heads count from the deepest level
            weight = heads[f"auxiliary_heads.{number}.weight"]
            place = f"auxiliary_head.{len(config.feature_indices) - 1 - level}.conv_seg"
            state[f"{place}.weight"] = weight
            state[f"{place}.bias"] = heads.get(f"auxiliary_heads.{number}.bias", torch.zeros(len(weight)))
        return SETR_MLA, settings
    factors = list(config.decoder_upsampling)
    if len(set(factors[:-1])) > 1 or factors[-1] not in (1, *factors[:1]):
        raise ValueError(f"decoder_upsampling is {factors}; mmsegmentation upsamples by the same factor everywhere")
    return SETR_UPSAMPLING, [*settings, f"decode_head: num_convs={len(factors)}, up_scale={factors[0]}"]


def segmenter(config, state: StateDict) -> tuple[dict, list[str]]:
    as_convolutions(state, r"^decode_head\.classifier\.weight$")
    return SEGMENTER, vision_transformer_settings(config)


def ocrnet(config, state: StateDict) -> tuple[dict, list[str]]:
    if config.backbone_type == "auto":
        raise ValueError("backbone_type is 'auto'; mmsegmentation's OCRNet has HRNet or ResNet")
    move_biases(state)
    names = dict(OCRNET)
    if config.backbone_type == "resnet" and len(config.stem_hidden_sizes) == 1:
        names |= {r"^backbone\.stem\.0\.": "backbone.conv1.", r"^backbone\.stem\.1\.": "backbone.bn1."}
    activation = "" if config.decoder_hidden_act == "relu" else ", act_cfg=dict(type='LeakyReLU')"
    return names, [f"decode_head: align_corners={config.align_corners}{activation}"]


WRITERS = {
    "segtx_segformer": segformer,
    "segtx_setr": setr,
    "segtx_segmenter": segmenter,
    "segtx_ocrnet": ocrnet,
}


def mmsegmentation_state(model: PreTrainedModel) -> tuple[StateDict, list[str]]:
    """Tensors under mmsegmentation's names, and what its configuration has to say besides the sizes.

    Raises:
        ValueError: naming the field that its networks cannot express.
    """
    if (other := model.config.backbone_config) is not None:
        raise ValueError(f"backbone_config is one of {other.model_type}, which mmsegmentation's network does not have")
    state = {name: tensor.detach().cpu().float().clone() for name, tensor in model.state_dict().items()}
    state = {name: tensor.long() if name.endswith("num_batches_tracked") else tensor for name, tensor in state.items()}
    names, settings = WRITERS[model.config.model_type](model.config, state)
    return renamed(state, names), settings


def save_for_mmsegmentation(model: PreTrainedModel, file: str | Path) -> list[str]:
    """Writes a checkpoint with class names; returns what the configuration has to say besides the sizes."""
    state, settings = mmsegmentation_state(model)
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    names = [model.config.id2label[number] for number in sorted(model.config.id2label)]
    torch.save({"state_dict": state, "meta": {"dataset_meta": {"classes": names}}}, file)
    return settings
