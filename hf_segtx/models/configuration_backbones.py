"""Configurations of the four encoders as backbones of transformers' models; see `backbones.py`."""

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin
from transformers.utils.type_validators import activation_fn_key

from .configuration_base import (
    SegmentationConfig,
    check_image_size,
    check_vision_transformer,
    checked,
    depth,
    factor,
    kernel,
    probability,
    side,
    size,
    small,
)


@checked
class BackboneConfig(BackboneConfigMixin, SegmentationConfig):
    """What the configurations of backbones share: the choice of maps, and how they come out of other checkpoints.

    `out_indices` or `out_features` choose the maps, as everywhere in transformers: 0 or "stem" is what the first layers
    make of the image, 1 or "stage1" the first map after that, and so on. None: the last.
    """

    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None
    # model_type of a checkpoint that holds such an encoder -> model_type of the configuration that understands it.
    sources = {}
    backbone_type = None  # of such a configuration, where it describes several encoders

    def __post_init__(self, **kwargs):
        kwargs.pop("stage_names", None)
        self.stage_names = ["stem", *(f"stage{number + 1}" for number in range(self.num_stages))]
        self.set_output_features_output_indices(kwargs.pop("out_features", None), kwargs.pop("out_indices", None))
        super().__post_init__(**kwargs)

    @property
    def num_stages(self) -> int:
        """Number of maps beside the stem's."""
        return len(getattr(self, "depths", ()))

    def validate_backbone(self):
        """A backbone has no other inside; run at construction and before saving."""
        if self.backbone_config is not None:
            raise ValueError(f"backbone_config is given, but a {type(self).__name__} describes a backbone itself")
        super().validate_backbone()

    @classmethod
    def of_encoder(cls, config: PreTrainedConfig, **overrides) -> "BackboneConfig":
        """The configuration of the encoder of a model for segmentation or classification.

        Args:
            config: of that model.
            overrides: any fields; `out_indices`, as a rule.

        Example:
            >>> from hf_segtx import SegFormerConfig
            >>> MiTConfig.of_encoder(SegFormerConfig.from_size("b2"), out_indices=[1, 2, 3, 4]).hidden_sizes
            [64, 128, 320, 512]
        """
        return cls(**{**cls.encoder_fields(config), **overrides})

    @classmethod
    def encoder_fields(cls, config: PreTrainedConfig) -> dict:
        """The fields of this class in the configuration of a model with such an encoder.

        Raises:
            ValueError: if it has another encoder.
        """
        types, found = sorted(set(cls.sources.values())), getattr(config, "backbone_type", None)
        has_other = getattr(config, "backbone_config", None) is not None
        if config.model_type not in types or has_other or found != cls.backbone_type:
            raise ValueError(
                f"the model of the type {config.model_type!r} has an encoder of another kind"
                f"{f', {found!r},' if found else ''} than {cls.__name__}; that is for {' and '.join(types)}"
                f"{f' with backbone_type {cls.backbone_type!r}' if cls.backbone_type else ''}"
            )
        names = cls.__dataclass_fields__.keys() - BackboneConfig.__dataclass_fields__.keys()
        return {name: getattr(config, name) for name in names if hasattr(config, name)}

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As in transformers; of a checkpoint of a whole model, that of its encoder."""
        content, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if content.get("model_type") in cls.sources:
            whole = CONFIG_MAPPING[cls.sources[content["model_type"]]]
            content, _ = whole.get_config_dict(pretrained_model_name_or_path, **kwargs)
            content = {"model_type": cls.model_type, **cls.encoder_fields(whole.from_dict(content))}
        return content, unused


@checked
class MiTConfig(BackboneConfig):
    """Configuration of [`MiTBackbone`], SegFormer's encoder; the fields are those of [`SegFormerConfig`].

    The stem is the first patch embedding, at the first stage's width and stride.
    """

    model_type = "segtx_mit"
    sources = {"segtx_segformer": "segtx_segformer", "segformer": "segtx_segformer"}

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
    drop_path_rate: float | int = probability(0.1)
    initializer_range: float | int = small(0.02)
    layer_norm_eps: float | int = small(1e-5)
    embedding_layer_norm_eps: float | int = small(1e-5)

    @property
    def num_hidden_layers(self) -> int:
        """Number of stages; transformers' name for the number of recorded hidden states."""
        return len(self.depths)

    def validate_architecture(self):
        """Cross-field checks; run at construction and before saving."""
        stages = len(self.hidden_sizes)
        for name in ("depths", "num_attention_heads", "sr_ratios", "patch_sizes", "strides", "mlp_ratios"):
            if len(getattr(self, name)) != stages:
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} entries, hidden_sizes {stages}; give one a stage"
                )
        for width, heads in zip(self.hidden_sizes, self.num_attention_heads):
            if width % heads:
                raise ValueError(f"num_attention_heads {heads} does not divide hidden size {width}; choose a divisor")
        check_image_size(self.image_size)
        if self.position_encoding not in ("mix_ffn", "learned"):
            raise ValueError(f"position_encoding is {self.position_encoding!r}; choose 'mix_ffn' or 'learned'")


