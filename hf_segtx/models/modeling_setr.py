"""SETR: semantic segmentation as a sequence-to-sequence problem, a Vision Transformer under three kinds of head.

Paper: Zheng et al., CVPR 2021, arXiv 2012.15840. Authors' code: fudan-zvg/SETR.
Differs from it in how things are computed, not in what: logits are left at the head's own resolution, and a 1x1
classifier, which commutes with bilinear upsampling, is applied before it.

    image (B, 3, H, W) -- patches -- ViT blocks, no final norm -- maps of chosen blocks (B, C, h, w)

    naive: last map -- norm, 1x1 conv, classifier -- (B, K, h, w)                          x16 at the end
    pup:   last map -- norm, 4 x [3x3 conv, upsample x2], classifier -- (B, K, 8h, 8w)     x2 at the end
    mla:   four maps -- norm, 1x1 conv; sum from the deepest up; 3x3 conv -- levels p2..p5 (B, C', h, w)
           level -- two 3x3 convs, upsample x4 --. concat, classifier -- (B, K, 4h, 4w)    x4 at the end

Auxiliary heads predict from the other maps (naive, pup) or from the levels (mla), in training only.

Shapes: B images, K classes, C channels; (H, W) the image, (h, w) the grid of patches, (H, W) / 16 as published.
"""

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_setr import SETRConfig
from .feature_maps import FeatureMaps
from .layers import ConvNormAct, crop_padding, weight_of
from .segmentation_base import SegmentationOutput, SegmentationPreTrainedModel
from .vision_transformer import Attention, Block, VisionTransformer


@dataclass
class SETRModelOutput(BaseModelOutput):
    """Output of [`SETRModel`].

    Args:
        last_hidden_state: (B, P + N, C) tokens after the last block, class token first; without it (P = 0) for "mla".
        hidden_states, attentions: tokens of the blocks and weights (B, heads, P + N, P + N), on request.
        feature_maps: (B, C, h, w) of every block in `feature_indices`, shallow to deep; for "mla" the levels that its
            neck makes of them, (B, decoder_hidden_size, h, w).
    """

    feature_maps: tuple[torch.Tensor, ...] | None = None


def upsample(feature_map: torch.Tensor, factor: int, align_corners: bool = False) -> torch.Tensor:
    """(B, C, h, w) -> (B, C, factor h, factor w), bilinear."""
    if factor == 1:
        return feature_map
    return F.interpolate(feature_map, scale_factor=factor, mode="bilinear", align_corners=align_corners)


