"""A model on a pre-trained backbone of transformers or timm: configuration, weights and image processor.

`...ForSemanticSegmentation.from_backbone` is the way in. transformers' own way, `AutoBackbone.from_pretrained`, takes
no folders, and a model with a `backbone_config` alone has random weights; here every weight of the backbone is one of
the file, or an error says which is not.
"""

import logging
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel, TimmBackboneConfig
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING

from .feature_maps import layout_of


logger = logging.getLogger(__name__)


class Weights(NamedTuple):
    """A pre-trained backbone.

    Attributes:
        config: of the backbone, with the maps that were asked for.
        state: its parameters and buffers, under the names of `AutoBackbone`'s class.
        mean, std: of each channel, in [0, 1], as it was trained.
        fresh: parameters of norms that the file does not have, and that are 1 and 0.
        left_out: parameters of the file that the backbone does not have.
    """

    config: PreTrainedConfig
    state: dict[str, torch.Tensor]
    mean: list[float]
    std: list[float]
    fresh: list[str]
    left_out: list[str]


def read_backbone(
    name_or_path: str | Path,
    reads: str,
    out_indices: list[int] | None,
    weights_file: str | Path | None,
    num_channels: int,
    hub: dict | None = None,
) -> Weights:
    """A backbone and its weights.

    Args:
        name_or_path: folder or name on the Hub, of transformers or timm; with `weights_file` a name of timm's.
        reads: what the head wants if `out_indices` is None: see [`default_indices`].
        out_indices: maps to read, as the library numbers them.
        weights_file: weights of a network of timm.
        num_channels: of the images; timm adapts the first convolution to others than 3.
        hub: `revision`, `cache_dir`, `token` of the download.

    Raises:
        ValueError: if there is no such backbone, or weights would be left random or are not finite.
        OSError: if a folder, file or repository cannot be read.
    """
    hub, name = hub or {}, str(name_or_path)
    try:
        content = {} if weights_file else PreTrainedConfig.get_config_dict(name, **hub)[0]
    except OSError as error:
        if Path(name).exists():
            raise
        raise OSError(f"{name}: no such folder, and the Hub gives none: {error}") from error
    if weights_file or content.get("model_type", "timm_wrapper") == "timm_wrapper":  # what transformers makes of timm's
        weights = _of_timm(name, reads, out_indices, weights_file, num_channels, hub)
    else:
        weights = _of_transformers(name, reads, out_indices, hub)
    for key, tensor in weights.state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name}: the weight {key} is not finite; the file is damaged")
    if weights.fresh:
        logger.warning(f"{name} has no {', '.join(weights.fresh)}: these norms begin with scale 1 and shift 0")
    if weights.left_out:
        logger.info(f"{name}: the backbone has no use for {', '.join(sorted(weights.left_out))}")
    return weights


