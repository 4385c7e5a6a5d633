"""Configuration of SegFormer (Xie et al., NeurIPS 2021, arXiv 2105.15203)."""

from transformers import AutoConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils.type_validators import activation_fn_key

from .configuration_base import (
    SegmentationConfig,
    check_image_size,
    checked,
    depth,
    kernel,
    label,
    probability,
    side,
    size,
    small,
)


RESNET = {"model_type": "timm_backbone", "out_indices": [1, 2, 3, 4]}
# Table 6 of the paper (MiT-B0 to B5) and its decoder widths (Section 4.1; 768 from B2 on in the authors' code); then
# Table 1d: the ResNets with deep stems, ResNeXt-101 64x4d with a plain one, as their numbers of parameters show.
SIZES = {
    "b0": {"hidden_sizes": [32, 64, 160, 256], "depths": [2, 2, 2, 2], "decoder_hidden_size": 256},
    "b1": {"hidden_sizes": [64, 128, 320, 512], "depths": [2, 2, 2, 2], "decoder_hidden_size": 256},
    "b2": {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 4, 6, 3], "decoder_hidden_size": 768},
    "b3": {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 4, 18, 3], "decoder_hidden_size": 768},
    "b4": {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 8, 27, 3], "decoder_hidden_size": 768},
    "b5": {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 6, 40, 3], "decoder_hidden_size": 768},
    "b2_s4": {
        "hidden_sizes": [64, 128, 320, 512],
        "depths": [3, 4, 6, 3],
        "decoder_hidden_size": 768,
        "decoder_stages": [3],
        "decoder_fusion": False,
    },
    "resnet50": {"backbone_config": {**RESNET, "backbone": "resnet50c"}, "decoder_hidden_size": 768},
    "resnet101": {"backbone_config": {**RESNET, "backbone": "resnet101c"}, "decoder_hidden_size": 768},
    "resnext101": {"backbone_config": {**RESNET, "backbone": "resnext101_64x4d"}, "decoder_hidden_size": 768},
}


