"""Configuration of OCRNet (Yuan et al., ECCV 2020, arXiv 1909.11065)."""

from transformers import AutoConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_base import SegmentationConfig, checked, depth, factor, label, probability, size


# HRNetV2 (arXiv 1908.07919, Table 1; the small one is the authors' W18-Small-v2) and dilated ResNet (Section 4.1).
HRNET = {"backbone_type": "hrnet", "depths": [4, 4, 4, 4], "num_modules": [1, 1, 4, 3]}
RESNET = {"backbone_type": "resnet", "hidden_sizes": [256, 512, 1024, 2048], "context_conv_bias": True}
SIZES = {
    "hrnet_w18_small": {
        **HRNET,
        "hidden_sizes": [18, 36, 72, 144],
        "depths": [2, 2, 2, 2],
        "num_modules": [1, 1, 3, 2],
    },
    "hrnet_w18": {**HRNET, "hidden_sizes": [18, 36, 72, 144]},
    "hrnet_w48": {**HRNET, "hidden_sizes": [48, 96, 192, 384]},
    "resnet50": {**RESNET, "depths": [3, 4, 6, 3]},
    "resnet101": {**RESNET, "depths": [3, 4, 23, 3]},
}


@checked
class OCRNetConfig(SegmentationConfig):
    """Configuration of [`OCRNetModel`] and [`OCRNetForSemanticSegmentation`]; the defaults are those of HRNetV2-W18.

    Where the authors' code for HRNet (HRNet-Semantic-Segmentation, branch HRNet-OCR), that for ResNet (openseg) and
    mmsegmentation compute different functions there is a field. Fields that are None are filled in; lists have one
    entry a stage.

    Args:
        backbone_type: "hrnet", "resnet" or "auto", which is any backbone of transformers or timm, given by
            `backbone_config` (see [`SegmentationConfig`], also for `feature_norm` and `feature_scaling`). None: "auto"
            if there is a `backbone_config`, else "hrnet".
        num_channels: channels of the image.
        stem_hidden_sizes: widths of the 3x3 convolutions of the stem; a single width is a 7x7 one. None: [64, 64] for
            "hrnet", [64, 64, 128] for "resnet" (mmsegmentation: [32, 32, 64]).
        hidden_sizes: "hrnet": widths of the four branches; "resnet": of the outputs of the four stages.
        depths: residual blocks: "hrnet": of a branch in each of the four stages; "resnet": of each stage.
        num_modules: "hrnet": times that the branches of a stage exchange what they know; the first entry is not used.
        layer1_hidden_size: "hrnet": width inside the bottlenecks of the first stage.
        output_stride: "resnet": side of the image over that of the last map, 8 or 16; stages beyond it are dilated.
        pool_ceil_mode: "resnet": pooling after the stem rounds odd sizes up (openseg: True).
        align_corners: how maps and logits are upsampled (both authors' codes: True, mmsegmentation: False). The image
            processor is told by `processor.follow(config)`, and by the model's output.
        decoder_hidden_size: width of pixel, region and augmented representations.
        decoder_key_size: width of the transforms phi, psi and delta (Section 3.2).
        decoder_conv_bias, context_conv_bias, auxiliary_conv_bias: bias before BatchNorm in the 3x3 convolution of the
            pixel representation, in the object-contextual part, and in the soft object regions (mmsegmentation: none).
        decoder_hidden_act: "relu", or "leaky_relu" (slope 0.01) for openseg's checkpoints with in-place BatchNorm.
        auxiliary_hidden_size: width of the soft object regions' convolution. None: that of its input ("hrnet", "auto"),
            512 ("resnet"; mmsegmentation: 256).
        auxiliary_kernel_size: its kernel, 1 or 3. None: 1 ("hrnet", "auto"; openseg: 3), 3 ("resnet").
        classifier_dropout_prob: dropout of whole channels before the classifier.
        auxiliary_loss_weight: weight of the loss of the soft object regions.
        semantic_loss_ignore_index: label that counts in no loss.

    Example:
        >>> OCRNetConfig.from_size("hrnet_w48", num_labels=19).hidden_sizes
        [48, 96, 192, 384]
    """

    model_type = "segtx_ocrnet"
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="convnext", optional=True)
    }

    backbone_type: str | None = None
    num_channels: int = size(3)
    stem_hidden_sizes: list[int] | tuple[int, ...] | None = size(None)
    hidden_sizes: list[int] | tuple[int, ...] = size((18, 36, 72, 144))
    depths: list[int] | tuple[int, ...] = depth((4, 4, 4, 4))
    num_modules: list[int] | tuple[int, ...] = depth((1, 1, 4, 3))
    layer1_hidden_size: int = size(64)
    output_stride: int = 8
    pool_ceil_mode: bool = False
    align_corners: bool = False
    decoder_hidden_size: int = size(512)
    decoder_key_size: int = size(256)
    decoder_conv_bias: bool = True
    context_conv_bias: bool = False
    auxiliary_conv_bias: bool = True
    decoder_hidden_act: str = "relu"
    auxiliary_hidden_size: int | None = size(None)
    auxiliary_kernel_size: int | None = None
    classifier_dropout_prob: float | int = probability(0.05)
    auxiliary_loss_weight: float | int = factor(0.4)
    semantic_loss_ignore_index: int = label(255)

    def __post_init__(self, **kwargs):
        if self.backbone_type is None:
            self.backbone_type = "hrnet" if self.backbone_config is None else "auto"
        resnet = self.backbone_type == "resnet"
        if self.stem_hidden_sizes is None:
            self.stem_hidden_sizes = [64, 64, 128] if resnet else [64, 64]
        if self.auxiliary_kernel_size is None:
            self.auxiliary_kernel_size = 3 if resnet else 1
        if self.auxiliary_hidden_size is None and self.backbone_type != "auto":
            self.auxiliary_hidden_size = 512 if resnet else sum(self.hidden_sizes)
        super().__post_init__(**kwargs)

    @classmethod
    def from_size(cls, size: str, **overrides) -> "OCRNetConfig":
        """The configuration of a published size, such as "hrnet_w48" or "resnet101", with any field overridden.

        Raises:
            ValueError: if the size is unknown.
        """
        if size not in SIZES:
            raise ValueError(f"unknown OCRNet size {size!r}; choose one of {', '.join(SIZES)}")
        return cls(**{**SIZES[size], **overrides})

    def validate_architecture(self):
        """Cross-field checks; run at construction and before saving."""
        if self.backbone_type not in ("hrnet", "resnet", "auto"):
            raise ValueError(f"backbone_type is {self.backbone_type!r}; choose 'hrnet', 'resnet' or 'auto'")
        if (self.backbone_type == "auto") != (self.backbone_config is not None):
            raise ValueError(
                f"backbone_type is {self.backbone_type!r} and backbone_config is "
                f"{'missing' if self.backbone_config is None else 'given'}; 'auto', and only that, takes one"
            )
        if self.backbone_type != "auto":
            for name in ("hidden_sizes", "depths", "num_modules"):
                values = list(getattr(self, name))
                if len(values) != 4:
                    raise ValueError(f"{name} is {values}; give four numbers")
        stem = list(self.stem_hidden_sizes)
        if self.backbone_type == "hrnet" and len(stem) != 2:
            raise ValueError(f"stem_hidden_sizes is {stem}; HRNet's stem has two convolutions of stride 2")
        if self.backbone_type == "resnet":
            if not stem:
                raise ValueError("stem_hidden_sizes is empty; give one width a convolution")
            if self.output_stride not in (8, 16):
                raise ValueError(f"output_stride is {self.output_stride}; choose 8 or 16: the last two stages meet")
            for width in self.hidden_sizes:
                if width % 4:
                    raise ValueError(f"hidden_sizes has {width}; the width of a ResNet's stage is a multiple of 4")
        if self.auxiliary_kernel_size not in (1, 3):
            raise ValueError(f"auxiliary_kernel_size is {self.auxiliary_kernel_size}; choose 1 or 3")
        if self.decoder_hidden_act not in ("relu", "leaky_relu"):
            raise ValueError(f"decoder_hidden_act is {self.decoder_hidden_act!r}; choose 'relu' or 'leaky_relu'")
