"""Configuration of Segmenter (Strudel et al., ICCV 2021, arXiv 2105.05633)."""

from transformers import AutoConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils.type_validators import activation_fn_key

from .configuration_base import (
    SegmentationConfig,
    check_vision_transformer,
    checked,
    depth,
    factor,
    kernel,
    label,
    probability,
    side,
    size,
    small,
)


# Table 1 of the paper. DeiT-B has the shape of ViT-B and the distillation token of its pre-training.
SIZES = {
    "tiny": {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3},
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "deit_base": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "use_distillation_token": True,
    },
}
DECODE_HEADS = ("linear", "mask", "probe")


def default_heads(width: int) -> int:
    """One head for every 64 channels, or the next smaller number that divides the width."""
    return next(n for n in range(max(width // 64, 1), 0, -1) if width % n == 0)


@checked
class SegmenterConfig(SegmentationConfig):
    """Configuration of [`SegmenterModel`] and [`SegmenterForSemanticSegmentation`]; the defaults are Seg-S-Mask/16.

    Where the authors' code and mmsegmentation's compute different functions there is a field; its default is the
    authors' (rstrudel/segmenter), mmsegmentation's value is given in brackets. Fields that are None are filled in.

    Args:
        image_size: side or (height, width) in pixels that the position table is made for.
        patch_size: side of a patch in pixels, 8, 16 or 32 in the paper; that of a `backbone_config` is filled in.
        num_channels: channels of the image.
        hidden_size, num_hidden_layers, num_attention_heads, mlp_ratio, hidden_act: of the Vision Transformer.
        hidden_dropout_prob, attention_probs_dropout_prob: dropout after positions and projections, and on attention
            weights (Table 2).
        drop_path_rate: stochastic depth of the last block; grows linearly from 0 (Table 2).
        layer_norm_eps: of every LayerNorm of the Vision Transformer (mmsegmentation: 1e-6).
        position_resize_mode: "bilinear" (mmsegmentation: "bicubic"), for images of other sizes than `image_size`.
        use_distillation_token: DeiT's second token beside the class token.
        decode_head: "linear", a classifier on the patches (Section 3.2); "mask", the mask transformer (Section 3.3); or
            "probe", DINOv3's linear head for frozen backbones: dropout, BatchNorm and a classifier.
        decoder_hidden_size, decoder_num_attention_heads: of the mask transformer. None: `hidden_size`, and one head for
            every 64 of `decoder_hidden_size` or, where these do not divide it, fewer. With a `backbone_config` None
            stays, and means the same for its width.
        decoder_num_hidden_layers: blocks of the mask transformer, "M" (2; 1 for the authors' model of Cityscapes).
        decoder_dropout_prob: its dropout, in the places of both `hidden_dropout_prob` and
            `attention_probs_dropout_prob` (mmsegmentation: 0); and of "probe", for whole channels.
        decoder_drop_path_rate: its stochastic depth (mmsegmentation: 0.1).
        decoder_layer_norm_eps: of every LayerNorm of the mask transformer.
        semantic_loss_ignore_index: label that counts in no loss.
        backbone_config, feature_norm, feature_scaling: another backbone, see [`SegmentationConfig`].

    Example:
        >>> SegmenterConfig.from_size("base", patch_size=8, decode_head="linear", num_labels=19).hidden_size
        768
    """

    model_type = "segtx_segmenter"
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="convnext", optional=True)
    }

    image_size: int | list[int] | tuple[int, ...] = side(512)
    patch_size: int = kernel(16)
    num_channels: int = size(3)
    hidden_size: int = size(384)
    num_hidden_layers: int = depth(12)
    num_attention_heads: int = size(6)
    mlp_ratio: float | int = factor(4)
    hidden_act: str = activation_fn_key("gelu")
    hidden_dropout_prob: float | int = probability(0.0)
    attention_probs_dropout_prob: float | int = probability(0.0)
    drop_path_rate: float | int = probability(0.1)
    initializer_range: float | int = small(0.02)
    layer_norm_eps: float | int = small(1e-5)
    position_resize_mode: str = "bilinear"
    use_distillation_token: bool = False
    decode_head: str = "mask"
    decoder_hidden_size: int | None = size(None)
    decoder_num_attention_heads: int | None = size(None)
    decoder_num_hidden_layers: int = depth(2)
    decoder_dropout_prob: float | int = probability(0.1)
    decoder_drop_path_rate: float | int = probability(0.0)
    decoder_layer_norm_eps: float | int = small(1e-5)
    semantic_loss_ignore_index: int = label(255)

    def __post_init__(self, **kwargs):
        if self.decoder_hidden_size is None and self.backbone_config is None:  # else the model knows its width
            self.decoder_hidden_size = self.hidden_size
        if self.decoder_num_attention_heads is None and self.decoder_hidden_size is not None:
            self.decoder_num_attention_heads = default_heads(self.decoder_hidden_size)
        super().__post_init__(**kwargs)

    @classmethod
    def from_size(cls, size: str, **overrides) -> "SegmenterConfig":
        """The configuration of a published size ("tiny", "small", "base", "large", "deit_base"), any field overridden.

        Raises:
            ValueError: if the size is unknown.
        """
        if size not in SIZES:
            raise ValueError(f"unknown Segmenter size {size!r}; choose one of {', '.join(SIZES)}")
        return cls(**{**SIZES[size], **overrides})

    def validate_architecture(self):
        """Cross-field checks; run at construction and before saving."""
        check_vision_transformer(self)
        if self.decoder_hidden_size is not None and self.decoder_hidden_size % self.decoder_num_attention_heads:
            raise ValueError(
                f"decoder_num_attention_heads {self.decoder_num_attention_heads} does not divide decoder_hidden_size "
                f"{self.decoder_hidden_size}; choose a divisor"
            )
        if self.decode_head not in DECODE_HEADS:
            raise ValueError(f"decode_head is {self.decode_head!r}; choose one of {', '.join(DECODE_HEADS)}")