@checked
class VisionTransformerConfig(BackboneConfig):
    """Configuration of [`VisionTransformerBackbone`], the ViT of SETR and Segmenter; the defaults are ViT-B/16.

    The stem is the patches with their positions, a stage is a block. Fields not named here are those of [`SETRConfig`].

    Args:
        apply_layernorm: the final LayerNorm is applied to each map (Segmenter and ImageNet's ViTs have one, SETR none).
        use_class_token: class and distillation token go through the blocks; SETR's "mla" leaves them out.
        reshape_hidden_states: maps are (B, C, h, w). False: class token and patches (B, 1 + h w, C), as DPT reads them.
    """

    model_type = "segtx_vit"
    sources = {"segtx_setr": "segtx_setr", "segtx_segmenter": "segtx_segmenter"}

    image_size: int | list[int] | tuple[int, ...] = side(512)
    patch_size: int = kernel(16)
    num_channels: int = size(3)
    hidden_size: int = size(768)
    num_hidden_layers: int = depth(12)
    num_attention_heads: int = size(12)
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
    apply_layernorm: bool = True
    use_class_token: bool = True
    reshape_hidden_states: bool = True

    @property
    def num_stages(self) -> int:
        """Number of blocks."""
        return self.num_hidden_layers

    @classmethod
    def encoder_fields(cls, config: PreTrainedConfig) -> dict:
        """As of every backbone; whether there are a final norm and a class token depends on the architecture."""
        is_setr = config.model_type == "segtx_setr"
        fields = super().encoder_fields(config)
        has_class_token = not (is_setr and config.decode_head == "mla")
        return {**fields, "apply_layernorm": not is_setr, "use_class_token": has_class_token}

    def validate_architecture(self):
        """Cross-field checks; run at construction and before saving."""
        check_vision_transformer(self)
        if not (self.use_class_token or self.reshape_hidden_states):
            raise ValueError(
                "reshape_hidden_states is False, which returns the class token, and use_class_token is False; set one"
            )


@checked
class HRNetConfig(BackboneConfig):
    """Configuration of [`HRNetBackbone`], HRNetV2 as OCRNet has it; the fields are those of [`OCRNetConfig`].

    The stem is its two convolutions, at 1/4; a stage is one of the four branches that the network ends with.
    """

    model_type = "segtx_hrnet"
    sources = {"segtx_ocrnet": "segtx_ocrnet"}
    backbone_type = "hrnet"

    num_channels: int = size(3)
    stem_hidden_sizes: list[int] | tuple[int, ...] = size((64, 64))
    hidden_sizes: list[int] | tuple[int, ...] = size((18, 36, 72, 144))
    depths: list[int] | tuple[int, ...] = depth((4, 4, 4, 4))
    num_modules: list[int] | tuple[int, ...] = depth((1, 1, 4, 3))
    layer1_hidden_size: int = size(64)
    align_corners: bool = False

    def validate_architecture(self):
        """Cross-field checks; run at construction and before saving."""
        for name, number in (("stem_hidden_sizes", 2), ("hidden_sizes", 4), ("depths", 4), ("num_modules", 4)):
            if len(getattr(self, name)) != number:
                raise ValueError(f"{name} is {list(getattr(self, name))}; give {number} numbers")


@checked
class DilatedResNetConfig(BackboneConfig):
    """Configuration of [`DilatedResNetBackbone`], OCRNet's; the fields are those of [`OCRNetConfig`].

    The stem is its convolutions and the pooling, at 1/4.
    """

    model_type = (
        "segtx_dilated"  # DETR freezes every layer of what has "resnet" in its type and other names than its own
    )
    sources = {"segtx_ocrnet": "segtx_ocrnet"}
    backbone_type = "resnet"

    num_channels: int = size(3)
    stem_hidden_sizes: list[int] | tuple[int, ...] = size((64, 64, 128))
    hidden_sizes: list[int] | tuple[int, ...] = size((256, 512, 1024, 2048))
    depths: list[int] | tuple[int, ...] = depth((3, 4, 6, 3))
    output_stride: int = 8
    pool_ceil_mode: bool = False

    def validate_architecture(self):
        """Cross-field checks; run at construction and before saving."""
        for name in ("hidden_sizes", "depths"):
            if len(getattr(self, name)) != 4:
                raise ValueError(f"{name} is {list(getattr(self, name))}; give four numbers")
        if not self.stem_hidden_sizes:
            raise ValueError("stem_hidden_sizes is empty; give one width a convolution")
        if self.output_stride not in (8, 16):
            raise ValueError(f"output_stride is {self.output_stride}; choose 8 or 16: the last two stages meet")
        if odd := [width for width in self.hidden_sizes if width % 4]:
            raise ValueError(f"hidden_sizes has {odd[0]}; the width of a ResNet's stage is a multiple of 4")