@checked
class SegFormerConfig(SegmentationConfig):
    """Configuration of [`SegFormerModel`] and the models built on it; the defaults are those of SegFormer-B0.

    The names are those of transformers' `SegformerConfig`, whose saved configurations (`model_type` "segformer") load
    here too. Lists have one entry a stage.

    Args:
        num_channels: channels of the image.
        hidden_sizes, depths, num_attention_heads: width, number of blocks and heads.
        sr_ratios: factor by which the side of the key/value map is reduced before attention (Section 3.1, "R").
        patch_sizes, strides: kernel and stride of the overlapping patch embeddings, in pixels of their input map.
        mlp_ratios: hidden width of the feed-forward network over `hidden_sizes`.
        hidden_act: activation of the feed-forward network.
        position_encoding: "mix_ffn" is the paper's 3x3 convolution in the feed-forward network; "learned" is a position
            table a stage instead, resized bilinearly to other image sizes (Table 1c).
        image_size: side or (height, width) in pixels that the "learned" tables are made for.
        hidden_dropout_prob, attention_probs_dropout_prob, classifier_dropout_prob: dropout after projections, on
            attention weights, and before the classifier.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0 over all blocks.
        layer_norm_eps: of the norms in blocks and after each stage (1e-5 in transformers' code, 1e-6 in the authors').
        embedding_layer_norm_eps: of the norms after patch embeddings and key/value reduction (1e-5 in both).
        decoder_hidden_size: width of the all-MLP head (Table 1b: 256 to 2048).
        decoder_stages: stages (0 to 3), or maps of the `backbone_config`, that the head reads. None: all.
        decoder_fusion: the head fuses what it read by a 1x1 convolution, BatchNorm and ReLU. False, for a single stage:
            it is projected and classified; [3] is then the paper's "S4" (Table 1d).
        decoder_projection_norm: BatchNorm and ReLU after each stage's projection, as in mmsegmentation's head.
        semantic_loss_ignore_index: label that counts in no loss.
        backbone_config, feature_norm, feature_scaling: another backbone, see [`SegmentationConfig`].

    Example:
        >>> SegFormerConfig.from_size("b2", num_labels=19).hidden_sizes
        [64, 128, 320, 512]
    """

    model_type = "segtx_segformer"
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="convnext", optional=True)
    }

    num_channels: int = size(3)
    hidden_sizes: list[int] | tuple[int, ...] = size((32, 64, 160, 256))
    depths: list[int] | tuple[int, ...] = depth((2, 2, 2, 2))
    num_attention_heads: list[int] | tuple[int, ...] = size((1, 2, 5, 8))
    sr_ratios: list[int] | tuple[int, ...] = kernel((8, 4, 2, 1))
    patch_sizes: list[int] | tuple[int, ...] = kernel((7, 3, 3, 3))
    strides: list[int] | tuple[int, ...] = kernel((4, 2, 2, 2))
    mlp_ratios: list[int] | tuple[int, ...] = kernel((4, 4, 4, 4))
    hidden_act: str = activation_fn_key("gelu")
    position_encoding: str = "mix_ffn"
    image_size: int | list[int] | tuple[int, ...] = side(512)
    hidden_dropout_prob: float | int = probability(0.0)
    attention_probs_dropout_prob: float | int = probability(0.0)
    classifier_dropout_prob: float | int = probability(0.1)
    drop_path_rate: float | int = probability(0.1)
    initializer_range: float | int = small(0.02)
    layer_norm_eps: float | int = small(1e-5)
    embedding_layer_norm_eps: float | int = small(1e-5)
    decoder_hidden_size: int = size(256)
    decoder_stages: list[int] | tuple[int, ...] | None = None
    decoder_fusion: bool = True
    decoder_projection_norm: bool = False
    semantic_loss_ignore_index: int = label(255)

    def __post_init__(self, **kwargs):
        self.make_backbone_config()
        if self.decoder_stages is None:
            number = len(self.hidden_sizes) if self.backbone_config is None else self.num_feature_maps
            self.decoder_stages = list(range(number))
        super().__post_init__(**kwargs)

    @classmethod
    def from_size(cls, size: str, **overrides) -> "SegFormerConfig":
        """The configuration of a published size, such as "b0" to "b5", with any field overridden.

        Raises:
            ValueError: if the size is unknown.
        """
        if size not in SIZES:
            raise ValueError(f"unknown SegFormer size {size!r}; choose one of {', '.join(SIZES)}")
        return cls(**{**SIZES[size], **overrides})

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As in transformers; a configuration saved by transformers' SegFormer is translated into ours."""
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config.get("model_type") == "segformer":
            # transformers builds every LayerNorm with torch's 1e-5, whatever its configuration says.
            config = {**config, "model_type": cls.model_type, "layer_norm_eps": 1e-5, "embedding_layer_norm_eps": 1e-5}
            for name in ("num_encoder_blocks", "reshape_last_stage", "downsampling_rates", "architectures"):
                config.pop(name, None)
        return config, kwargs

    @property
    def num_hidden_layers(self) -> int:
        """Number of stages; transformers' name for the number of recorded hidden states."""
        return len(self.depths)

    def validate_architecture(self):
        """Cross-field checks; run at construction and before saving."""
        stages = len(self.hidden_sizes)
        for name in ("depths", "num_attention_heads", "sr_ratios", "patch_sizes", "strides", "mlp_ratios"):
            values = getattr(self, name)
            if len(values) != stages:
                raise ValueError(f"{name} has {len(values)} entries, hidden_sizes {stages}; give one a stage")
        for width, heads in zip(self.hidden_sizes, self.num_attention_heads):
            if width % heads:
                raise ValueError(f"num_attention_heads {heads} does not divide hidden size {width}; choose a divisor")
        if self.backbone_config is not None:
            stages = self.num_feature_maps
        check_image_size(self.image_size)
        if self.position_encoding not in ("mix_ffn", "learned"):
            raise ValueError(f"position_encoding is {self.position_encoding!r}; choose 'mix_ffn' or 'learned'")
        chosen = list(self.decoder_stages)
        if not chosen or sorted(set(chosen)) != chosen or chosen[0] < 0 or chosen[-1] >= stages:
            cure = "" if self.backbone_config is None else ", or choose more out_indices in backbone_config"
            raise ValueError(f"decoder_stages is {chosen}; give increasing stage numbers from 0 to {stages - 1}{cure}")
        if not self.decoder_fusion and len(chosen) != 1:
            raise ValueError(f"decoder_fusion is False and decoder_stages {chosen}; several stages have to be fused")