def normalize(norm: nn.LayerNorm, feature_map: torch.Tensor) -> torch.Tensor:
    """LayerNorm over the channels of a map (B, C, h, w); the result is channels-last in memory."""
    return norm(feature_map.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SETRUpsamplingHead(nn.Module):
    """The naive head and progressive upsampling (PUP), Section 3.3 (1) and (2); also as auxiliary heads.

    The 1x1 classifier stands before the last upsampling: the same function, at a fraction of the work.

    Args:
        factors: one convolution per entry, followed by upsampling by that factor.

    Shape:
        feature_map: (B, C, h, w)
        returns: logits (B, K, s h, s w), s the product of the factors
    """

    def __init__(self, config: SETRConfig, factors: list[int], channels: int):
        super().__init__()
        self.factors = list(factors)
        width = config.decoder_hidden_size
        widths = [channels] + [width] * len(self.factors)
        kernel_size = 1 if config.decode_head == "naive" else 3
        self.norm = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.convs = nn.ModuleList(
            ConvNormAct(n, width, kernel_size, bias=config.decoder_conv_bias) for n in widths[:-1]
        )
        self.classifier = nn.Conv2d(width, config.num_labels, 1)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        x = normalize(self.norm, feature_map)
        for conv, factor in zip(self.convs[:-1], self.factors[:-1]):
            x = upsample(conv(x), factor)
        return upsample(self.classifier(self.convs[-1](x)), self.factors[-1])


class SETRMLANeck(nn.Module):
    """Levels of multi-level feature aggregation (MLA), Section 3.3 (3): reduced, summed from the deepest up, convolved.

    Shape:
        feature_maps: four (B, C, h, w), shallow to deep
        returns: four (B, decoder_hidden_size, h, w), p2 to p5 in the authors' code
    """

    def __init__(self, config: SETRConfig, channels: list[int]):
        super().__init__()
        width = config.decoder_hidden_size
        self.norms = nn.ModuleList(nn.LayerNorm(n, eps=config.layer_norm_eps) for n in channels)
        self.projections = nn.ModuleList(ConvNormAct(n, width) for n in channels)
        self.convs = nn.ModuleList(ConvNormAct(width, width, 3) for _ in channels)

    def forward(self, feature_maps: list[torch.Tensor]) -> list[torch.Tensor]:
        maps = [conv(normalize(norm, x)) for norm, conv, x in zip(self.norms, self.projections, feature_maps)]
        for level in reversed(range(len(maps) - 1)):
            maps[level] = maps[level] + maps[level + 1]
        return [conv(x) for conv, x in zip(self.convs, maps)]


class SETRMLAHead(nn.Module):
    """The MLA head, Section 3.3 (3) and Figure 1(c): two convolutions per level, upsample, concatenate, classify.

    The classifier's kernel is a sum of 1x1 convolutions, one per tap, each moved by a pixel or none. These commute with
    upsampling, so they work at the patches' resolution: 1/16 of the multiplications, and 512 channels stay small.

    Shape:
        levels: four (B, decoder_hidden_size, h, w)
        returns: logits (B, K, 4h, 4w)
    """

    def __init__(self, config: SETRConfig):
        super().__init__()
        self.align_corners = config.mla_align_corners
        levels, wide, width = len(config.feature_indices), config.decoder_hidden_size, config.mla_hidden_size
        self.convs = nn.ModuleList(
            nn.Sequential(ConvNormAct(wide, width, 3), ConvNormAct(width, width, 3)) for _ in range(levels)
        )
        # Columns: shallowest level first.
        kernel_size = config.mla_classifier_kernel_size
        self.classifier = nn.Conv2d(levels * width, config.num_labels, kernel_size)

    def forward(self, levels: tuple[torch.Tensor, ...]) -> torch.Tensor:
        x = torch.cat([convs(level) for convs, level in zip(self.convs, levels)], dim=1)  # (B, 4 * width, h, w)
        kernel = weight_of(self.classifier).permute(2, 3, 0, 1).flatten(0, 2)  # (taps * K, 4 * width)
        taps = F.conv2d(x, kernel[..., None, None]).split(len(self.classifier.bias), dim=1)  # (B, K, h, w) each
        reach = self.classifier.kernel_size[0] // 2
        offsets = itertools.product(range(-reach, reach + 1), repeat=2)
        logits = self.classifier.bias[:, None, None]
        for tap, (down, right) in zip(taps, offsets):
            moved = F.pad(upsample(tap, 4, self.align_corners), (-right, right, -down, down))  # zeros come in
            logits = logits + moved  # (B, K, 4h, 4w)
        return logits


class SETRPreTrainedModel(SegmentationPreTrainedModel):
    """Base class: initialisation and what can be recorded."""

    config: SETRConfig
    _no_split_modules = ["Block"]
    _can_record_outputs = {"hidden_states": Block, "attentions": OutputRecorder(Attention, index=1)}
    _auto_map = {
        "AutoModel": "modeling_setr.SETRModel",
        "AutoModelForSemanticSegmentation": "modeling_setr.SETRForSemanticSegmentation",
    }

    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, VisionTransformer):
            module.initialize_tokens(self.config.initializer_range)


class SETRModel(SETRPreTrainedModel):
    """The Vision Transformer as SETR reads it, Section 3.2: raw outputs of blocks, no final norm.

    The "mla" kind leaves the class token out before the first block, as both the authors' and mmsegmentation's code do.
    Its neck counts as part of the backbone, as in the authors' code, which trains it at the backbone's learning rate.

    Shape:
        pixel_values: (B, num_channels, H, W), normalised; any size
        returns: [`SETRModelOutput`], maps at 1 / patch_size of the image
    """

    _keys_to_ignore_on_load_unexpected = [r"^(decode_head|auxiliary_heads)\."]  # when read from a whole checkpoint

    def __init__(self, config: SETRConfig):
        super().__init__(config)
        mla, self.neck = config.decode_head == "mla", None
        if config.backbone_config is None:
            self.vit = VisionTransformer(config, final_norm=False, drop_prefix=mla)
            self.neck = SETRMLANeck(config, [config.hidden_size] * 4) if mla else None
        else:
            self.encoder = FeatureMaps(config)
            config.patch_size = self.encoder.patch_size
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        if self.config.backbone_config is not None:
            return self.encoder.backbone.get_input_embeddings()
        return self.vit.patch_embed

    def forward(self, pixel_values: torch.Tensor, **kwargs) -> SETRModelOutput:
        if self.config.backbone_config is not None:
            return self.read_maps(SETRModelOutput, pixel_values, **kwargs)
        return self.encode(pixel_values, **kwargs)

    @capture_outputs
    def encode(self, pixel_values: torch.Tensor, **kwargs) -> SETRModelOutput:
        """`forward` of the architecture's own encoder."""
        tokens, feature_maps = self.vit(pixel_values, tuple(self.config.feature_indices), **kwargs)
        if self.neck is not None:
            feature_maps = self.neck(feature_maps)
        return SETRModelOutput(last_hidden_state=tokens, feature_maps=tuple(feature_maps))


