"""SegFormer: a hierarchical transformer without position tables under an all-MLP head.

Paper: Xie et al., NeurIPS 2021, arXiv 2105.15203. Authors' code: NVlabs/SegFormer.
Differs from it in how things are computed, not in what: maps stay channels-last, so that no copy is made between
attention (tokens) and convolution (maps); the head works on each stage at that stage's own resolution, see
[`SegFormerDecodeHead`].

    image (B, 3, H, W)
      |-- stage 0: patch embedding, blocks, norm -- 1/4  --.
      |-- stage 1                                -- 1/8  --|   project each to C, upsample to 1/4, sum,
      |-- stage 2                                -- 1/16 --|-- BatchNorm, ReLU, classify -- logits (B, K, H/4, W/4)
      |-- stage 3                                -- 1/32 --'

    block: x + attention(norm1(x));  x + mix_ffn(norm2(x))

Shapes: B images, K classes, C channels, R the reduction of keys and values; (H, W) the image, (h, w) a stage's map.
Inside the backbone a map is (B, h, w, C): both a token sequence and, permuted, a channels-last (B, C, h, w).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GradientCheckpointingLayer, PreTrainedConfig
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.loss.loss_utils import LOSS_MAPPING
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_segformer import SegFormerConfig
from .cpu import (
    Linear,
    add_upsampled_by_rows,
    batch_norm_terms,
    by_rows,
    conv_gelu,
    has_plain_weight,
    is_prediction,
    linear,
)
from .feature_maps import FeatureMaps
from .layers import DropPath, crop_padding, eager_attention_forward, refuse_tracing, weight_of
from .segmentation_base import SegmentationOutput, SegmentationPreTrainedModel


@dataclass
class SegFormerModelOutput(BaseModelOutput):
    """Output of [`SegFormerModel`].

    Args:
        last_hidden_state: (B, C, h, w), the map of the last stage.
        hidden_states, attentions: maps of the stages (B, C, h, w) and weights (B, heads, queries, keys), on request.
        feature_maps: (B, C, h, w) of every stage, fine to coarse.
    """

    feature_maps: tuple[torch.Tensor, ...] | None = None


def minimum_side(config: SegFormerConfig) -> int:
    """Fewest pixels a side of an image whose maps can all be reduced R times: 29 of the published networks."""
    side = 1
    for kernel, stride, ratio in zip(*(reversed(x) for x in (config.patch_sizes, config.strides, config.sr_ratios))):
        side = max((max(side, ratio) - 1) * stride + kernel - 2 * (kernel // 2), 1)
    return side


class SegFormerPatchEmbedding(nn.Module):
    """Overlapping patches: a strided convolution wider than its stride, then LayerNorm. Section 3.1.

    Shape:
        feature_map: (B, C_in, H, W)
        returns: (B, h, w, C)
    """

    def __init__(self, config: SegFormerConfig, stage: int):
        super().__init__()
        in_channels = config.num_channels if stage == 0 else config.hidden_sizes[stage - 1]
        kernel, stride, width = config.patch_sizes[stage], config.strides[stage], config.hidden_sizes[stage]
        self.proj = nn.Conv2d(in_channels, width, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(width, eps=config.embedding_layer_norm_eps)
        self.pos_embed = None
        if config.position_encoding == "learned":
            side = config.image_size
            size = [side, side] if isinstance(side, int) else list(side)
            for k, s in zip(config.patch_sizes[: stage + 1], config.strides[: stage + 1]):
                size = [(n + 2 * (k // 2) - k) // s + 1 for n in size]
            self.pos_embed = nn.Parameter(torch.zeros(1, width, *size))

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        feature_map = self.proj(feature_map.contiguous(memory_format=torch.channels_last))
        x = self.norm(feature_map.permute(0, 2, 3, 1))  # (B, h, w, C)
        if self.pos_embed is not None:
            table = F.interpolate(self.pos_embed, size=x.shape[1:3], mode="bilinear", align_corners=False)
            x = x + table.permute(0, 2, 3, 1)
        return x


class SegFormerAttention(nn.Module):
    """Self-attention whose keys and values come from a map reduced R times a side. Section 3.1, Eqs. 1 and 2.

    Shape:
        x: (B, h, w, C)
        returns: (B, h, w, C) and the weights (B, heads, h w, floor(h / R) floor(w / R)), None unless eager
    """

    def __init__(self, config: SegFormerConfig, stage: int):
        super().__init__()
        width, self.num_heads = config.hidden_sizes[stage], config.num_attention_heads[stage]
        self.config = config
        self.head_dim = width // self.num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.dropout = config.attention_probs_dropout_prob
        self.query = Linear(width, width)
        self.key = Linear(width, width)
        self.value = Linear(width, width)
        self.proj = Linear(width, width)
        ratio = config.sr_ratios[stage]
        self.reduction = nn.Conv2d(width, width, ratio, stride=ratio) if ratio > 1 else None
        self.reduction_norm = nn.LayerNorm(width, eps=config.embedding_layer_norm_eps) if ratio > 1 else None

    def forward(self, x: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        source = x
        if self.reduction is not None:
            source = self.reduction_norm(self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        heads = (self.num_heads, self.head_dim)
        query = self.query(x).flatten(1, 2).unflatten(-1, heads).transpose(1, 2)  # (B, heads, h w, d)
        key = self.key(source).flatten(1, 2).unflatten(-1, heads).transpose(1, 2)  # (B, heads, h w / R^2, d)
        value = self.value(source).flatten(1, 2).unflatten(-1, heads).transpose(1, 2)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        context, weights = attention(
            self,
            query,
            key,
            value,
            None,
            scaling=self.scaling,
            dropout=self.dropout if self.training else 0.0,
            **kwargs,
        )  # (B, h w, heads, d)
        return self.proj(context.reshape(x.shape)), weights


class SegFormerMixFFN(nn.Module):
    """Feed-forward network with a 3x3 depthwise convolution, which tells positions by its zero padding. Eq. 3.

    Shape:
        x: (B, h, w, C)
        returns: (B, h, w, C)
    """

    def __init__(self, config: SegFormerConfig, stage: int):
        super().__init__()
        width = config.hidden_sizes[stage]
        hidden = width * config.mlp_ratios[stage]
        self.fc1 = Linear(width, hidden)
        self.dwconv = None
        if config.position_encoding == "mix_ffn":
            self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act = ACT2FN[config.hidden_act]
        self.fc2 = Linear(hidden, width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not is_prediction(self):
            return self.mix(x)
        return by_rows(self.mix, x, self.fc1.out_features, halo=int(self.dwconv is not None))

    def mix(self, x: torch.Tensor, inside: slice = slice(None)) -> torch.Tensor:
        """The rows `inside` of the result, from them and those beside them."""
        x = self.fc1(x)
        if self.dwconv is None:
            x = self.act(x)
        else:
            x = conv_gelu(self.dwconv, self.act, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)[:, inside]
        return self.dropout(self.fc2(self.dropout(x)))


class SegFormerBlock(GradientCheckpointingLayer):
    """Pre-norm transformer block: attention and Mix-FFN, each with a residual. (B, h, w, C) -> the same."""

    def __init__(self, config: SegFormerConfig, stage: int, drop_path_rate: float):
        super().__init__()
        width = config.hidden_sizes[stage]
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attn = SegFormerAttention(config, stage)
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = SegFormerMixFFN(config, stage)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: torch.Tensor, **kwargs) -> torch.Tensor:
        x = x + self.drop_path(self.dropout(self.attn(self.norm1(x), **kwargs)[0]))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class SegFormerStage(nn.Module):
    """Patch embedding, blocks, LayerNorm. (B, C_in, H, W) -> (B, C, h, w), channels-last in memory."""

    def __init__(self, config: SegFormerConfig, stage: int, drop_path_rates: list[float]):
        super().__init__()
        self.patch_embed = SegFormerPatchEmbedding(config, stage)
        self.blocks = nn.ModuleList(SegFormerBlock(config, stage, rate) for rate in drop_path_rates)
        self.norm = nn.LayerNorm(config.hidden_sizes[stage], eps=config.layer_norm_eps)

    def forward(self, feature_map: torch.Tensor, **kwargs) -> torch.Tensor:
        x = self.patch_embed(feature_map)  # (B, h, w, C)
        for block in self.blocks:
            x = block(x, **kwargs)
        return self.norm(x).permute(0, 3, 1, 2)  # (B, C, h, w)


class SegFormerDecodeHead(nn.Module):
    """The all-MLP head, Section 3.2 and Eq. 4: project every stage to C, upsample to the finest, fuse, classify.

    Projection, upsampling and fusion are linear, and a 1x1 convolution commutes with bilinear upsampling. So

        fuse(concat_i up(project_i(x_i))) = sum_i up((fuse_i project_i) x_i)

    where `fuse_i` is the block of the fusion's columns that belongs to stage i: one product C_i -> C at the stage's own
    resolution instead of C_i -> C -> C at the finest. Same parameters, same function, a small part of the work. With
    BatchNorm and ReLU between (mmsegmentation's head) the two products stay apart, still at the stage's own resolution.
    Without fusion the classifier follows the projection, and is applied before the upsampling, too.

    Shape:
        feature_maps: (B, C_i, h_i, w_i) of every stage
        returns: logits (B, K, h_0, w_0), before softmax
    """

    def __init__(self, config: SegFormerConfig, channels: list[int] | None = None):
        super().__init__()
        self.stages = list(config.decoder_stages)
        self.normalize_projections = config.decoder_projection_norm
        width = config.decoder_hidden_size
        widths = [(channels or config.hidden_sizes)[stage] for stage in self.stages]
        self.projections = nn.ModuleList(Linear(n, width, bias=not self.normalize_projections) for n in widths)
        self.projection_norms = None
        if self.normalize_projections:
            self.projection_norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in widths)
        # Columns: coarsest stage first, as in every published checkpoint.
        self.fuse = nn.Conv2d(width * len(widths), width, 1, bias=False) if config.decoder_fusion else None
        self.norm = nn.BatchNorm2d(width) if config.decoder_fusion else None
        # Whole channels, as in the authors' code; before the ReLU, with which it commutes, it takes no memory.
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob, inplace=config.decoder_fusion)
        self.classifier = nn.Conv2d(width, config.num_labels, 1)

    def project(self, i: int, feature_map: torch.Tensor) -> torch.Tensor:
        """(B, C_i, h_i, w_i) of stage i -> (B, C, h_i, w_i)."""
        x = self.projections[i](feature_map.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return F.relu(self.projection_norms[i](x)) if self.normalize_projections else x

    def product(
        self, i: int, fuse: torch.Tensor, pixels: int, shift: torch.Tensor | None = None
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """What stage i adds to the fusion, at its own resolution: a function (B, C_i, h_i, w_i) -> (B, C, h_i, w_i).

        The two products become one where that saves multiplications: for more `pixels` B h_i w_i than channels C_i.
        """
        project = self.projections[i]
        is_linear = not self.normalize_projections and type(project) is Linear and has_plain_weight(project)
        if is_linear and pixels > project.in_features:
            weight, bias = fuse @ project.weight, fuse @ project.bias
            bias = bias if shift is None else bias + shift
            return lambda feature_map: linear(feature_map.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)
        return lambda x: linear(self.project(i, x).permute(0, 2, 3, 1), fuse, shift).permute(0, 3, 1, 2)

    def forward(self, feature_maps: tuple[torch.Tensor, ...]) -> torch.Tensor:
        size = feature_maps[0].shape[2:]
        feature_maps = [feature_maps[stage] for stage in self.stages]
        if self.fuse is None:
            logits = self.classifier(self.dropout(self.project(0, feature_maps[0])))
            return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        # (C, C) each, finest stage first
        fuse_parts = weight_of(self.fuse).flatten(1).chunk(len(self.stages), dim=1)[::-1]
        pixel_counts = [feature_map[:, 0].numel() for feature_map in feature_maps]
        if is_prediction(self) and isinstance(self.norm, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            scale, shift = batch_norm_terms(self.norm)  # into the fusion; upsampling leaves the shift as it is
            products = [
                self.product(i, scale[:, None] * fuse, pixels, shift if i == 0 else None)
                for i, (fuse, pixels) in enumerate(zip(fuse_parts, pixel_counts))
            ]
            return add_upsampled_by_rows(feature_maps, products, len(shift), size, self.classify)
        fused = None
        for i, (feature_map, fuse) in enumerate(zip(feature_maps, fuse_parts)):
            x = self.product(i, fuse, pixel_counts[i])(feature_map)
            if x.shape[2:] != size:
                x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
            fused = x if fused is None else x.add_(fused)  # in place: these maps are the largest of the network
        return self.classify(self.dropout(self.norm(fused)))  # (B, K, h_0, w_0)

    def classify(self, fused: torch.Tensor) -> torch.Tensor:
        """Normalised fusion (B, C, ...) to logits (B, K, ...); in place."""
        return self.classifier(F.relu(fused, inplace=True))

    def folded(self) -> nn.Module:
        """A faster head for inference; this one, if there is nothing to fold or it has adapters."""
        layers = [*self.projections, self.fuse, self.norm]
        is_plain = {type(layer) for layer in layers} <= {Linear, nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm}
        return FoldedSegFormerHead(self) if is_plain and all(map(has_plain_weight, layers)) else self


class FoldedSegFormerHead(nn.Module):
    """A trained [`SegFormerDecodeHead`] for inference, with all products of weights computed.

    BatchNorm's scale goes into the products. Its shift and their biases, which upsampling leaves as they are, are one
    bias, that of the finest stage.
    """

    classify = SegFormerDecodeHead.classify

    def __init__(self, head: SegFormerDecodeHead):
        super().__init__()
        self.stages, self.classifier = head.stages, head.classifier
        scale, bias = batch_norm_terms(head.norm)
        fuse_parts = head.fuse.weight.flatten(1).chunk(len(self.stages), dim=1)[::-1]
        products = []
        for i, (projection, fuse) in enumerate(zip(head.projections, fuse_parts)):
            weight, layers = scale[:, None] * fuse, []
            if head.normalize_projections:
                norm_scale, norm_shift = batch_norm_terms(head.projection_norms[i])
                layers = [linear_layer(norm_scale[:, None] * projection.weight, norm_shift), nn.ReLU()]
            else:
                bias = bias + weight @ projection.bias
                weight = weight @ projection.weight
            products.append(nn.Sequential(*layers, linear_layer(weight, None)))
        products[0][-1].bias = nn.Parameter(bias)
        self.products = nn.ModuleList(products)

    def forward(self, feature_maps: tuple[torch.Tensor, ...]) -> torch.Tensor:
        size = feature_maps[0].shape[2:]
        products = [partial(of_pixels, product) for product in self.products]
        feature_maps = [feature_maps[stage] for stage in self.stages]
        if is_prediction(self):
            width = self.products[0][-1].out_features
            return add_upsampled_by_rows(feature_maps, products, width, size, self.classify)
        fused = None
        for stage, product, feature_map in zip(self.stages, products, feature_maps):
            x = product(feature_map)
            if stage > 0:
                x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
            fused = x if fused is None else fused + x
        return self.classify(fused)


def of_pixels(layers: Iterable[nn.Module], feature_map: torch.Tensor) -> torch.Tensor:
    """Linear layers and ReLU of each pixel of a map (B, C, h, w)."""
    if torch.compiler.is_exporting():  # runtimes are faster with 1x1 convolutions
        for layer in layers:
            weight = layer.weight[:, :, None, None] if isinstance(layer, nn.Linear) else None
            feature_map = layer(feature_map) if weight is None else F.conv2d(feature_map, weight, layer.bias)
        return feature_map
    tokens = feature_map.permute(0, 2, 3, 1)
    for layer in layers:
        tokens = layer(tokens)
    return tokens.permute(0, 3, 1, 2)


def linear_layer(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """The layer with these, (C_out, C_in) and (C_out,)."""
    layer = Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias)
    return layer


# Names in transformers' SegFormer (those of its files, those of its modules) -> ours; applied in this order.
TRANSFORMERS_NAMES = {
    r"^segformer\.encoder\.": "backbone.",
    r"^segformer\.": "backbone.",
    r"^encoder\.": "",
    r"patch_embeddings\.(\d+)\.": r"stages.\1.patch_embed.",
    r"patch_embeddings\.": "patch_embed.",
    r"patch_embed\.layer_norm": "patch_embed.norm",
    r"block\.(\d+)\.": r"stages.\1.blocks.",
    r"stages\.(\d+)\.layer_norm": r"stages.\1.norm",
    r"layer_norm\.(\d+)\.": r"stages.\1.norm.",
    r"layer_norm_1|layernorm_before": "norm1",
    r"layer_norm_2|layernorm_after": "norm2",
    r"attention\.self\.sr|attention\.sequence_reduction\.sequence_reduction": "attn.reduction",
    r"attention\.self\.layer_norm|attention\.sequence_reduction\.layer_norm": "attn.reduction_norm",
    r"attention\.self\.": "attn.",
    r"attention\.q_proj": "attn.query",
    r"attention\.k_proj": "attn.key",
    r"attention\.v_proj": "attn.value",
    r"attention\.output\.dense|attention\.o_proj": "attn.proj",
    r"mlp\.dense(\d)": r"mlp.fc\1",
    r"dwconv\.dwconv": "dwconv",
    r"linear_(?:c|projections)\.(\d+)\.proj": r"projections.\1",
    r"linear_fuse": "fuse",
    r"batch_norm": "norm",
}


class SegFormerPreTrainedModel(SegmentationPreTrainedModel):
    """Base class: initialisation, and loading of what transformers' SegFormer saved."""

    config: SegFormerConfig
    _no_split_modules = ["SegFormerBlock"]
    _can_record_outputs = {
        "hidden_states": OutputRecorder(SegFormerStage, capture_initial_hidden_state=False),
        "attentions": OutputRecorder(SegFormerAttention, index=1),
    }
    _auto_map = {
        "AutoModel": "modeling_segformer.SegFormerModel",
        "AutoModelForSemanticSegmentation": "modeling_segformer.SegFormerForSemanticSegmentation",
        "AutoModelForImageClassification": "modeling_segformer.SegFormerForImageClassification",
    }

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in transformers; folders and repositories of transformers' own SegFormer load too."""
        config = kwargs.get("config")
        if isinstance(config, PreTrainedConfig):
            other_backbone = config.backbone_config
        else:
            hub = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
            options = {name: kwargs[name] for name in hub if name in kwargs}
            config, _ = cls.config_class.get_config_dict(config or pretrained_model_name_or_path, **options)
            other_backbone = {**config, **kwargs}.get("backbone_config")
        if other_backbone is not None:  # whose parameters may have names of transformers' SegFormer
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        loaded = super().from_pretrained(
            pretrained_model_name_or_path, *args, **{"key_mapping": TRANSFORMERS_NAMES, **kwargs}
        )
        # Otherwise `save_pretrained` would undo the renaming, which concerns the file that was read, not the model.
        (loaded[0] if isinstance(loaded, tuple) else loaded)._weight_conversions = None
        return loaded

    def _init_weights(self, module: nn.Module):
        """The authors': truncated normal in linear layers, fan-out normal in convolutions, norms 1 and biases 0."""
        if isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            is_classifier = module.kernel_size == (1, 1) and module.bias is not None  # the only such convolution
            # With fan-out in the classifier, too, the first loss would be 8 instead of log(K).
            std = self.config.initializer_range if is_classifier else math.sqrt(2.0 / fan_out)
            init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, SegFormerPatchEmbedding) and module.pos_embed is not None:
            init.trunc_normal_(module.pos_embed, mean=0.0, std=self.config.initializer_range)
        else:
            super()._init_weights(module)


