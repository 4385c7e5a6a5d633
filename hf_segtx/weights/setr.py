"""SETR's checkpoints: of the authors and of mmsegmentation."""

import re

import torch

from .files import Source, StateDict, count
from .vision_transformer import (
    HUB_OWNER,
    MMSEGMENTATION_VIT,
    add_patch_bias,
    from_deepest,
    from_p2,
    load_backbone,
    vision_transformer_fields,
)


__all__ = ["HUB_OWNER", "SOURCES", "load_backbone"]  # the same backbone as Segmenter's


def setr_fields(state: StateDict) -> dict:
    """Fields of SETR that all sources share."""
    classifier = state["decode_head.classifier.weight"]
    auxiliary_heads = count(state, r"auxiliary_heads\.(\d+)\.")
    fields = {
        **vision_transformer_fields(state),
        "num_labels": classifier.shape[0],
        "auxiliary_levels": list(range(auxiliary_heads)),
    }
    if "backbone.neck.norms.0.weight" in state:
        fields["decode_head"] = "mla"
        fields["decoder_hidden_size"] = state["backbone.neck.convs.0.conv.weight"].shape[0]
        fields["mla_hidden_size"] = state["decode_head.convs.0.0.conv.weight"].shape[0]
        fields["mla_classifier_kernel_size"] = classifier.shape[-1]
        fields["auxiliary_bias"] = "auxiliary_heads.0.bias" in state
    else:
        fields["decode_head"] = "naive" if state["decode_head.convs.0.conv.weight"].shape[-1] == 1 else "pup"
        fields["decoder_hidden_size"] = classifier.shape[1]
        fields["decoder_conv_bias"] = "decode_head.convs.0.conv.bias" in state
    return fields


def published_upsampling(state: StateDict) -> dict:
    """Fields of the authors' and this package's heads; the factors, which do not show in the weights, as published."""
    fields = setr_fields(state)
    if fields["decode_head"] == "pup":
        # x2 after each convolution; the last one's is left to the final resize. Auxiliary heads: x4 after the only one.
        fields["decoder_upsampling"] = [2] * (count(state, r"decode_head\.convs\.(\d)\.") - 1) + [1]
        fields["auxiliary_upsampling"] = [4]
    return fields


def setr_upsampling_authors(state: StateDict) -> dict:
    # All convolutions have numbers; the last of a head, without a norm, is the classifier.
    for name in list(state):
        match = re.fullmatch(r"(.+)\.convs\.(\d)\.conv\.(weight|bias)", name)
        if match and f"{match[1]}.convs.{match[2]}.norm.weight" not in state:
            state[f"{match[1]}.classifier.{match[3]}"] = state.pop(name)
    return published_upsampling(state)


def setr_upsampling_mmsegmentation(state: StateDict) -> dict:
    add_patch_bias(state)
    fields = setr_fields(state)
    for field, head in (("decoder_upsampling", "decode_head"), ("auxiliary_upsampling", r"auxiliary_heads\.0")):
        convolutions = count(state, head + r"\.convs\.(\d)\.")
        if convolutions:
            factor = 2 if convolutions == 4 else 4  # after each convolution, as in all its configurations
            fields[field] = [factor] * convolutions
            if factor**convolutions == fields["patch_size"]:  # the size of the image: the final resize does the last
                fields[field][-1] = 1
    return fields


def setr_mla_mmsegmentation(state: StateDict) -> dict:
    add_patch_bias(state)
    fields = setr_fields(state)
    fields["mla_align_corners"] = False
    fields["auxiliary_levels"].reverse()  # the source counts levels from the deepest
    parts = state["decode_head.classifier.weight"].split(fields["mla_hidden_size"], dim=1)
    state["decode_head.classifier.weight"] = torch.cat(parts[::-1], dim=1)
    return fields


SOURCES = {
    "SETR of this package": Source(
        marks=(r"^backbone\.vit\.blocks\.0\.", r"^decode_head\.convs\."),
        read=published_upsampling,
    ),
    "SETR-Naive or -PUP of the authors (fudan-zvg/SETR)": Source(
        marks=(r"^backbone\.blocks\.0\.attn\.qkv\.", r"^decode_head\.syncbn_fc_0\."),
        left_out=r"\.conv_seg\.",
        names={
            r"^backbone\.": "backbone.vit.",
            r"^auxiliary_head\.": "auxiliary_heads.",
            r"\.conv_(\d)\.": r".convs.\1.conv.",
            r"\.syncbn_fc_(\d)\.": r".convs.\1.norm.",
        },
        read=setr_upsampling_authors,
    ),
    "SETR-MLA of the authors (fudan-zvg/SETR)": Source(
        marks=(r"^backbone\.blocks\.0\.attn\.qkv\.", r"^decode_head\.mlahead\."),
        left_out=r"\.conv_seg\.",
        names={
            r"^backbone\.norm_(\d)": r"neck.norms.\1",
            r"^backbone\.mla\.mla_p(\d)_1x1\.": from_p2("neck.projections.{}."),
            r"^backbone\.mla\.mla_p(\d)\.": from_p2("neck.convs.{}."),
            r"^backbone\.": "backbone.vit.",
            r"^decode_head\.mlahead\.head(\d)\.(?=[01]\.)": from_p2("decode_head.convs.{}.0."),
            r"^decode_head\.mlahead\.head(\d)\.(?=[34]\.)": from_p2("decode_head.convs.{}.1."),
            r"^(neck\.\w+\.\d|decode_head\.convs\.\d\.\d)\.[03]\.": r"\1.conv.",
            r"^(neck\.\w+\.\d|decode_head\.convs\.\d\.\d)\.[14]\.": r"\1.norm.",
            r"^neck\.": "backbone.neck.",
            r"^decode_head\.cls\.": "decode_head.classifier.",
            r"^auxiliary_head\.(\d)\.aux\.": r"auxiliary_heads.\1.",
        },
        read=setr_fields,
    ),
    "SETR-Naive or -PUP of mmsegmentation": Source(
        marks=(r"^backbone\.layers\.0\.attn\.attn\.", r"^decode_head\.up_convs\.", r"^decode_head\.norm\."),
        names={
            **MMSEGMENTATION_VIT,
            r"^auxiliary_head\.": "auxiliary_heads.",
            r"\.up_convs\.(\d)\.0\.": r".convs.\1.",
            r"\.bn\.": ".norm.",
            r"\.conv_seg\.": ".classifier.",
        },
        read=setr_upsampling_mmsegmentation,
    ),
    "SETR-MLA of mmsegmentation": Source(
        marks=(r"^backbone\.layers\.0\.attn\.attn\.", r"^decode_head\.up_convs\.", r"^neck\.mla\."),
        names={
            **MMSEGMENTATION_VIT,
            r"^neck\.norm\.": "backbone.neck.norms.",
            r"^neck\.mla\.channel_proj\.": "backbone.neck.projections.",
            r"^neck\.mla\.feat_extract\.(\d)\.": from_deepest("backbone.neck.convs.{}."),
            r"^decode_head\.up_convs\.(\d)\.": from_deepest("decode_head.convs.{}."),
            r"\.bn\.": ".norm.",
            r"^decode_head\.conv_seg\.": "decode_head.classifier.",
            r"^auxiliary_head\.(\d)\.conv_seg\.": r"auxiliary_heads.\1.",
        },
        read=setr_mla_mmsegmentation,
    ),
}