class SETRForSemanticSegmentation(SETRPreTrainedModel):
    """SETR: a Vision Transformer and the "naive", "pup" or "mla" head.

    An image whose sides are not multiples of the patch is padded to that, and its logits are cropped; they then have
    the size of the image.

    Shape:
        pixel_values: (B, num_channels, H, W), normalised
        labels: (B, H', W') class ids or the ignore index, of the image's size, or scaled
        windows: (B, 7), where the images lie, for post-processing; returned as they are
        returns: [`SegmentationOutput`] with logits (B, K, s h, s w), s = 1 (naive), 8 (pup) or 4 (mla) as published
    """

    _reads = "layers"

    def __init__(self, config: SETRConfig):
        config.name_background()
        super().__init__(config)
        self.backbone = SETRModel(config)
        self.neck, self.levels = self.build_neck(), None
        channels = [config.hidden_size] * len(config.feature_indices)
        if config.backbone_config is not None:
            channels = [self.neck.channels[index] for index in config.feature_indices]
            if config.decode_head == "mla":  # of another's maps the levels are new, and so no part of the backbone
                strides = [self.neck.strides[index] for index in config.feature_indices]
                if len(set(strides)) > 1:
                    raise ValueError(
                        f"decode_head 'mla' adds maps of one size, but those of the backbone have the strides "
                        f"{strides}; choose 'naive' or 'pup', with feature_scaling='fuse'"
                    )
                self.levels = SETRMLANeck(config, channels)
        if config.decode_head == "mla":
            self.decode_head = SETRMLAHead(config)
            auxiliary_heads = [
                nn.Conv2d(config.decoder_hidden_size, config.num_labels, 1, bias=config.auxiliary_bias)
                for _ in config.auxiliary_levels
            ]
        else:
            self.decode_head = SETRUpsamplingHead(config, config.decoder_upsampling, channels[-1])
            auxiliary_heads = [
                SETRUpsamplingHead(config, config.auxiliary_upsampling, channels[level])
                for level in config.auxiliary_levels
            ]
        self.auxiliary_heads = nn.ModuleList(auxiliary_heads)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        windows: torch.Tensor | None = None,
        output_auxiliary_logits: bool = False,
        **kwargs,
    ) -> SegmentationOutput:
        features = self.features(pixel_values, **kwargs)
        levels = self.neck(features.feature_maps)
        if self.config.backbone_config is not None:
            levels = [levels[index] for index in self.config.feature_indices]
            levels = levels if self.levels is None else self.levels(levels)
        logits = self.decode_head(levels if self.config.decode_head == "mla" else levels[-1])
        auxiliary_logits = []
        if output_auxiliary_logits or (self.training and labels is not None):
            auxiliary_logits = [
                head(levels[level]) for head, level in zip(self.auxiliary_heads, self.config.auxiliary_levels)
            ]
        logits, *auxiliary_logits = (
            crop_padding(x, pixel_values.shape[2:], self.config.patch_size) for x in (logits, *auxiliary_logits)
        )
        loss = None if labels is None else self.loss_function(logits, labels, self.config, auxiliary_logits)
        return SegmentationOutput(
            loss=loss,
            logits=logits,
            hidden_states=features.hidden_states,
            attentions=features.attentions,
            auxiliary_logits=tuple(auxiliary_logits) if output_auxiliary_logits else None,
            windows=windows,
        )


# pipeline("image-segmentation") knows the model classes it supports by this table only.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.setdefault(SETRConfig.model_type, "SETRForSemanticSegmentation")