class SegFormerModel(SegFormerPreTrainedModel):
    """The Mix Transformer (MiT) backbone, Section 3.1.

    Shape:
        pixel_values: (B, num_channels, H, W), normalised; any size from `minimum_side` pixels on
        returns: [`SegFormerModelOutput`], maps at 1/4, 1/8, 1/16 and 1/32 of the image

    Raises:
        ValueError: if an image is smaller than that.
    """

    _keys_to_ignore_on_load_unexpected = [r"^(decode_head|classifier)\."]  # when read from a whole checkpoint

    def __init__(self, config: SegFormerConfig):
        super().__init__(config)
        if config.backbone_config is not None:
            self.encoder = FeatureMaps(config)
            self.post_init()
            return
        rates = torch.linspace(0, config.drop_path_rate, sum(config.depths), device="cpu").split(list(config.depths))
        self.stages = nn.ModuleList(SegFormerStage(config, i, rate.tolist()) for i, rate in enumerate(rates))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        if self.config.backbone_config is not None:
            return self.encoder.backbone.get_input_embeddings()
        return self.stages[0].patch_embed.proj

    def forward(self, pixel_values: torch.Tensor, **kwargs) -> SegFormerModelOutput:
        if self.config.backbone_config is not None:
            return self.read_maps(SegFormerModelOutput, pixel_values, **kwargs)
        return self.encode(pixel_values, **kwargs)

    @capture_outputs
    def encode(self, pixel_values: torch.Tensor, **kwargs) -> SegFormerModelOutput:
        """`forward` of the architecture's own encoder."""
        refuse_tracing()
        height, width = pixel_values.shape[2:]
        if not torch.compiler.is_compiling() and min(height, width) < (least := minimum_side(self.config)):
            raise ValueError(
                f"images of {height}x{width} pixels; this network takes at least {least} a side: set the image "
                f"processor's minimum_size to {least}, to which it pads, or a larger size"
            )
        feature_maps = []
        x = pixel_values
        for stage in self.stages:
            x = stage(x, **kwargs)  # (B, C_i, h_i, w_i)
            feature_maps.append(x)
        return SegFormerModelOutput(last_hidden_state=x, feature_maps=tuple(feature_maps))


