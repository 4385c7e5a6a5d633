"""Weights from elsewhere: whole checkpoints of other code bases, and pre-trained backbones.

`load_original` turns a checkpoint of the authors' code or of mmsegmentation into a model of this package. A source is
one row of `SOURCES`: keys by which it is known, keys that are left out, a table of renamings, and a function that reads
the configuration off the shapes. `load_backbone` puts ImageNet weights into the backbone of a model.

Files: safetensors, torch pickles (read with `weights_only=True`, so a file cannot run code) and, for ViT, JAX `.npz`.
"""

import logging
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from .models.configuration_ocrnet import OCRNetConfig
from .models.configuration_segformer import SegFormerConfig
from .models.configuration_segmenter import SegmenterConfig
from .models.configuration_setr import SETRConfig
from .models.modeling_ocrnet import OCRNetForSemanticSegmentation, OCRNetModel
from .models.modeling_segformer import TRANSFORMERS_NAMES, SegFormerForSemanticSegmentation
from .models.modeling_segmenter import SegmenterForSemanticSegmentation
from .models.modeling_setr import SETRForSemanticSegmentation


logger = logging.getLogger(__name__)

StateDict = dict[str, torch.Tensor]
Names = dict[str, str | Callable[[re.Match], str]]  # regular expression -> replacement; all apply, in this order


