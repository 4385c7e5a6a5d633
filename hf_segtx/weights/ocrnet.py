"""OCRNet's checkpoints: of the authors, of openseg and of mmsegmentation."""

import re
from pathlib import Path

import torch
from transformers import PreTrainedModel

from .files import Source, StateDict, backbone_of, check_tensors, count, read_state_dict, renamed


HUB_OWNER = "timm"  # of the pre-trained backbones on the Hub


def ocrnet_fields(state: StateDict) -> dict:
    """Fields of OCRNet that are read off shapes; an output stride of 8 is taken as published."""
    for name in [name for name in state if name.endswith(".running_mean")]:  # older files lack these counters
        state.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    if not count(state, r"backbone\.encoder\.(?:stem|stage4)\.(0)\."):
        for name in [name for name in state if re.match(r"backbone\.encoder\.(conv|bn)1\.", name)]:
            stem = name.replace("conv1.", "stem.0.").replace("bn1.", "stem.1.")  # a ResNet with a 7x7 stem
            state[stem] = state.pop(name)

    def width(name: str) -> int:
        return state[f"{name}.weight"].shape[0]

    encoder = "backbone.encoder."
    fields = {
        "num_labels": width("decode_head.classifier"),
        "decoder_hidden_size": width("decode_head.pixels.conv"),
        "decoder_key_size": width("decode_head.value.conv"),
        "decoder_conv_bias": "decode_head.pixels.conv.bias" in state,
        "context_conv_bias": "decode_head.value.conv.bias" in state,
        "auxiliary_conv_bias": "auxiliary_heads.0.conv.conv.bias" in state,
        "auxiliary_hidden_size": width("auxiliary_heads.0.conv.conv"),
        "auxiliary_kernel_size": state["auxiliary_heads.0.conv.conv.weight"].shape[-1],
    }
    if f"{encoder}stem.0.weight" in state:
        stem = range(0, 3 * count(state, r"backbone\.encoder\.stem\.(\d+)\.") // 2, 3)  # convolution, norm, activation
        return {
            **fields,
            "backbone_type": "resnet",
            "num_channels": state[f"{encoder}stem.0.weight"].shape[1],
            "stem_hidden_sizes": [width(f"{encoder}stem.{i}") for i in stem],
            "hidden_sizes": [width(f"{encoder}layer{i}.0.conv3") for i in range(1, 5)],
            "depths": [count(state, rf"backbone\.encoder\.layer{i}\.(\d+)\.") for i in range(1, 5)],
        }
    stages = [rf"backbone\.encoder\.stage{i}\." for i in range(2, 5)]
    return {
        **fields,
        "backbone_type": "hrnet",
        "num_channels": state[f"{encoder}conv1.weight"].shape[1],
        "stem_hidden_sizes": [width(f"{encoder}conv1"), width(f"{encoder}conv2")],
        "layer1_hidden_size": width(f"{encoder}layer1.0.conv1"),
        "hidden_sizes": [width(f"{encoder}stage4.0.branches.{i}.0.conv1") for i in range(4)],
        "depths": [count(state, r"backbone\.encoder\.layer1\.(\d+)\.")]
        + [count(state, stage + r"0\.branches\.0\.(\d+)\.") for stage in stages],
        "num_modules": [1] + [count(state, stage + r"(\d+)\.") for stage in stages],
    }


def ocrnet_authors(state: StateDict) -> dict:
    fields = ocrnet_fields(state)
    # The authors' ResNet is openseg's, which rounds up in the pooling after the stem.
    return {**fields, "align_corners": True, "pool_ceil_mode": fields["backbone_type"] == "resnet"}


def ocrnet_authors_in_place(state: StateDict) -> dict:
    fields = ocrnet_authors(state)
    for name in [name for name in state if name.endswith(".running_mean")]:
        # In-place activated BatchNorm scales with |weight| + eps.
        state[name.replace("running_mean", "weight")] = state[name.replace("running_mean", "weight")].abs() + 1e-5
    return {**fields, "decoder_hidden_act": "leaky_relu"}


def brick_names(match: re.Match) -> str:
    """Convolutions and norms that the authors count in one row, 0 to 3; the norm may be in a list of its own."""
    layer = {"f_pixel": "query", "f_object": "key", "f_down": "value", "f_up": "context"}[match[1]]
    pair = f".{int(match[2]) // 2}" if layer in ("query", "key") else ""
    return f"decode_head.{layer}{pair}.{'norm' if int(match[2]) % 2 else 'conv'}."


OCRNET_AUTHORS = {
    r"^model\.": "",
    r"^(?:aux|dsn)_head\.0\.": "auxiliary_heads.0.conv.conv.",
    r"^(?:aux|dsn)_head\.1\.(?:0\.)?": "auxiliary_heads.0.conv.norm.",
    r"^(?:aux|dsn)_head\.[23]\.": "auxiliary_heads.0.classifier.",
    r"^(?:conv3x3_ocr|conv_?3x3)\.0\.": "decode_head.pixels.conv.",
    r"^(?:conv3x3_ocr|conv_?3x3)\.1\.(?:0\.)?": "decode_head.pixels.norm.",
    r"^\w+\.object_context_block\.(f_\w+)\.(\d)\.(?:0\.)?": brick_names,
    r"^\w+\.conv_bn_dropout\.0\.": "decode_head.augmented.conv.",
    r"^\w+\.conv_bn_dropout\.1\.(?:0\.)?": "decode_head.augmented.norm.",
    r"^(?:cls_)?head\.": "decode_head.classifier.",
    r"^backbone\.(?:resinit|prefix)\.(conv|bn)(\d)\.": lambda m: (
        f"backbone.encoder.stem.{3 * int(m[2]) - 3 + (m[1] == 'bn')}."
    ),
    r"^(?:backbone\.)?(conv\d|bn\d|layer\d|transition\d|stage\d)\.": r"backbone.encoder.\1.",
}
# class weights of the loss; the ImageNet classifier
UNUSED_OF_OCRNET = r"^loss\.|^(backbone\.)?(incre_modules|downsamp_modules|final_layer)\."

SOURCES = {
    "OCRNet of this package": Source(
        marks=(r"^backbone\.encoder\.", r"^auxiliary_heads\.0\.conv\.conv\.", r"^decode_head\.pixels\."),
        read=ocrnet_fields,
    ),
    "OCRNet of the authors (HRNet-OCR, openseg) with in-place BatchNorm": Source(
        marks=(r"\.object_context_block\.f_pixel\.1\.weight$",),
        left_out=UNUSED_OF_OCRNET,
        names=OCRNET_AUTHORS,
        read=ocrnet_authors_in_place,
    ),
    "OCRNet of the authors (HRNet-OCR, openseg)": Source(
        marks=(r"\.object_context_block\.f_pixel\.1\.0\.weight$",),
        left_out=UNUSED_OF_OCRNET,
        names=OCRNET_AUTHORS,
        read=ocrnet_authors,
    ),
    "OCRNet of mmsegmentation": Source(
        marks=(r"^decode_head\.1\.object_context_block\.",),
        names={
            r"^backbone\.": "backbone.encoder.",
            r"^decode_head\.0\.convs\.0\.": "auxiliary_heads.0.conv.",
            r"^decode_head\.0\.conv_seg\.": "auxiliary_heads.0.classifier.",
            r"^decode_head\.1\.object_context_block\.bottleneck\.": "decode_head.augmented.",
            r"^decode_head\.1\.object_context_block\.(\w+)_project\.": r"decode_head.\1.",
            r"^decode_head\.out\.": "decode_head.context.",
            r"^decode_head\.1\.bottleneck\.": "decode_head.pixels.",
            r"^decode_head\.1\.conv_seg\.": "decode_head.classifier.",
            r"^(decode_head|auxiliary_heads)\.(.*)\.bn\.": r"\1.\2.norm.",
        },
        read=ocrnet_fields,
    ),
}


UNUSED_OF_CONVOLUTIONAL = r"^(fc|classifier|incre_modules|downsamp_modules|final_layer)\."  # ImageNet classifiers


def load_backbone(backbone: PreTrainedModel, file: Path) -> None:
    """The part of `load_backbone` that is OCRNet's: HRNet or ResNet of timm, torchvision or the authors."""
    where = str(file)
    state = backbone_of(read_state_dict(file), where)
    state = {name.removeprefix("encoder."): tensor for name, tensor in state.items()}
    state = {name: tensor for name, tensor in state.items() if not re.search(UNUSED_OF_CONVOLUTIONAL, name)}
    try:
        check_tensors(state)
        if "stage2.0.branches.0.0.conv1.weight" not in state and "stem.0.weight" not in state:
            last = 7 if "conv1.0.weight" in state else 1  # a ResNet, whose stem has one or three convolutions
            state = renamed(state, {r"^conv1\.(\d)\.": r"stem.\1.", r"^conv1\.": "stem.0.", r"^bn1\.": f"stem.{last}."})
        backbone.encoder.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{where} does not fit the backbone; if it is the stem, set `stem_hidden_sizes` ([64] for a 7x7 "
            f"convolution, [32, 32, 64] or [64, 64, 128] for three): {error}"
        ) from error