class SegFormerForSemanticSegmentation(SegFormerPreTrainedModel):
    """SegFormer: MiT and the all-MLP head.

    Shape:
        pixel_values: (B, num_channels, H, W), normalised
        labels: (B, H', W') class ids or the ignore index, of the image's size, or scaled
        windows: (B, 7), where the images lie, for post-processing; returned as they are
        returns: [`SegmentationOutput`] with logits (B, K, H / 4, W / 4)
    """

    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]  # the ImageNet classifier of pre-trained MiT

    def __init__(self, config: SegFormerConfig):
        config.name_background()
        super().__init__(config)
        self.backbone = SegFormerModel(config)
        self.neck = self.build_neck()
        self.decode_head = SegFormerDecodeHead(config, getattr(self.neck, "channels", None))
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
        logits = self.decode_head(self.neck(features.feature_maps))
        if self.config.backbone_config is not None:
            logits = crop_padding(logits, pixel_values.shape[2:], self.backbone.encoder.patch_size)
        loss = None if labels is None else self.loss_function(logits, labels, self.config)
        return SegmentationOutput(
            loss=loss,
            logits=logits,
            hidden_states=features.hidden_states,
            attentions=features.attentions,
            windows=windows,
        )


class SegFormerForImageClassification(SegFormerPreTrainedModel):
    """MiT with a linear classifier on the mean of the last map, as it is pre-trained on ImageNet (Section 4.1).

    Shape:
        pixel_values: (B, num_channels, H, W), normalised
        labels: (B,) class ids
        returns: ImageClassifierOutput with logits (B, K)
    """

    def __init__(self, config: SegFormerConfig):
        super().__init__(config)
        self.backbone = SegFormerModel(config)
        self.classifier = nn.Linear(config.hidden_sizes[-1], config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs
    ) -> ImageClassifierOutput:
        features = self.backbone(pixel_values, return_dict=True, **kwargs)
        logits = self.classifier(features.last_hidden_state.mean(dim=(2, 3)))
        loss = None if labels is None else LOSS_MAPPING["ForImageClassification"](labels, logits, self.config)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=features.hidden_states, attentions=features.attentions
        )


# pipeline("image-segmentation") knows the model classes it supports by this table only.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.setdefault(SegFormerConfig.model_type, "SegFormerForSemanticSegmentation")