def read_state_dict(path: str | Path) -> StateDict:
    """The tensors of a file, by name; of a pickle with more in it, those under "state_dict" or "model".

    Raises:
        ValueError: if a pickle holds no state dict, or anything that could run code.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} is no PyTorch file, or holds objects besides tensors, which could run code ({reason}). If you "
            "trust it, save its tensors alone where its own package is installed: "
            'torch.save(torch.load(path, weights_only=False)["state_dict"], new_path)'
        ) from error
    for name in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no state dict but a {type(content).__name__}; give a file of named tensors")
    return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}


def read_class_names(path: str | Path) -> list[str] | None:
    """The names that mmsegmentation writes into a checkpoint beside the tensors; None in files of others."""
    content = None if Path(path).suffix in (".safetensors", ".npz") else torch.load(path, "cpu", weights_only=True)
    meta = content.get("meta") if isinstance(content, dict) else None
    if not isinstance(meta, dict):
        return None
    names = (meta.get("dataset_meta") or {}).get("classes") or meta.get("CLASSES")  # mmsegmentation 1, 0
    return [str(name) for name in names] if names else None


def renamed(state: StateDict, names: Names) -> StateDict:
    """The same tensors under other names; two that would get the same name raise."""
    result = {}
    for name, tensor in state.items():
        for pattern, replacement in names.items():
            name = re.sub(pattern, replacement, name)
        if name in result:
            raise ValueError(f"two tensors of the checkpoint would both be called {name}; it is not of a known source")
        result[name] = tensor
    return result


def count(state: StateDict, pattern: str) -> int:
    """How many different numbers stand in the place of the group of `pattern`: of blocks, heads, convolutions."""
    return len({match[1] for match in map(re.compile(pattern).match, state) if match})


# ------------------------------------------------------------------------------ whole checkpoints of other code bases


class Source(NamedTuple):
    """A code base whose checkpoints are understood.

    Attributes:
        marks: regular expressions; a checkpoint is of this source if each is found in one of its keys.
        left_out: matches keys of weights that take no part in the prediction.
        names: renamings to ours.
        read: takes the remaining tensors under our names, repairs them in place where layouts differ, and returns the
            fields of the configuration.
    """

    marks: tuple[str, ...]
    left_out: str
    names: Names
    config_class: type
    model_class: type[PreTrainedModel]
    read: Callable[[StateDict], dict]


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


def setr_upsampling_authors(state: StateDict) -> dict:
    # All convolutions have numbers; the last of a head, without a norm, is the classifier.
    for name in list(state):
        match = re.fullmatch(r"(.+)\.convs\.(\d)\.conv\.(weight|bias)", name)
        if match and f"{match[1]}.convs.{match[2]}.norm.weight" not in state:
            state[f"{match[1]}.classifier.{match[3]}"] = state.pop(name)
    fields = setr_fields(state)
    if fields["decode_head"] == "pup":
        # x2 after each convolution; the last one's is left to the final resize. Auxiliary heads: x4 after the only one.
        fields["decoder_upsampling"] = [2] * (count(state, r"decode_head\.convs\.(\d)\.") - 1) + [1]
        fields["auxiliary_upsampling"] = [4]
    return fields


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


def add_patch_bias(state: StateDict):
    """The ViT of mmsegmentation 1.2.2 has no bias in its patch embedding unless it is asked for."""
    width = state["backbone.vit.patch_embed.proj.weight"].shape[0]
    state.setdefault("backbone.vit.patch_embed.proj.bias", torch.zeros(width))


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


def segmenter_variant(path: Path) -> dict:
    """What the authors' variant.yml, beside their checkpoint.pth, says of the network and the weights do not.

    Raises:
        ValueError: if it does not describe a Segmenter.
    """

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
    except (KeyError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} does not describe a Segmenter (`net_kwargs`): {error}") from error
    return fields


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
        config_class=SegFormerConfig,
        model_class=SegFormerForSemanticSegmentation,
        read=segformer_authors,
    ),
    "SegFormer of transformers": Source(
        marks=(r"^segformer\.", r"^decode_head\.linear_fuse\."),
        left_out=r"^$",
        names=TRANSFORMERS_NAMES,
        config_class=SegFormerConfig,
        model_class=SegFormerForSemanticSegmentation,
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
        config_class=SegFormerConfig,
        model_class=SegFormerForSemanticSegmentation,
        read=segformer_mmsegmentation,
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
        config_class=SETRConfig,
        model_class=SETRForSemanticSegmentation,
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
        config_class=SETRConfig,
        model_class=SETRForSemanticSegmentation,
        read=setr_fields,
    ),
    "SETR-Naive or -PUP of mmsegmentation": Source(
        marks=(r"^backbone\.layers\.0\.attn\.attn\.", r"^decode_head\.up_convs\.", r"^decode_head\.norm\."),
        left_out=r"^$",
        names={
            **MMSEGMENTATION_VIT,
            r"^auxiliary_head\.": "auxiliary_heads.",
            r"\.up_convs\.(\d)\.0\.": r".convs.\1.",
            r"\.bn\.": ".norm.",
            r"\.conv_seg\.": ".classifier.",
        },
        config_class=SETRConfig,
        model_class=SETRForSemanticSegmentation,
        read=setr_upsampling_mmsegmentation,
    ),
    "SETR-MLA of mmsegmentation": Source(
        marks=(r"^backbone\.layers\.0\.attn\.attn\.", r"^decode_head\.up_convs\.", r"^neck\.mla\."),
        left_out=r"^$",
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
        config_class=SETRConfig,
        model_class=SETRForSemanticSegmentation,
        read=setr_mla_mmsegmentation,
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
        config_class=SegmenterConfig,
        model_class=SegmenterForSemanticSegmentation,
        read=segmenter_authors,
    ),
    "Segmenter of mmsegmentation": Source(
        marks=(r"^backbone\.layers\.0\.attn\.attn\.", r"^backbone\.ln1\.", r"^decode_head\.(conv_seg\.|cls_emb$)"),
        left_out=r"^$",
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
        config_class=SegmenterConfig,
        model_class=SegmenterForSemanticSegmentation,
        read=segmenter_mmsegmentation,
    ),
    "OCRNet of the authors (HRNet-OCR, openseg) with in-place BatchNorm": Source(
        marks=(r"\.object_context_block\.f_pixel\.1\.weight$",),
        left_out=UNUSED_OF_OCRNET,
        names=OCRNET_AUTHORS,
        config_class=OCRNetConfig,
        model_class=OCRNetForSemanticSegmentation,
        read=ocrnet_authors_in_place,
    ),
    "OCRNet of the authors (HRNet-OCR, openseg)": Source(
        marks=(r"\.object_context_block\.f_pixel\.1\.0\.weight$",),
        left_out=UNUSED_OF_OCRNET,
        names=OCRNET_AUTHORS,
        config_class=OCRNetConfig,
        model_class=OCRNetForSemanticSegmentation,
        read=ocrnet_authors,
    ),
    "OCRNet of mmsegmentation": Source(
        marks=(r"^decode_head\.1\.object_context_block\.",),
        left_out=r"^$",
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
        config_class=OCRNetConfig,
        model_class=OCRNetForSemanticSegmentation,
        read=ocrnet_fields,
    ),
}


def load_original(path_or_state_dict: str | Path | StateDict, **config_overrides) -> PreTrainedModel:
    """The model of a checkpoint of the authors' code or of mmsegmentation, in evaluation mode.

    Source, architecture and sizes are found in the checkpoint's keys and shapes. What cannot be seen there is taken as
    published and can be given as an override: `num_attention_heads` (64 channels each), `feature_indices`, `image_size`
    (square). Class names come along if the file holds them, as mmsegmentation's do; if not, mind the order: Pascal
    Context's classes are the alphabet's in mmsegmentation (`Labels.named("pascal_context_59_mmsegmentation")`).

    Args:
        path_or_state_dict: a safetensors or pickle file, or named tensors; or the folder of a Segmenter of its authors,
            checkpoint.pth and variant.yml (which is also read when the file is given).
        **config_overrides: fields of the configuration.

    Raises:
        ValueError: if the source is unknown, or if a tensor is missing, left over or of the wrong shape.
    """
    given = path_or_state_dict
    if not isinstance(given, dict):
        given = Path(given) / "checkpoint.pth" if Path(given).is_dir() else Path(given)
        if given.with_name("variant.yml").is_file():
            config_overrides = {**segmenter_variant(given.with_name("variant.yml")), **config_overrides}
    state = dict(given) if isinstance(given, dict) else read_state_dict(given)
    where = "the state dict" if isinstance(given, dict) else str(given)
    state = renamed(state, {r"^module\.": ""})  # of DataParallel
    known = (n for n, s in SOURCES.items() if all(any(re.search(mark, key) for key in state) for mark in s.marks))
    name = next(known, None)
    if name is None:
        raise ValueError(
            f"{where} is of no known source ({'; '.join(SOURCES)}); its first unexpected keys: "
            f"{', '.join(list(state)[:5])}"
        )
    source = SOURCES[name]
    state = renamed({key: value for key, value in state.items() if not re.search(source.left_out, key)}, source.names)
    try:
        model = source.model_class(source.config_class(**{**source.read(state), **config_overrides}))
        missing, unexpected = model.load_state_dict(state, strict=False)
    except (KeyError, RuntimeError) as error:  # a tensor that sizes are read from; shapes that do not fit
        raise ValueError(f"{where} looks like {name}, but does not fit: {error}") from error
    if missing or unexpected:
        raise ValueError(
            f"{where} looks like {name}, but {len(unexpected)} tensors are unexpected ({', '.join(unexpected[:5])}) "
            f"and {len(missing)} are missing ({', '.join(missing[:5])}), by their names here"
        )
    names = None if isinstance(given, dict) or "id2label" in config_overrides else read_class_names(given)
    if names is not None and len(names) == model.config.num_labels:
        names = names if len(names) > 1 else ["background", *names]  # of a label map
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: number for number, name in enumerate(names)}
    return model.eval()


# ---------------------------------------------------------------------------------------------- pre-trained backbones

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
    r"^block(\d)/unit(\d+)/": lambda m: (
        f"patch_embed.backbone.stages.{int(m[1]) - 1}.blocks.{int(m[2]) - 1}."
    ),
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


def backbone_file(name_or_path: str | Path) -> Path:
    """A file, the weights in a folder, or those of a repository of the Hub; a bare name is one of timm's."""
    files = ("model.safetensors", "pytorch_model.bin")
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.is_dir():
        for file in files:
            if (path / file).is_file():
                return path / file
        raise ValueError(f"{path} has neither {' nor '.join(files)}; give the file itself")
    repository = str(name_or_path) if "/" in str(name_or_path) else f"timm/{name_or_path}"
    for file in files:
        try:
            return Path(hf_hub_download(repository, file))
        except EntryNotFoundError as error:
            reason = error
    raise ValueError(
        f"{name_or_path} is no file or folder, and {repository} on the Hub has neither {' nor '.join(files)}, or "
        "cannot be reached"
    ) from reason


