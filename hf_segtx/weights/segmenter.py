"""Segmenter's checkpoints: of the authors and of mmsegmentation."""

from pathlib import Path

import yaml

from .files import Source, StateDict, count
from .vision_transformer import (
    HUB_OWNER,
    MMSEGMENTATION_VIT,
    add_patch_bias,
    load_backbone,
    vision_transformer_fields,
)


__all__ = ["HUB_OWNER", "SOURCES", "load_backbone"]  # the same backbone as SETR's


def segmenter_fields(state: StateDict) -> dict:
    """Sizes of Segmenter. Heads of the mask transformer are 64 wide, as published."""
    fields = {**vision_transformer_fields(state), "decode_head": "linear"}
    if "decode_head.class_embeddings" in state:
        _, num_labels, width = state["decode_head.class_embeddings"].shape
        return {
            **fields,
            "num_labels": num_labels,
            "decode_head": "mask",
            "decoder_hidden_size": width,
            "decoder_num_hidden_layers": count(state, r"decode_head\.blocks\.(\d+)\."),
        }
    return {**fields, "num_labels": state["decode_head.classifier.weight"].shape[0]}


def segmenter_authors(state: StateDict) -> dict:
    for part in ("patch", "class"):  # these matrices stand on the right of the product
        name = f"decode_head.{part}_projection.weight"
        if name in state:
            state[name] = state[name].T.contiguous()
    return segmenter_fields(state)


def segmenter_mmsegmentation(state: StateDict) -> dict:
    add_patch_bias(state)
    if "decode_head.classifier.weight" in state:  # a 1x1 convolution that is a linear layer here
        state["decode_head.classifier.weight"] = state["decode_head.classifier.weight"].flatten(1)
    return {
        **segmenter_fields(state),
        "layer_norm_eps": 1e-6,
        "position_resize_mode": "bicubic",
        "decoder_dropout_prob": 0.0,
        "decoder_drop_path_rate": 0.1,
    }


def variant_fields(folder: Path) -> dict:
    """What the authors' variant.yml, beside their checkpoint.pth, says of the network and the weights do not.

    Raises:
        ValueError: if it does not describe a Segmenter.
    """

    path = folder / "variant.yml"
    if not path.is_file():
        return {}

    class Loader(yaml.SafeLoader):
        """The authors write sizes as Python tuples."""

    Loader.add_constructor("tag:yaml.org,2002:python/tuple", Loader.construct_yaml_seq)
    try:
        network = yaml.load(path.read_text(), Loader)["net_kwargs"]
        fields = {
            "image_size": network["image_size"],
            "num_attention_heads": network["n_heads"],
            "hidden_dropout_prob": network["dropout"],
            "attention_probs_dropout_prob": network["dropout"],
            "drop_path_rate": network["drop_path_rate"],
        }
        for field, name in (("decoder_dropout_prob", "dropout"), ("decoder_drop_path_rate", "drop_path_rate")):
            if name in network["decoder"]:
                fields[field] = network["decoder"][name]
    except (KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} does not describe a Segmenter (`net_kwargs`): {error}") from error
    return fields


SOURCES = {
    "Segmenter of this package": Source(
        marks=(r"^backbone\.vit\.norm\.", r"^decode_head\.(classifier\.weight|class_embeddings)$"),
        read=segmenter_fields,
    ),
    "Segmenter of the authors (rstrudel/segmenter)": Source(
        marks=(r"^encoder\.blocks\.0\.attn\.qkv\.", r"^decoder\.(head\.|cls_emb$)"),
        left_out=r"^encoder\.head(_dist)?\.",
        names={
            r"^encoder\.": "backbone.vit.",
            r"^decoder\.": "decode_head.",
            r"\.head\.": ".classifier.",
            r"\.cls_emb$": ".class_embeddings",
            r"\.proj_dec\.": ".projection.",
            r"\.decoder_norm\.": ".norm.",
            r"\.proj_patch$": ".patch_projection.weight",
            r"\.proj_classes$": ".class_projection.weight",
        },
        read=segmenter_authors,
        read_beside=variant_fields,
    ),
    "Segmenter of mmsegmentation": Source(
        marks=(r"^backbone\.layers\.0\.attn\.attn\.", r"^backbone\.ln1\.", r"^decode_head\.(conv_seg\.|cls_emb$)"),
        names={
            r"^backbone\.ln1\.": "backbone.norm.",
            r"^decode_head\.layers\.": "decode_head.blocks.",
            **MMSEGMENTATION_VIT,
            r"\.conv_seg\.": ".classifier.",
            r"\.cls_emb$": ".class_embeddings",
            r"\.dec_proj\.": ".projection.",
            r"\.decoder_norm\.": ".norm.",
            r"\.patch_proj\.": ".patch_projection.",
            r"\.classes_proj\.": ".class_projection.",
        },
        read=segmenter_mmsegmentation,
    ),
}
