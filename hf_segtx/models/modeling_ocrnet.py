"""OCRNet: every pixel is described by the object regions that it belongs to, on HRNet or a dilated ResNet.

Paper: Yuan et al., "Segmentation Transformer: Object-Contextual Representations", ECCV 2020, arXiv 1909.11065. Authors'
code: HRNet/HRNet-Semantic-Segmentation, branch HRNet-OCR, and openseg-group/openseg.pytorch.
Differs from it in how things are computed, not in what: maps are channels-last, and what is linear between two
upsamplings or weighted sums is applied where there are fewest positions; see [`OCRNetDecodeHead`].

    image (B, 3, H, W) -- HRNet: branches at 1/4 .. 1/32, upsampled to 1/4 and concatenated --.
                       -- ResNet: last two stages, dilated, at 1/8 ----------------------------|
                                                                                               |
      .----------------------------------------------------------------------------------------'
      |-- soft object regions: conv, 1x1 conv ---------------- region logits (B, K, h, w) --.  loss of their own
      |                                                                                     |
      '-- pixel representations x: 3x3 conv (B, C, h, w) --.-- sum over space, Eq. 4 -------'
                                                           |     region representations f (B, C, K)
                                                           |-- pixel-region relation w, Eq. 5
                                                           |-- object-contextual representations y, Eq. 3
                                                           '-- augmented representations z = g([y, x]), Eq. 6
                                                               classifier -- logits (B, K, h, w)

Shapes: B images, K classes and regions, C channels, D = `decoder_key_size`; (H, W) the image, (h, w) = (H, W) / 4 for
HRNet and / `output_stride` for ResNet.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GradientCheckpointingLayer
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.utils.generic import can_return_tuple

from .configuration_ocrnet import OCRNetConfig
from .cpu import norm_relu_conv
from .feature_maps import FeatureMaps
from .layers import ConvNormAct, crop_padding, map_to_tokens, refuse_tracing, tokens_to_map, weight_of
from .segmentation_base import SegmentationOutput, SegmentationPreTrainedModel


@dataclass
class OCRNetModelOutput(BaseModelOutput):
    """Output of [`OCRNetModel`].

    Args:
        last_hidden_state: (B, C, h, w), the last (coarsest) map.
        hidden_states: the feature maps, on request.
        feature_maps: (B, C, h, w) of the branches of HRNet, fine to coarse, or of the stages of another backbone.
    """

    feature_maps: tuple[torch.Tensor, ...] | None = None


@dataclass
class OCRNetOutput(SegmentationOutput):
    """Output of [`OCRNetForSemanticSegmentation`].

    Args:
        region_maps: (B, K, h, w), share of each pixel in each soft object region; each map sums to 1. On request.
        pixel_region_relation: (B, K, h, w), relation of each pixel to each region (Eq. 5); sums to 1 over regions. On
            request.
        region_representations: (B, K, C), on request (Eq. 4).
        align_corners: (B,) true, if that is how the logits are to be upsampled; for post-processing, which has no
            configuration.
    """

    region_maps: torch.Tensor | None = None
    pixel_region_relation: torch.Tensor | None = None
    region_representations: torch.Tensor | None = None
    align_corners: torch.Tensor | None = None


def conv_norm(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, dilation: int = 1):
    """[convolution with "same" padding and without bias, BatchNorm]"""
    padding = kernel_size // 2 * dilation
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=False),
        nn.BatchNorm2d(out_channels),
    ]


class BasicBlock(GradientCheckpointingLayer):
    """Residual block of two 3x3 convolutions of the same width. (B, C, h, w) -> the same."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.bn1 = conv_norm(width, width, 3)
        self.conv2, self.bn2 = conv_norm(width, width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = norm_relu_conv(self.bn1, self.conv2, self.conv1(x))
        return F.relu(self.bn2(y).add_(x), inplace=True)


class Bottleneck(GradientCheckpointingLayer):
    """Residual block 1x1, 3x3, 1x1; the stride is that of the 3x3 convolution. (B, C_in, H, W) -> (B, C, h, w)."""

    def __init__(self, in_channels: int, width: int, out_channels: int, stride: int = 1, dilation: int = 1):
        super().__init__()
        self.conv1, self.bn1 = conv_norm(in_channels, width, 1)
        self.conv2, self.bn2 = conv_norm(width, width, 3, stride, dilation)
        self.conv3, self.bn3 = conv_norm(width, out_channels, 1)
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(*conv_norm(in_channels, out_channels, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = norm_relu_conv(self.bn1, self.conv2, self.conv1(x))
        y = norm_relu_conv(self.bn2, self.conv3, y, self.bn3)
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(y.add_(shortcut), inplace=True)


def upsample(feature_map: torch.Tensor, size: tuple[int, int], align_corners: bool) -> torch.Tensor:
    """(B, C, h, w) -> (B, C, *size), bilinear."""
    if not torch.compiler.is_exporting() and feature_map.shape[2:] == size:  # an export must serve every size
        return feature_map
    return F.interpolate(feature_map, size=size, mode="bilinear", align_corners=align_corners)


class HighResolutionModule(nn.Module):
    """Residual blocks on each branch of HRNet, then every branch gets the sum of all, brought to its resolution.

    Shape:
        feature_maps: (B, C_i, h_i, w_i) of each branch, fine to coarse, each half the size of the one before
        returns: the same
    """

    def __init__(self, widths: list[int], depth: int, align_corners: bool):
        super().__init__()
        self.align_corners = align_corners
        self.branches = nn.ModuleList(nn.Sequential(*(BasicBlock(n) for _ in range(depth))) for n in widths)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(self.fuse_layer(widths, i, j) for j in range(len(widths))) for i in range(len(widths))
        )

    @staticmethod
    def fuse_layer(widths: list[int], i: int, j: int) -> nn.Module:
        """From branch j to the width of branch i; to a coarser branch also to its resolution, by strides of 2."""
        if i == j:
            return nn.Identity()
        if i < j:
            return nn.Sequential(*conv_norm(widths[j], widths[i], 1))
        steps = [nn.Sequential(*conv_norm(widths[j], widths[j], 3, 2), nn.ReLU(inplace=True)) for _ in range(i - j - 1)]
        return nn.Sequential(*steps, nn.Sequential(*conv_norm(widths[j], widths[i], 3, 2)))

    def forward(self, feature_maps: list[torch.Tensor]) -> list[torch.Tensor]:
        feature_maps = [branch(x) for branch, x in zip(self.branches, feature_maps)]
        fused = []
        for i, layers in enumerate(self.fuse_layers):
            total, size = feature_maps[i], feature_maps[i].shape[2:]
            for j, layer in enumerate(layers):
                if j == i:
                    continue
                x = layer(feature_maps[j])
                if j > i:
                    if not self.align_corners:
                        # As mmsegmentation: first by the power of 2, then, if sizes are odd, to the size.
                        x = upsample(x, (x.shape[2] * 2 ** (j - i), x.shape[3] * 2 ** (j - i)), False)
                    x = upsample(x, size, self.align_corners)
                total = x.add_(total)
            fused.append(F.relu(total, inplace=True))
        return fused


class HRNet(nn.Module):
    """HRNetV2 (Wang et al., arXiv 1908.07919): the map at 1/4 is kept, coarser branches join it. Public weights' names.

    Shape:
        pixel_values: (B, num_channels, H, W)
        returns: four maps (B, C_i, H / 4 / 2^i, W / 4 / 2^i), sizes rounded up
    """

    def __init__(self, config: OCRNetConfig):
        super().__init__()
        widths, stem = list(config.hidden_sizes), config.stem_hidden_sizes
        self.channels = widths
        self.conv1, self.bn1 = conv_norm(config.num_channels, stem[0], 3, 2)
        self.conv2, self.bn2 = conv_norm(stem[0], stem[1], 3, 2)
        width = config.layer1_hidden_size
        self.layer1 = nn.Sequential(
            *(Bottleneck(stem[1] if i == 0 else 4 * width, width, 4 * width) for i in range(config.depths[0]))
        )

        def transition(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
            return nn.Sequential(*conv_norm(in_channels, out_channels, 3, stride), nn.ReLU(inplace=True))

        def stage(number: int) -> nn.Sequential:
            depth, modules = config.depths[number - 1], config.num_modules[number - 1]
            return nn.Sequential(
                *(HighResolutionModule(widths[:number], depth, config.align_corners) for _ in range(modules))
            )

        # A new branch starts from the coarsest; those that go on as they are stand here as identities.
        self.transition1 = nn.ModuleList(
            [transition(4 * width, widths[0], 1), nn.Sequential(transition(4 * width, widths[1], 2))]
        )
        self.stage2 = stage(2)
        self.transition2 = nn.ModuleList(
            [nn.Identity(), nn.Identity(), nn.Sequential(transition(widths[1], widths[2], 2))]
        )
        self.stage3 = stage(3)
        self.transition3 = nn.ModuleList(
            [nn.Identity(), nn.Identity(), nn.Identity(), nn.Sequential(transition(widths[2], widths[3], 2))]
        )
        self.stage4 = stage(4)

    def forward(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        return self.stages(self.embed(pixel_values))

    def embed(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The stem: (B, stem_hidden_sizes[1], H / 4, W / 4)."""
        x = norm_relu_conv(self.bn1, self.conv2, self.conv1(pixel_values))
        return F.relu(self.bn2(x), inplace=True)

    def stages(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What follows the stem."""
        x = self.layer1(x)
        feature_maps = self.stage2([layer(x) for layer in self.transition1])
        feature_maps = self.stage3([*feature_maps, self.transition2[-1](feature_maps[-1])])
        return self.stage4([*feature_maps, self.transition3[-1](feature_maps[-1])])


class ResNet(nn.Module):
    """ResNet whose last stages are dilated instead of strided, so that they stay at 1 / output_stride (Section 4.1).

    The first block of a dilated stage has half of its dilation, which is that of the stage before, as in openseg and
    mmsegmentation.

    Shape:
        pixel_values: (B, num_channels, H, W)
        returns: four maps (B, C_i, h_i, w_i)
    """

    def __init__(self, config: OCRNetConfig):
        super().__init__()
        self.channels = list(config.hidden_sizes)
        layers, in_channels = [], config.num_channels
        for i, width in enumerate(config.stem_hidden_sizes):
            kernel_size = 7 if len(config.stem_hidden_sizes) == 1 else 3
            layers += [*conv_norm(in_channels, width, kernel_size, 2 if i == 0 else 1), nn.ReLU(inplace=True)]
            in_channels = width
        self.stem = nn.Sequential(*layers)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1, ceil_mode=config.pool_ceil_mode)
        stages, reached, dilation = [], 4, 1
        for i, (width, depth) in enumerate(zip(config.hidden_sizes, config.depths)):
            stride = 2 if i > 0 and reached < config.output_stride else 1
            dilation = 2 * dilation if i > 0 and stride == 1 else 1
            reached *= stride
            blocks = [Bottleneck(in_channels, width // 4, width, stride, max(dilation // 2, 1))]
            blocks += [Bottleneck(width, width // 4, width, dilation=dilation) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
            in_channels = width
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    def forward(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        return self.stages(self.embed(pixel_values))

    def embed(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The stem and the pooling: (B, stem_hidden_sizes[-1], H / 4, W / 4)."""
        x = self.stem[0](pixel_values)  # then: BatchNorm, ReLU, convolution, ..., BatchNorm, ReLU
        for norm, conv in zip(self.stem[1::3], self.stem[3::3]):
            x = norm_relu_conv(norm, conv, x)
        return self.maxpool(F.relu(self.stem[-2](x), inplace=True))

    def stages(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What follows the stem."""
        feature_maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            feature_maps.append(x)
        return feature_maps


def convolve_upsampled(
    feature_map: torch.Tensor, weight: torch.Tensor, size: tuple[int, int], align_corners: bool
) -> torch.Tensor:
    """`conv2d(upsample(feature_map, size), weight)` with "same" padding, most of it done before the upsampling.

    A 1x1 convolution commutes with upsampling. A 3x3 convolution is a sum over the columns of its kernel, each moved by
    a pixel, and a column commutes with upsampling along the width. So only the height is upsampled first; then all
    three columns are applied, and one matrix both upsamples their results along the width and moves and adds them.

    Shape:
        feature_map: (B, C, h, w)
        weight: (O, C, k, k), k = 1 or 3
        returns: (B, O, *size)
    """
    if weight.shape[2:] == (1, 1):
        return upsample(F.conv2d(feature_map, weight), size, align_corners)
    height, width, channels = size[0], feature_map.shape[3], weight.shape[0]
    x = upsample(feature_map, (height, width), align_corners)
    x = F.conv2d(x, weight.permute(3, 0, 1, 2).flatten(0, 1).unsqueeze(3), padding=(1, 0))  # (B, 3 O, H, w)
    x = x.permute(0, 2, 3, 1).reshape(-1, height, 3 * width, channels)  # (B, H, 3 w, O)
    columns = torch.eye(width, dtype=x.dtype, device=x.device)[None, :, None]
    columns = F.interpolate(columns, size=(1, size[1]), mode="bilinear", align_corners=align_corners)[0, :, 0]  # (w, W)
    columns = F.pad(columns, (1, 1))  # there are no pixels beyond the border
    columns = torch.stack([columns[:, k : k + size[1]] for k in range(3)], dim=2).transpose(0, 1).flatten(1)  # (W, 3 w)
    return (columns @ x).permute(0, 3, 1, 2)  # (B, O, H, W)


def convolve_concatenated(conv: nn.Conv2d, feature_maps: list[torch.Tensor], align_corners: bool) -> torch.Tensor:
    """`conv` of the maps, upsampled to the size of the first and concatenated, without doing either.

    Shape:
        feature_maps: (B, C_i, h_i, w_i), the sum of the C_i being `conv.in_channels`
        returns: (B, conv.out_channels, h_0, w_0)
    """
    first, *others = feature_maps
    if not others:
        return conv(first)
    weight, *weights = weight_of(conv).split([x.shape[1] for x in feature_maps], dim=1)
    total = F.conv2d(first, weight, conv.bias, padding=conv.padding)
    for x, weight in zip(others, weights):
        total = total.add_(convolve_upsampled(x, weight, first.shape[2:], align_corners))
    return total


def brick(config: OCRNetConfig, in_channels: int, out_channels: int, bias: bool, kernel_size: int = 1) -> ConvNormAct:
    """Convolution, BatchNorm and the head's activation."""
    layer = ConvNormAct(in_channels, out_channels, kernel_size, bias=bias)
    if config.decoder_hidden_act == "leaky_relu":
        layer.act = nn.LeakyReLU(0.01, inplace=True)
    return layer


class Classifier(nn.Conv2d):
    """A 1x1 convolution that begins with smaller weights than others."""


class OCRNetRegionHead(nn.Module):
    """Soft object regions, Section 3.2: a coarse segmentation, learned with a loss of its own.

    Shape:
        feature_maps: (B, C_i, h_i, w_i), the first of the size (h, w), the others no larger
        returns: region logits (B, K, h, w)
    """

    def __init__(self, config: OCRNetConfig, in_channels: int):
        super().__init__()
        self.align_corners = config.align_corners
        width = config.auxiliary_hidden_size or in_channels
        self.conv = brick(config, in_channels, width, config.auxiliary_conv_bias, config.auxiliary_kernel_size)
        self.classifier = Classifier(width, config.num_labels, 1)

    def forward(self, feature_maps: list[torch.Tensor]) -> torch.Tensor:
        x = convolve_concatenated(self.conv.conv, feature_maps, self.align_corners)
        return self.classifier(self.conv.act(self.conv.norm(x)))


class OCRNetDecodeHead(nn.Module):
    """Object-contextual representations, Section 3.2, and the classifier. The paper's letters are in brackets.

    The map rho of Eq. 3 starts with a convolution, which is linear, of a sum whose weights add up to 1: so it is
    applied to the K regions and not to the h w sums. Eq. 6 concatenates context and pixels before a convolution; here
    each half of its kernel is applied to its half of the channels.

    Shape:
        feature_maps: (B, C_i, h_i, w_i), the first of the size (h, w), the others no larger
        region_logits: (B, K, h, w)
        returns: logits, region maps and pixel-region relation, each (B, K, h, w); region representations (B, K, C)
    """

    def __init__(self, config: OCRNetConfig, in_channels: int):
        super().__init__()
        width, key_width, bias = config.decoder_hidden_size, config.decoder_key_size, config.context_conv_bias
        self.align_corners = config.align_corners
        self.scaling = key_width**-0.5
        self.pixels = brick(config, in_channels, width, config.decoder_conv_bias, 3)
        self.query = nn.Sequential(  # phi
            brick(config, width, key_width, bias), brick(config, key_width, key_width, bias)
        )
        self.key = nn.Sequential(  # psi
            brick(config, width, key_width, bias), brick(config, key_width, key_width, bias)
        )
        self.value = brick(config, width, key_width, bias)  # delta
        self.context = brick(config, key_width, width, bias)  # rho
        self.augmented = brick(config, 2 * width, width, bias)  # g; columns: context, pixels
        # Of whole channels, before the activation, with which it commutes: in place it needs no memory of its own.
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob, inplace=True)
        self.classifier = Classifier(width, config.num_labels, 1)

    def forward(self, feature_maps: list[torch.Tensor], region_logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pixels = convolve_concatenated(self.pixels.conv, feature_maps, self.align_corners)
        pixels = self.pixels.act(self.pixels.norm(pixels))  # (B, C, h, w)
        size = pixels.shape[2:]
        region_maps = region_logits.flatten(2).softmax(dim=2)  # (B, K, h w)
        regions = region_maps @ map_to_tokens(pixels)  # Eq. 4: (B, K, C)
        regions_as_map = tokens_to_map(regions, (regions.shape[1], 1))  # (B, C, K, 1)

        query = map_to_tokens(self.query(pixels))  # (B, h w, D)
        key = self.key(regions_as_map).flatten(2)  # (B, D, K)
        relation = (query @ key * self.scaling).softmax(dim=2)  # Eq. 5: (B, h w, K)

        conv, width = self.augmented.conv, pixels.shape[1]
        weight = weight_of(conv)
        augmented = F.conv2d(pixels, weight[:, width:], conv.bias)
        del pixels  # these maps are the largest here; no more of them at a time than needed
        value = map_to_tokens(self.context.conv(self.value(regions_as_map)))  # (B, K, C)
        context = self.context.act(self.context.norm(tokens_to_map(relation @ value, size)))  # Eq. 3: (B, C, h, w)
        augmented = augmented.add_(F.conv2d(context, weight[:, :width]))
        del context
        augmented = self.augmented.act(self.dropout(self.augmented.norm(augmented)))  # Eq. 6: (B, C, h, w)
        logits = self.classifier(augmented)  # (B, K, h, w)
        return logits, region_maps.unflatten(2, size), tokens_to_map(relation, size), regions


class OCRNetPreTrainedModel(SegmentationPreTrainedModel):
    """Base class: initialisation."""

    config: OCRNetConfig
    _no_split_modules = ["HighResolutionModule", "BasicBlock", "Bottleneck"]
    _auto_map = {
        "AutoModel": "modeling_ocrnet.OCRNetModel",
        "AutoModelForSemanticSegmentation": "modeling_ocrnet.OCRNetForSemanticSegmentation",
    }

    def _init_weights(self, module: nn.Module):
        """Fan-out normal in convolutions, as ImageNet training does, small in classifiers; norms 1 and biases 0."""
        if isinstance(module, Classifier):
            init.normal_(module.weight, mean=0.0, std=0.01)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)


class OCRNetModel(OCRNetPreTrainedModel):
    """The backbone: HRNet, dilated ResNet, or any other of transformers and timm.

    Shape:
        pixel_values: (B, num_channels, H, W), normalised; any size
        returns: [`OCRNetModelOutput`]
    """

    _keys_to_ignore_on_load_unexpected = [r"^(decode_head|auxiliary_heads)\."]  # when read from a whole checkpoint

    def __init__(self, config: OCRNetConfig):
        super().__init__(config)
        if config.backbone_type == "auto":
            self.encoder = FeatureMaps(config)
        else:
            self.encoder = (HRNet if config.backbone_type == "hrnet" else ResNet)(config)
        self.channels = list(self.encoder.channels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **kwargs
    ) -> OCRNetModelOutput:
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        refuse_tracing()
        feature_maps = tuple(self.encoder(pixel_values.contiguous(memory_format=torch.channels_last)))
        return OCRNetModelOutput(
            last_hidden_state=feature_maps[-1],
            hidden_states=feature_maps if output_hidden_states else None,
            feature_maps=feature_maps,
        )


class OCRNetForSemanticSegmentation(OCRNetPreTrainedModel):
    """OCRNet: a backbone, soft object regions and object-contextual representations.

    Shape:
        pixel_values: (B, num_channels, H, W), normalised
        labels: (B, H', W') class ids or the ignore index, of the image's size, or scaled
        windows: (B, 7), where the images lie, for post-processing; returned as they are
        returns: [`OCRNetOutput`] with logits (B, K, h, w); with `output_auxiliary_logits` those of the soft object
            regions, with `output_regions` region maps, relation and representations
    """

    def __init__(self, config: OCRNetConfig):
        config.name_background()
        super().__init__(config)
        self.backbone = OCRNetModel(config)
        self.neck = self.build_neck()
        channels = getattr(self.neck, "channels", self.backbone.channels)
        region_channels = pixel_channels = sum(channels)
        if config.backbone_type == "resnet":
            region_channels, pixel_channels = channels[-2:]
        self.auxiliary_heads = nn.ModuleList([OCRNetRegionHead(config, region_channels)])
        self.decode_head = OCRNetDecodeHead(config, pixel_channels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        windows: torch.Tensor | None = None,
        output_auxiliary_logits: bool = False,
        output_regions: bool = False,
        **kwargs,
    ) -> OCRNetOutput:
        features = self.features(pixel_values, **kwargs)
        maps = list(self.neck(features.feature_maps))
        if self.config.backbone_type == "resnet":  # regions from the last but one stage, pixels from the last
            maps_of_regions, maps_of_pixels = maps[-2:-1], maps[-1:]
        else:  # both from all maps; those at half the size of the first or more are simply concatenated
            size = maps[0].shape[2:]
            fine = [upsample(x, size, self.config.align_corners) for x in maps if 2 * x.shape[2] >= size[0]]
            maps_of_regions = maps_of_pixels = [torch.cat(fine, dim=1), *maps[len(fine) :]]
        region_logits = self.auxiliary_heads[0](maps_of_regions)
        logits, region_maps, relation, regions = self.decode_head(maps_of_pixels, region_logits)
        if self.config.backbone_config is not None:
            patch_size, aligned = self.backbone.encoder.patch_size, self.config.align_corners
            logits, region_logits = (
                crop_padding(x, pixel_values.shape[2:], patch_size, aligned) for x in (logits, region_logits)
            )
        loss = None
        if labels is not None:
            auxiliary_logits = (region_logits,) if self.training else ()
            loss = self.loss_function(logits, labels, self.config, auxiliary_logits)
        is_aligned = self.config.align_corners and not torch.compiler.is_exporting()  # the exported file says it itself
        return OCRNetOutput(
            loss=loss,
            logits=logits,
            hidden_states=features.hidden_states,
            auxiliary_logits=(region_logits,) if output_auxiliary_logits else None,
            windows=windows,
            region_maps=region_maps if output_regions else None,
            pixel_region_relation=relation if output_regions else None,
            region_representations=regions if output_regions else None,
            align_corners=logits.new_ones(logits.shape[0], dtype=torch.bool) if is_aligned else None,
        )


# pipeline("image-segmentation") knows the model classes it supports by this table only.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.setdefault(OCRNetConfig.model_type, "OCRNetForSemanticSegmentation")