UNUSED_OF_CONVOLUTIONAL = r"^(fc|classifier|incre_modules|downsamp_modules|final_layer)\."  # ImageNet classifiers


def load_convolutional_backbone(encoder: torch.nn.Module, file: Path):
    """The part of `load_backbone` that is OCRNet's: HRNet or ResNet of timm, torchvision or the authors."""
    state = read_state_dict(file)
    state = {name: value for name, value in state.items() if not re.search(UNUSED_OF_CONVOLUTIONAL, name)}
    if "stage2.0.branches.0.0.conv1.weight" not in state:  # a ResNet, whose stem has one or three convolutions
        last = 7 if "conv1.0.weight" in state else 1
        state = renamed(state, {r"^conv1\.(\d)\.": r"stem.\1.", r"^conv1\.": "stem.0.", r"^bn1\.": f"stem.{last}."})
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{file} does not fit the backbone; if it is the stem, set `stem_hidden_sizes` ([64] for a 7x7 "
            f"convolution, [32, 32, 64] or [64, 64, 128] for three): {error}"
        ) from error


def load_backbone(model: PreTrainedModel, name_or_path: str | Path):
    """Puts pre-trained weights into the backbone of `model`, in place: of a ViT or DeiT; for OCRNet of HRNet or ResNet.

    Understood: timm (ViT, AugReg, DeiT, distilled DeiT, ViT-hybrid; HRNet, ResNet), transformers (ViT, DeiT), and the
    JAX `.npz` files of ViT. Patch kernels and position tables are resized to the model's; a distillation token that the
    model does not have and the classifier are left out, which is logged.

    Args:
        model: SETR, Segmenter or OCRNet, with or without its head.
        name_or_path: a file; a folder with model.safetensors or pytorch_model.bin; a repository of the Hub
            ("google/vit-large-patch16-224"); or a name of timm ("vit_large_patch16_384.augreg_in21k_ft_in1k").

    Raises:
        ValueError: if there are no such weights, or they do not fit the backbone.
    """
    file = backbone_file(name_or_path)
    if isinstance(model.base_model, OCRNetModel):
        return load_convolutional_backbone(model.base_model.encoder, file)
    vit = model.base_model.vit
    state = as_timm(read_state_dict(file))
    if "pos_embed" not in state or "cls_token" not in state:
        raise ValueError(
            f"{file} is no ViT with class token and position table; its first keys: {', '.join(list(state)[:5])}"
        )
    state = {name: value.float() for name, value in state.items()}

    unused = [name for name in state if re.search(UNUSED_OF_BACKBONE, name)]
    if isinstance(vit.norm, torch.nn.Identity):
        unused += [name for name in ("norm.weight", "norm.bias") if name in state]
    prefix, patches = state["pos_embed"].tensor_split((1 + ("dist_token" in state),), dim=1)
    if "dist_token" in state and vit.dist_token is None:
        prefix = prefix[:, :1]
        unused.append("dist_token")
    for name in unused:
        del state[name]
    if unused:
        logger.warning(f"{file}: left out {', '.join(unused)}")  # shown unless logging is set up otherwise

    side = round(patches.shape[1] ** 0.5)
    if side**2 != patches.shape[1]:
        raise ValueError(f"{file} has a position table of {patches.shape[1]} patches, which is no square")
    if (side, side) != vit.grid_size:
        patches = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, C, side, side)
        patches = F.interpolate(patches, size=vit.grid_size, mode=vit.position_resize_mode, align_corners=False)
        patches = patches.flatten(2).transpose(1, 2)
    state["pos_embed"] = torch.cat((prefix, patches), dim=1)
    kernel, own_kernel = (weights["patch_embed.proj.weight"].shape[-1] for weights in (state, vit.state_dict()))
    if kernel != own_kernel:
        state["patch_embed.proj.weight"] = resized_patch_kernel(state["patch_embed.proj.weight"], own_kernel)

    try:
        vit.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{file} does not fit the backbone: {error}") from error
