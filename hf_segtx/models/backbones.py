"""The four encoders as backbones for the models of transformers: UperNet, Mask2Former, DETR, DPT and others.

    config = MiTConfig.of_encoder(SegFormerConfig.from_size("b2"), out_indices=[1, 2, 3, 4])
    UperNetForSemanticSegmentation(UperNetConfig(backbone_config=config))            # from random weights
    MiTBackbone.from_pretrained("my-segformer", out_indices=[1, 2, 3, 4])            # out of a checkpoint

`from_pretrained` of a class takes the encoder out of every checkpoint that holds it: for segmentation, for
classification, of transformers' SegFormer, or one that it saved itself; other maps can be asked for at any time.

Shapes: B images, C channels; (H, W) the image, (h, w) a map.
"""

import torch
from torch import nn
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .configuration_backbones import (
    DilatedResNetConfig,
    HRNetConfig,
    MiTConfig,
    VisionTransformerConfig,
)
from .layers import refuse_tracing, tokens_to_map
from .modeling_ocrnet import HRNet, OCRNetPreTrainedModel, ResNet
from .modeling_segformer import SegFormerPreTrainedModel, SegFormerStage, minimum_side
from .modeling_setr import SETRPreTrainedModel
from .vision_transformer import VisionTransformer


class MiTBackbone(BackboneMixin, SegFormerPreTrainedModel):
    """The Mix Transformer, SegFormer's encoder.

    Shape:
        pixel_values: (B, num_channels, H, W), normalised
        returns: BackboneOutput, `feature_maps` (B, C_i, h_i, w_i) at 1/4 (the stem, and the first stage) to 1/32

    Raises:
        ValueError: if an image is smaller than 29 pixels a side, with the published strides.
    """

    config_class = MiTConfig
    config: MiTConfig
    _auto_map = {"AutoBackbone": "backbones.MiTBackbone"}
    _keys_to_ignore_on_load_unexpected = [r"^(decode_head|classifier)\."]  # when read from a whole checkpoint

    def __init__(self, config: MiTConfig):
        super().__init__(config)
        self.num_features = [config.hidden_sizes[0], *config.hidden_sizes]
        rates = torch.linspace(0, config.drop_path_rate, sum(config.depths), device="cpu").split(list(config.depths))
        self.stages = nn.ModuleList(SegFormerStage(config, i, rate.tolist()) for i, rate in enumerate(rates))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.stages[0].patch_embed.proj

    @capture_outputs
    def forward(self, pixel_values: torch.Tensor, **kwargs) -> BackboneOutput:
        refuse_tracing()
        size, least = tuple(pixel_values.shape[2:]), minimum_side(self.config)
        if not torch.compiler.is_compiling() and min(size) < least:
            raise ValueError(f"images of {size[0]}x{size[1]} pixels; this network takes at least {least} a side")
        maps = {}
        if "stem" in self.out_features:
            maps["stem"] = self.stages[0].patch_embed(pixel_values).permute(0, 3, 1, 2)
        x = pixel_values
        for name, stage in zip(self.stage_names[1:], self.stages):
            x = maps[name] = stage(x, **kwargs)
        return BackboneOutput(feature_maps=tuple(maps[name] for name in self.out_features))


class VisionTransformerBackbone(BackboneMixin, SETRPreTrainedModel):
    """The plain Vision Transformer of SETR and Segmenter.

    Sides that are not multiples of the patch are padded, so that maps have ceil(H / patch_size) rows; DPT, which rounds
    down, needs images of whole patches.

    Shape:
        pixel_values: (B, num_channels, H, W), normalised
        returns: BackboneOutput, `feature_maps` (B, C, h, w) at 1 / patch_size; class token and patches (B, 1 + h w, C)
            if the configuration has `reshape_hidden_states=False`
    """

    config_class = VisionTransformerConfig
    config: VisionTransformerConfig
    _auto_map = {"AutoBackbone": "backbones.VisionTransformerBackbone"}
    # When read from a whole checkpoint, and of a norm that is not wanted.
    _keys_to_ignore_on_load_unexpected = [r"^(backbone\.)?(decode_head|auxiliary_heads|neck|vit\.norm)\."]

    def __init__(self, config: VisionTransformerConfig):
        super().__init__(config)
        self.num_features = [config.hidden_size] * len(self.stage_names)
        self.vit = VisionTransformer(config, config.apply_layernorm, drop_prefix=not config.use_class_token)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vit.patch_embed

    @capture_outputs
    def forward(self, pixel_values: torch.Tensor, **kwargs) -> BackboneOutput:
        tokens, size = self.vit.embed(pixel_values)  # (B, P + N, C)
        chosen = [tokens] if "stem" in self.out_features else []
        for name, block in zip(self.stage_names[1:], self.vit.blocks):
            tokens = block(tokens, **kwargs)
            if name in self.out_features:
                chosen.append(tokens)
        patches = [self.vit.norm(tokens) for tokens in chosen]
        first = self.vit.num_prefix_tokens if self.config.use_class_token else 0
        if self.config.reshape_hidden_states:
            maps = [tokens_to_map(tokens[:, first:], size) for tokens in patches]  # (B, C, h, w)
        else:  # without the distillation token, which the readers know nothing of
            maps = [torch.cat((tokens[:, :1], tokens[:, first:]), dim=1) for tokens in patches]  # (B, 1 + N, C)
        return BackboneOutput(feature_maps=tuple(maps))


class HRNetBackbone(BackboneMixin, OCRNetPreTrainedModel):
    """HRNetV2, whose four branches are at 1/4, 1/8, 1/16 and 1/32.

    Shape:
        pixel_values: (B, num_channels, H, W), normalised
        returns: BackboneOutput, `feature_maps` (B, C_i, h_i, w_i)
    """

    config_class = HRNetConfig
    config: HRNetConfig
    has_attentions = False
    _network = HRNet
    _auto_map = {"AutoBackbone": "backbones.HRNetBackbone"}
    _keys_to_ignore_on_load_unexpected = [r"^(decode_head|auxiliary_heads)\."]  # when read from a whole checkpoint

    def __init__(self, config: HRNetConfig | DilatedResNetConfig):
        super().__init__(config)
        self.num_features = [config.stem_hidden_sizes[-1], *config.hidden_sizes]
        self.encoder = self._network(config)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **kwargs) -> BackboneOutput:
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        refuse_tracing()
        stem = self.encoder.embed(pixel_values.contiguous(memory_format=torch.channels_last))
        maps = dict(zip(self.stage_names, (stem, *self.encoder.stages(stem))))
        return BackboneOutput(
            feature_maps=tuple(maps[name] for name in self.out_features),
            hidden_states=tuple(maps.values()) if output_hidden_states else None,
        )


class DilatedResNetBackbone(HRNetBackbone):
    """ResNet whose stages are at 1/4, 1/8, 1/8 and 1/8 (`output_stride` 16: the last two at 1/16).

    Shape:
        pixel_values: (B, num_channels, H, W), normalised
        returns: BackboneOutput, `feature_maps` (B, C_i, h_i, w_i)
    """

    config_class = DilatedResNetConfig
    config: DilatedResNetConfig
    _network = ResNet
    _auto_map = {"AutoBackbone": "backbones.DilatedResNetBackbone"}