def default_indices(config: PreTrainedConfig, reads: str) -> list[int]:
    """The maps that a head reads if nothing is said, as `out_indices`.

    Of a plain ViT: the last block for "pyramid" and "last"; else four at even distances. Of a hierarchical backbone the
    last stage of each stride: from 4 on for "pyramid" and "stages", the last two for the other heads, to be fused.

    Args:
        reads: "pyramid" or, without one, "stages" (SegFormer, OCRNet), "layers" (SETR) or "last" (Segmenter).
    """
    config = type(config).from_dict(config.to_dict())
    if isinstance(config, TimmBackboneConfig):
        with torch.device("meta"):
            names = AutoBackbone.from_config(config).stage_names
    else:
        names = config.stage_names
    config.out_indices = list(range(len(names)))
    strides = layout_of(config).strides
    if len(set(strides)) == 1:
        first = int(names[0] == "stem")
        blocks = len(names) - first
        every = sorted({max((i + 1) * blocks // 4 - 1, 0) + first for i in range(4)})
        return every[-1:] if reads in ("pyramid", "last") else every
    last_of_stride = {stride: index for index, stride in enumerate(strides) if stride >= 4}
    chosen = sorted(last_of_stride.values())
    return chosen if reads in ("pyramid", "stages") else chosen[-2:]


def _of_transformers(name: str, reads: str, out_indices: list[int] | None, hub: dict) -> Weights:
    config = AutoConfig.from_pretrained(name, **hub)
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        raise ValueError(
            f"{name}: transformers has no backbone of the model_type {config.model_type!r}; take one that it has, as "
            "DINOv2, DINOv3, ConvNeXt V2 or Swin, or this network of timm, as 'timm/vit_base_patch16_clip_224.openai'"
        )
    config.out_indices = out_indices or default_indices(config, reads)
    config.num_labels = 2  # a classifier's names are none of the backbone's business
    kind = MODEL_FOR_BACKBONE_MAPPING[type(config)]
    try:
        backbone, report = kind.from_pretrained(name, config=config, output_loading_info=True, **hub)
    except RuntimeError as error:
        raise ValueError(f"{name}: the weights do not fit config.json: {' '.join(str(error).split())[:500]}") from error
    fresh = sorted(report["missing_keys"])
    for key in fresh:
        module = type(backbone.get_submodule(key.rpartition(".")[0])).__name__
        if "Norm" not in module:
            raise ValueError(
                f"{name} lacks {len(fresh)} weights of {kind.__name__}, such as {key}, which would be random; take a "
                "checkpoint of this network"
            )
    mean, std = _statistics(name, hub)
    config.dtype = None  # the model's is that of the whole
    return Weights(config, backbone.float().state_dict(), mean, std, fresh, sorted(report["unexpected_keys"]))


def _statistics(name: str, hub: dict) -> tuple[list[float], list[float]]:
    """Mean and standard deviation that the images of a checkpoint of transformers are normalised with."""
    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(name, **hub)
    except OSError:
        logger.warning(f"{name} has no preprocessor_config.json; ImageNet's mean and standard deviation are assumed")
        settings = {}
    if not settings.get("do_normalize", True):
        return [0.0] * 3, [1.0] * 3
    return settings.get("image_mean", IMAGENET_DEFAULT_MEAN), settings.get("image_std", IMAGENET_DEFAULT_STD)


def _of_timm(
    name: str, reads: str, out_indices: list[int] | None, weights_file, num_channels: int, hub: dict
) -> Weights:
    import timm

    if weights_file is not None:
        if not Path(weights_file).is_file():
            raise OSError(f"weights_file {weights_file} is no file")
        source, options = name.removeprefix("timm/"), {"pretrained_cfg_overlay": {"file": str(weights_file)}}
    else:
        source = f"local-dir:{name}" if Path(name).is_dir() else f"hf-hub:{name}@{hub.get('revision') or 'main'}"
        options = {"cache_dir": hub["cache_dir"]} if hub.get("cache_dir") else {}
    try:
        whole = timm.create_model(source, pretrained=True, in_chans=num_channels, **options)
    except RuntimeError as error:  # of another name or size
        raise ValueError(f"{name}: {' '.join(str(error).split())[:500]}") from error
    facts = whole.pretrained_cfg
    config = TimmBackboneConfig(backbone=facts["architecture"], num_channels=num_channels)
    config.out_indices = out_indices or default_indices(config, reads)
    state, used = {}, set()
    source_state = whole.state_dict()
    backbone = AutoBackbone.from_config(config, **layout_of(config).options)
    for key, tensor in backbone.state_dict().items():
        plain = key.removeprefix("_backbone.").removeprefix("model.")
        found = plain if plain in source_state else re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", plain)
        if found not in source_state or source_state[found].shape != tensor.shape:
            raise ValueError(f"{name} has no weight {found} of the shape {tuple(tensor.shape)}, which would be random")
        state[key] = source_state[found]
        used.add(found)
    left_out = sorted(source_state.keys() - used)
    return Weights(config, state, list(facts["mean"]), list(facts["std"]), [], left_out)


def build_on_backbone(model_class: type[nn.Module], weights: Weights, size: str | None, fields: dict):
    """The model with the weights in its backbone, and the image processor.

    Args:
        model_class: a `...ForSemanticSegmentation`.
        size: a published size, whose head the model gets.
        fields: of the configuration.
    """
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING  # registers this package

    fields = {"backbone_config": weights.config, **fields}
    if model_class._reads != "stages" and len(set(layout_of(weights.config).strides)) > 1:
        fields.setdefault("feature_scaling", "fuse")
    kind = model_class.config_class
    config = kind.from_size(size, **fields) if size else kind(**fields)
    model: PreTrainedModel = model_class(config)
    encoder = model.base_model.encoder
    encoder.backbone.load_state_dict(weights.state)
    processor = IMAGE_PROCESSOR_MAPPING[kind]["torchvision"](
        image_mean=weights.mean,
        image_std=weights.std,
        size_divisor=encoder.patch_size,
        window_size=encoder.fixed_size and list(encoder.fixed_size),
    )
    return model.eval(), processor.follow(config)
