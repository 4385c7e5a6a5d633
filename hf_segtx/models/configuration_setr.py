"""Configuration of SETR (Zheng et al., CVPR 2021, arXiv 2012.15840)."""

import math

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


# Table 1 of the paper. DeiT-B has the shape of ViT-B (it differs in its pre-training); hybrid: a ResNet-50 of stride 16
# under ViT-B, as in the ViT paper (the number of parameters in Table 2 is that of a ResNet-26 with PUP).
SIZES = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "deit_base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "hybrid_base": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "stem_depths": [3, 4, 9],
    },
}
DECODE_HEADS = ("naive", "pup", "mla")


@checked
class SETRConfig(SegmentationConfig):
    """Configuration of [`SETRModel`] and [`SETRForSemanticSegmentation`]; the defaults are those of SETR-Naive, ViT-L.

    Where the authors' code and mmsegmentation's compute different functions there is a field; its default is the
    authors' (fudan-zvg/SETR), mmsegmentation's value is given in brackets. Fields that are None are filled in.

    Args:
        image_size: side or (height, width) in pixels that the position table is made for.
        patch_size: side of a patch in pixels; that of a `backbone_config` is filled in.
        num_channels: channels of the image.
        hidden_size, num_hidden_layers, num_attention_heads, mlp_ratio, hidden_act: of the Vision Transformer.
        hidden_dropout_prob, attention_probs_dropout_prob: dropout after positions and projections, and on attention
            weights.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0.
        layer_norm_eps: of every LayerNorm.
        position_resize_mode: "bilinear" or "bicubic", for images of other sizes than `image_size`.
        use_distillation_token: DeiT's second token beside the class token.
        stem_depths, stem_hidden_sizes: blocks and widths of the hybrid's ResNet stages; None for plain patches.
        decode_head: "naive", "pup" (progressive upsampling) or "mla" (multi-level aggregation), Section 3.3.
        feature_indices: blocks, counted from 0, that are read. "naive" and "pup" predict from the last of them.
            None: 9, 14, 19, 23 of 24 blocks for "naive" and "pup"; else four at even distances, as the authors'. With a
            `backbone_config`: numbers of its maps, None for all.
        decoder_hidden_size: width of the convolutions of "naive" and "pup", and of the levels of "mla".
        decoder_upsampling: for "naive" and "pup": one convolution an entry, each followed by bilinear upsampling by
            that factor. None: [1] for "naive" (mmsegmentation: [4]), [2, 2, 2, 1] for "pup".
        decoder_conv_bias: convolutions of "naive" and "pup" have a bias before BatchNorm (mmsegmentation: False).
        mla_hidden_size: width of a level's convolutions in the "mla" head.
        mla_align_corners: "mla" upsamples its levels by 4 with corners aligned (mmsegmentation: False).
        mla_classifier_kernel_size: 3 (mmsegmentation: 1).
        auxiliary_levels: positions in `feature_indices` with an auxiliary head, in the order of `auxiliary_logits`.
            None: all for "pup" and "mla", all but the last for "naive". [] for none.
        auxiliary_upsampling: as `decoder_upsampling`, of the auxiliary heads of "naive" and "pup".
            None: [1] for "naive", [4] for "pup" (mmsegmentation: [4], or [4, 1] where it has two convolutions).
        auxiliary_bias: the auxiliary classifiers of "mla" have a bias (mmsegmentation: True).
        auxiliary_loss_weight: weight of each auxiliary loss.
        semantic_loss_ignore_index: label that counts in no loss.
        backbone_config, feature_norm, feature_scaling: another backbone, see [`SegmentationConfig`].

    Example:
        >>> SETRConfig.from_size("large", decode_head="pup", num_labels=19).feature_indices
        [9, 14, 19, 23]
    """

    model_type = "segtx_setr"
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="convnext", optional=True)
    }

    image_size: int | list[int] | tuple[int, ...] = side(512)
    patch_size: int = kernel(16)
    num_channels: int = size(3)
    hidden_size: int = size(1024)
    num_hidden_layers: int = depth(24)
    num_attention_heads: int = size(16)
    mlp_ratio: float | int = factor(4)
    hidden_act: str = activation_fn_key("gelu")
    hidden_dropout_prob: float | int = probability(0.0)
    attention_probs_dropout_prob: float | int = probability(0.0)
    drop_path_rate: float | int = probability(0.0)
    initializer_range: float | int = small(0.02)
    layer_norm_eps: float | int = small(1e-6)
    position_resize_mode: str = "bilinear"
    use_distillation_token: bool = False
    stem_depths: list[int] | tuple[int, ...] | None = depth(None)
    stem_hidden_sizes: list[int] | tuple[int, ...] = size((256, 512, 1024))
    decode_head: str = "naive"
    feature_indices: list[int] | tuple[int, ...] | None = None
    decoder_hidden_size: int = size(256)
    decoder_upsampling: list[int] | tuple[int, ...] | None = kernel(None)
    decoder_conv_bias: bool = True
    mla_hidden_size: int = size(128)
    mla_align_corners: bool = True
    mla_classifier_kernel_size: int = 3
    auxiliary_levels: list[int] | tuple[int, ...] | None = None
    auxiliary_upsampling: list[int] | tuple[int, ...] | None = kernel(None)
    auxiliary_bias: bool = False
    auxiliary_loss_weight: float | int = factor(0.4)
    semantic_loss_ignore_index: int = label(255)

    def __post_init__(self, **kwargs):
        depth, naive = self.num_hidden_layers, self.decode_head == "naive"
        self.make_backbone_config()
        if self.backbone_config is not None and self.feature_indices is None:
            self.feature_indices = list(range(self.num_feature_maps))
        if self.feature_indices is None:
            # Four blocks at even distances; fewer where there are not four.
            self.feature_indices = sorted({max((i + 1) * depth // 4 - 1, 0) for i in range(4)})
            if depth == 24 and self.decode_head != "mla":
                self.feature_indices = [9, 14, 19, 23]
        if self.decoder_upsampling is None:
            self.decoder_upsampling = [1] if naive else [2, 2, 2, 1]
        if self.auxiliary_levels is None:
            self.auxiliary_levels = list(range(len(self.feature_indices) - naive))
        if self.auxiliary_upsampling is None:
            self.auxiliary_upsampling = [1] if naive else [4]
        super().__post_init__(**kwargs)

    @classmethod
    def from_size(cls, size: str, **overrides) -> "SETRConfig":
        """The configuration of a published size ("base", "large", "deit_base", "hybrid_base"), any field overridden.

        Raises:
            ValueError: if the size is unknown.
        """
        if size not in SIZES:
            raise ValueError(f"unknown SETR size {size!r}; choose one of {', '.join(SIZES)}")
        return cls(**{**SIZES[size], **overrides})

    def validate_architecture(self):
        """Cross-field checks; run at construction and before saving."""
        check_vision_transformer(self)
        if self.decode_head not in DECODE_HEADS:
            raise ValueError(f"decode_head is {self.decode_head!r}; choose one of {', '.join(DECODE_HEADS)}")
        if self.stem_depths is not None:
            if len(self.stem_depths) != len(self.stem_hidden_sizes):
                raise ValueError(
                    f"stem_hidden_sizes has {len(self.stem_hidden_sizes)} entries, stem_depths "
                    f"{len(self.stem_depths)}; give one a stage"
                )
            stride = 2 ** (len(self.stem_depths) + 1)
            if self.patch_size != stride:
                raise ValueError(
                    f"patch_size is {self.patch_size}, but a stem of {len(self.stem_depths)} stages has stride "
                    f"{stride}; set patch_size={stride}"
                )

        indices, last, what = list(self.feature_indices), self.num_hidden_layers - 1, "block numbers"
        if self.backbone_config is not None:
            last, what = self.num_feature_maps - 1, "numbers of the backbone's maps"
        if not indices or sorted(set(indices)) != indices or indices[0] < 0 or indices[-1] > last:
            raise ValueError(f"feature_indices is {indices}; give increasing {what} from 0 to {last}")
        if self.decode_head == "mla" and len(indices) != 4:
            raise ValueError(
                f"feature_indices is {indices}, {len(indices)} levels; decode_head 'mla' needs exactly 4 "
                "(and num_hidden_layers of at least 4)"
            )
        levels = list(self.auxiliary_levels)
        if len(set(levels)) != len(levels) or any(not 0 <= level < len(indices) for level in levels):
            raise ValueError(
                f"auxiliary_levels is {levels}; give different positions in feature_indices, 0 to {len(indices) - 1}"
            )
        for name in ("decoder_upsampling", "auxiliary_upsampling"):
            factors = list(getattr(self, name))
            if not factors or math.prod(factors) > 256:  # published: 16 at most
                raise ValueError(f"{name} is {factors}; give one each convolution, their product at most 256")
        if self.mla_classifier_kernel_size not in (1, 3):
            raise ValueError(f"mla_classifier_kernel_size is {self.mla_classifier_kernel_size}; choose 1 or 3")
