"""Segmenter: a Vision Transformer whose patches are classified by a linear layer or by a mask transformer.

Paper: Strudel et al., ICCV 2021, arXiv 2105.05633. Authors' code: rstrudel/segmenter.
Differs from it: logits are left at the resolution of the patches, and positions are resized whenever the grid of
patches is another one (there, whenever their number is).

    image (B, 3, H, W) -- patches -- ViT blocks, norm; class token left out -- patches (B, N, C)

    linear: patches -- classifier -- (B, K, h, w)
    mask:   patches -- projection --.
            class embeddings (K, D) --- concat (B, N + K, D) -- M blocks, norm -- project and normalise both parts,
                                        scalar products patch . class, norm over classes -- (B, K, h, w)

The logits are then upsampled by the side of a patch.

Shapes: B images, K classes, C channels of the encoder, D of the mask transformer, P prefix tokens (class and
distillation), N = h * w patches; (H, W) the image in pixels, (h, w) the grid of patches, ceil((H, W) / patch_size).
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_segmenter import SegmenterConfig, default_heads
from .cpu import Linear
from .feature_maps import FeatureMaps
from .layers import crop_padding, map_to_tokens, tokens_to_map
from .segmentation_base import SegmentationOutput, SegmentationPreTrainedModel
from .vision_transformer import Attention, Block, VisionTransformer


@dataclass
class SegmenterModelOutput(BaseModelOutput):
    """Output of [`SegmenterModel`].

    Args:
        last_hidden_state: (B, P + N, C) tokens after the last block and the final norm, class token first.
        hidden_states, attentions: tokens of the blocks and weights (B, heads, P + N, P + N), on request.
        feature_maps: one (B, C, h, w), the patches of `last_hidden_state`.
    """

    feature_maps: tuple[torch.Tensor, ...] | None = None


class SegmenterLinearHead(nn.Module):
    """A linear classifier on each patch, Section 3.2.

    Shape:
        feature_map: (B, C, h, w)
        returns: logits (B, K, h, w), before softmax
    """

    def __init__(self, config: SegmenterConfig, width: int):
        super().__init__()
        self.classifier = Linear(width, config.num_labels)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return self.classifier(feature_map.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SegmenterMaskHead(nn.Module):
    """The mask transformer, Section 3.3: patches and class embeddings attend to each other, masks are their products.

    Masks(patch, class) = norm(patch) . norm(class), Eq. 4, then a LayerNorm over the classes. With a single class there
    is nothing to normalise over (the result would be constant), so only that norm's scale and shift are applied.

    Shape:
        feature_map: (B, C, h, w)
        returns: logits (B, K, h, w), before softmax
    """

    def __init__(self, config: SegmenterConfig, encoder_width: int):
        super().__init__()
        depth, eps = config.decoder_num_hidden_layers, config.decoder_layer_norm_eps
        width = config.decoder_hidden_size or encoder_width
        heads = config.decoder_num_attention_heads or default_heads(width)
        if width % heads:
            raise ValueError(f"decoder_num_attention_heads {heads} does not divide the width {width}; choose a divisor")
        self.num_labels = config.num_labels
        self.projection = Linear(encoder_width, width)
        self.class_embeddings = nn.Parameter(torch.zeros(1, config.num_labels, width))
        # The encoder's blocks, with the decoder's values under the names that they read.
        block_config = copy.copy(config)
        block_config.hidden_size = width
        block_config.num_attention_heads = heads
        block_config.hidden_dropout_prob = block_config.attention_probs_dropout_prob = config.decoder_dropout_prob
        block_config.layer_norm_eps = eps
        rates = [config.decoder_drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(block_config, rate) for rate in rates)
        for block in self.blocks:
            block.attn.config = config  # where `set_attn_implementation` makes its change
        self.norm = nn.LayerNorm(width, eps=eps)
        self.patch_projection = Linear(width, width, bias=False)
        self.class_projection = Linear(width, width, bias=False)
        self.mask_norm = nn.LayerNorm(config.num_labels, eps=eps)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        patches = self.projection(map_to_tokens(feature_map))  # (B, N, D)
        tokens = torch.cat((patches, self.class_embeddings.expand(patches.shape[0], -1, -1)), dim=1)  # (B, N + K, D)
        for block in self.blocks:
            tokens = block(tokens)
        patches, classes = self.norm(tokens).tensor_split((patches.shape[1],), dim=1)  # (B, N, D), (B, K, D)
        patches = F.normalize(self.patch_projection(patches), dim=-1)
        classes = F.normalize(self.class_projection(classes), dim=-1)
        masks = patches @ classes.transpose(1, 2)  # (B, N, K)
        if self.num_labels == 1:
            masks = masks * self.mask_norm.weight + self.mask_norm.bias
        else:
            masks = self.mask_norm(masks)
        return tokens_to_map(masks, feature_map.shape[2:])  # (B, K, h, w)


class ProbeClassifier(nn.Conv2d):
    """A 1x1 convolution that begins with smaller weights than others."""


class SegmenterProbeHead(nn.Module):
    """DINOv3's linear head (Siméoni et al., arXiv 2508.10104, Section 6.3.2), for maps of a frozen backbone.

    BatchNorm brings the channels, whose sizes differ widely there, to one scale; the backbone's final norm comes first.

    Shape:
        feature_map: (B, C, h, w)
        returns: logits (B, K, h, w), before softmax
    """

    def __init__(self, config: SegmenterConfig, width: int):
        super().__init__()
        self.dropout = nn.Dropout2d(config.decoder_dropout_prob)
        self.norm = nn.BatchNorm2d(width)
        self.classifier = ProbeClassifier(width, config.num_labels, 1)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.norm(self.dropout(feature_map)))


HEADS = {"linear": SegmenterLinearHead, "mask": SegmenterMaskHead, "probe": SegmenterProbeHead}


class SegmenterPreTrainedModel(SegmentationPreTrainedModel):
    """Base class: initialisation and what can be recorded."""

    config: SegmenterConfig
    _no_split_modules = ["Block"]
    _can_record_outputs = {"hidden_states": Block, "attentions": OutputRecorder(Attention, index=1)}
    _auto_map = {
        "AutoModel": "modeling_segmenter.SegmenterModel",
        "AutoModelForSemanticSegmentation": "modeling_segmenter.SegmenterForSemanticSegmentation",
    }

    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, VisionTransformer):
            module.initialize_tokens(self.config.initializer_range)
        elif isinstance(module, ProbeClassifier):  # of the head, which has no tensor of its own, nothing would be asked
            init.normal_(module.weight, mean=0.0, std=0.01)
        elif isinstance(module, SegmenterMaskHead):
            init.trunc_normal_(module.class_embeddings, mean=0.0, std=self.config.initializer_range)
            for projection in (module.patch_projection, module.class_projection):
                init.normal_(projection.weight, mean=0.0, std=projection.in_features**-0.5)


class SegmenterModel(SegmenterPreTrainedModel):
    """The Vision Transformer encoder, Section 3.1, with its final norm.

    Shape:
        pixel_values: (B, num_channels, H, W), normalised; any size
        returns: [`SegmenterModelOutput`], a map at 1 / patch_size of the image
    """

    _keys_to_ignore_on_load_unexpected = [r"^decode_head\."]  # when read from a whole checkpoint

    def __init__(self, config: SegmenterConfig):
        super().__init__(config)
        if config.backbone_config is None:
            self.vit = VisionTransformer(config, final_norm=True)
        else:
            self.encoder = FeatureMaps(config)
            config.patch_size = self.encoder.patch_size
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        if self.config.backbone_config is not None:
            return self.encoder.backbone.get_input_embeddings()
        return self.vit.patch_embed

    def forward(self, pixel_values: torch.Tensor, **kwargs) -> SegmenterModelOutput:
        if self.config.backbone_config is not None:
            return self.read_maps(SegmenterModelOutput, pixel_values, **kwargs)
        return self.encode(pixel_values, **kwargs)

    @capture_outputs(tie_last_hidden_states=False)
    def encode(self, pixel_values: torch.Tensor, **kwargs) -> SegmenterModelOutput:
        """`forward` of the architecture's own encoder."""
        patch = self.config.patch_size
        size = tuple((side + patch - 1) // patch for side in pixel_values.shape[2:])
        tokens, _ = self.vit(pixel_values, **kwargs)  # (B, P + N, C)
        feature_map = tokens_to_map(tokens[:, self.vit.num_prefix_tokens :], size)  # (B, C, h, w)
        return SegmenterModelOutput(last_hidden_state=tokens, feature_maps=(feature_map,))


class SegmenterForSemanticSegmentation(SegmenterPreTrainedModel):
    """Segmenter: a Vision Transformer and the "linear" or "mask" head.

    An image whose sides are not multiples of the patch is padded to that, and its logits cropped; they then have the
    size of the image.

    Shape:
        pixel_values: (B, num_channels, H, W), normalised
        labels: (B, H', W') class ids or the ignore index, of the image's size, or scaled
        windows: (B, 7), where the images lie, for post-processing; returned as they are
        returns: [`SegmentationOutput`] with logits (B, K, H / patch_size, W / patch_size)
    """

    _reads = "last"

    def __init__(self, config: SegmenterConfig):
        config.name_background()
        super().__init__(config)
        self.backbone = SegmenterModel(config)
        self.neck = self.build_neck()
        channels = getattr(self.neck, "channels", [config.hidden_size])
        self.decode_head = HEADS[config.decode_head](config, channels[-1])
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        windows: torch.Tensor | None = None,
        **kwargs,
    ) -> SegmentationOutput:
        features = self.features(pixel_values, **kwargs)
        logits = self.decode_head(self.neck(features.feature_maps)[-1])
        logits = crop_padding(logits, pixel_values.shape[2:], self.config.patch_size)
        loss = None if labels is None else self.loss_function(logits, labels, self.config)
        return SegmentationOutput(
            loss=loss,
            logits=logits,
            hidden_states=features.hidden_states,
            attentions=features.attentions,
            windows=windows,
        )


# pipeline("image-segmentation") knows the model classes it supports by this table only.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.setdefault(SegmenterConfig.model_type, "SegmenterForSemanticSegmentation")
