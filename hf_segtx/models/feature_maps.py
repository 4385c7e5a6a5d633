"""Any backbone of transformers (`AutoBackbone`) or timm under any head of this package.

    image (B, 3, H, W) -- padded to whole patches -- backbone -- chosen maps (B, C, h, w) --- the model's `backbone`
      maps -- a norm each -- as they are, a pyramid of the last, or all fused into one ------- the model's `neck`, new
      logits -- upsampled and cropped where the image was padded ------------------------------ pixels again

What a backbone claims of its channels and strides is not believed (timm's Swin gives maps with the channels last,
HGNetV2 and FocalNet misstate them): they are measured in one forward on the meta device, which computes nothing.
The backbone itself is the library's, with its names of parameters; whatever is added here belongs to the neck.

Shapes: B images, C channels; (H, W) the image, (h, w) a map, in pixels.
"""

import copy
import inspect
import json
from functools import lru_cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CONFIG_MAPPING, AutoBackbone, PreTrainedConfig, PreTrainedModel

from .layers import padding_of, refuse_tracing


# (height, width) of the image that is sent through: whole patches of 7, 8, 14, 16, 32 and 64 pixels, and no square,
# so that the axes of a map can be told apart.
PROBE = (448, 1344)
ODD_PROBE = (15, 17)  # in patches: does not suit windows of 7 or 8 patches that are made for one size
FAILURES = (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError)


class Layout(NamedTuple):
    """What a backbone does, as measured.

    Attributes:
        channels, strides: of each chosen map; the stride is the side of the image over that of the map.
        channels_last: maps are (B, h, w, C).
        options: of the constructor of timm, which let a backbone of one size take others.
        fixed_size: (height, width) of the only images that it takes; None: any that are whole patches.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    channels_last: bool
    options: dict
    fixed_size: tuple[int, int] | None


def layout_of(backbone_config: PreTrainedConfig) -> Layout:
    """Channels and strides of the maps that `out_indices` chooses; measured once for each configuration.

    Raises:
        ValueError: if the backbone cannot be built, takes no image or cuts off borders.
    """
    return _layout(backbone_config.to_json_string(use_diff=False))


@lru_cache(maxsize=64)
def _layout(backbone_config: str) -> Layout:
    fields = json.loads(backbone_config)
    kind, name = fields["model_type"], fields.get("backbone") or fields["model_type"]
    attempts = [({}, False), ({}, True)]
    if kind == "timm_backbone":  # some of its models resize their position tables, if they were told when built
        attempts.insert(1, ({"dynamic_img_size": True}, False))
    errors = []
    for options, at_own_size in attempts:
        config = CONFIG_MAPPING[kind].from_dict({**copy.deepcopy(fields), "dtype": None})
        try:
            with torch.device("meta"), torch.no_grad():
                backbone = AutoBackbone.from_config(config, **options).eval()
                size = own_size(backbone) if at_own_size else PROBE
                maps = _maps_of_zeros(backbone, config.num_channels, size)
        except FAILURES as error:
            errors.append(f"{type(error).__name__} {' '.join(str(error).split())}"[:300])
            continue
        if any(x.ndim != 4 for x in maps):
            raise ValueError(
                f"the backbone {name} gives tokens, of the shape {tuple(maps[0].shape)}, not maps; set "
                "reshape_hidden_states=True in backbone_config"
            )
        ratio = size[1] / size[0]
        last = all(abs(x.shape[2] / x.shape[1] - ratio) < abs(x.shape[3] / x.shape[2] - ratio) for x in maps)
        shapes = [x.permute(0, 3, 1, 2).shape if last else x.shape for x in maps]
        if not at_own_size and (uneven := [shape for shape in shapes if size[0] % shape[2] or size[1] % shape[3]]):
            made = f"{uneven[0][2]}x{uneven[0][3]}"
            raise ValueError(
                f"the backbone {name} makes maps of {made} of images of {size[0]}x{size[1]}: it cuts off borders, so "
                "that pixels and predictions would not lie on each other; choose another, or one of its finer maps"
            )
        strides = tuple(round(size[0] / shape[2]) for shape in shapes)
        if not at_own_size:
            try:
                with torch.device("meta"), torch.no_grad():
                    _maps_of_zeros(backbone, config.num_channels, tuple(max(strides) * side for side in ODD_PROBE))
            except FAILURES as error:
                errors.append(f"{type(error).__name__} {' '.join(str(error).split())}"[:300])
                continue
        return Layout(tuple(shape[1] for shape in shapes), strides, last, options, size if at_own_size else None)
    raise ValueError(f"backbone_config, of {name!r}, gives no backbone that works: {errors[0]}")


def _maps_of_zeros(backbone: PreTrainedModel, num_channels: int, size: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    pixels = torch.zeros(1, num_channels, *size, dtype=next(backbone.parameters()).dtype)
    return backbone(pixels, return_dict=True).feature_maps


def own_size(backbone: PreTrainedModel) -> tuple[int, int]:
    """(height, width) of the images that a backbone was made for."""
    if hasattr(backbone, "_backbone"):  # timm's
        inner = getattr(backbone._backbone, "model", backbone._backbone)
        return tuple(inner.default_cfg["input_size"][1:])
    side = backbone.config.image_size
    return (side, side) if isinstance(side, int) else tuple(side)


def scaled(config: PreTrainedConfig) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Channels and strides of the maps that the head gets: those of the backbone after `feature_scaling`."""
    layout = layout_of(config.backbone_config)
    channels, strides = layout.channels, layout.strides
    if config.feature_scaling == "pyramid":
        width, stride = channels[-1], strides[-1]
        return (width // 4, width // 2, width, width), (stride / 4, stride / 2, stride, 2 * stride)
    if config.feature_scaling == "fuse":
        return channels[-1:], strides[:1]
    return channels, strides


def whole_patch(config: PreTrainedConfig) -> int:
    """Side in pixels that images are padded to multiples of, so that all maps cover exactly the same pixels."""
    layout = layout_of(config.backbone_config)
    return max(*layout.strides, *(int(stride) for stride in scaled(config)[1] if stride == int(stride)))


def put_in_windows(backbone: PreTrainedModel) -> None:
    """Mends transformers' Hiera, whose encoder takes tokens window by window: its backbone gives them row by row.

    So windows hold pixels from all over the image, and maps come out shuffled (5.24; `HieraModel` is right).
    """
    if "unroll" not in inspect.unwrap(type(backbone).forward).__code__.co_names:
        backbone.embeddings.register_forward_hook(partial(_unrolled, backbone.config))


def _unrolled(config: PreTrainedConfig, module: nn.Module, args: tuple, output: tuple) -> tuple:
    from transformers.models.hiera.modeling_hiera import unroll

    size = tuple(args[0].shape[2:])
    schedule = [config.query_stride] * (len(config.depths) - 1)
    return (unroll(output[0], size, config.patch_stride, schedule), *output[1:])


def select_hidden_states(chosen: list[int], module: nn.Module, args: tuple, kwargs: dict):
    """Hook before the forward of a stack of layers: only the chosen outputs are kept, not those of all layers."""
    if kwargs.get("output_hidden_states") is True:
        return args, {**kwargs, "output_hidden_states": chosen}
    return None


def nothing_for_none(module: nn.Module, args: tuple):
    """Hook before the forward of a norm: of what was not kept, nothing is normalised."""
    return (module.weight.new_empty(0, len(module.weight)),) if args[0] is None else None


class FeatureMaps(nn.Module):
    """A backbone of transformers or timm whose maps cover exactly the pixels of the image, whatever its size.

    Shape:
        pixel_values: (B, num_channels, H, W), normalised
        returns: the maps that `out_indices` of the backbone's configuration chooses, (B, C_i, h_i, w_i)

    Raises:
        ValueError: if the backbone takes images of one size only, and this is another.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        layout = layout_of(config.backbone_config)
        self.channels, self.strides = list(layout.channels), list(layout.strides)
        self.channels_last, self.fixed_size = layout.channels_last, layout.fixed_size
        self.patch_size = whole_patch(config)
        self.backbone = AutoBackbone.from_config(config.backbone_config, **layout.options)
        self.keep_only_chosen()
        if config.backbone_config.model_type == "hiera":
            put_in_windows(self.backbone)

    def keep_only_chosen(self) -> None:
        """In prediction a plain ViT holds the tokens of the chosen blocks only; transformers keeps those of all."""
        stages = self.backbone.stage_names
        if len(stages) != getattr(self.backbone.config, "num_hidden_layers", 0) + 1:  # else not one stage a block
            return
        chosen = [index % len(stages) for index in self.backbone.out_indices]
        for part in self.backbone.children():
            if isinstance(part, PreTrainedModel):
                part.register_forward_pre_hook(partial(select_hidden_states, chosen), with_kwargs=True)
            elif isinstance(part, nn.LayerNorm):  # DINOv3 normalises every block's output
                part.register_forward_pre_hook(nothing_for_none)

    def checkpoint_gradients(self, enable: bool) -> bool:
        """Switches recomputation in the backward pass in timm's models, which transformers does not know.

        Returns:
            Whether this was one, so that nothing is left to do.

        Raises:
            ValueError: if the backbone cannot do it.
        """
        inner = getattr(self.backbone, "_backbone", None)
        if inner is None and self.backbone.supports_gradient_checkpointing:
            return False
        switch = getattr(getattr(inner, "model", inner), "set_grad_checkpointing", None)
        if switch is None:
            raise ValueError(
                f"{type(self.backbone).__name__} cannot recompute activations; omit gradient_checkpointing"
            )
        switch(enable)
        return True

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        refuse_tracing()
        height, width = pixel_values.shape[2:]
        if self.fixed_size not in (None, (height, width)):
            own = "x".join(map(str, self.fixed_size))
            raise ValueError(
                f"images of {height}x{width} pixels; this backbone takes {own} only: set the image processor's "
                f"window_size to {list(self.fixed_size)}, so that it shows windows of any image"
            )
        bottom, right = padding_of(height, self.patch_size), padding_of(width, self.patch_size)
        if self.fixed_size is None and (torch.compiler.is_exporting() or bottom or right):
            pixel_values = F.pad(pixel_values, (0, right, 0, bottom))
        maps = self.backbone(pixel_values, return_dict=True).feature_maps
        return tuple(x.permute(0, 3, 1, 2) if self.channels_last else x for x in maps)


class MapNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map. (B, C, h, w) -> the same, channels-last in memory."""

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return super().forward(feature_map.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FeatureNeck(nn.Module):
    """What lies between a backbone of another library and a head: a norm for each map, and their scales.

    `feature_scaling`: "none"; "pyramid", ViTDet's simple feature pyramid (Li et al., arXiv 2203.16527, Section 3): maps
    of four times to half the resolution, made of the last one by transposed convolutions and pooling; "fuse": all maps
    are projected to the width of the last, brought to the size of the first and added.

    Shape:
        feature_maps: (B, C_i, h_i, w_i)
        returns: a tuple of maps; their `channels` and `strides` are attributes
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        widths = layout_of(config.backbone_config).channels
        self.channels, self.strides = scaled(config)
        self.scaling = config.feature_scaling
        norm = {"none": nn.Identity, "layer_norm": MapNorm, "batch_norm": nn.BatchNorm2d}[config.feature_norm]
        read = widths[-1:] if self.scaling == "pyramid" else widths
        self.norms = nn.ModuleList(norm(width) for width in read)
        if self.scaling == "pyramid":
            width = widths[-1]
            double = nn.ConvTranspose2d(width, width // 2, 2, stride=2)
            quadruple = nn.Sequential(
                nn.ConvTranspose2d(width, width // 2, 2, stride=2),
                MapNorm(width // 2),
                nn.GELU(),
                nn.ConvTranspose2d(width // 2, width // 4, 2, stride=2),
            )
            self.levels = nn.ModuleList([quadruple, double, nn.Identity(), nn.MaxPool2d(2)])
        elif self.scaling == "fuse":
            self.projections = nn.ModuleList(nn.Conv2d(width, widths[-1], 1, bias=False) for width in widths)

    def forward(self, feature_maps: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        if self.scaling == "pyramid":
            last = self.norms[0](feature_maps[-1])
            return tuple(level(last) for level in self.levels)
        maps = [norm(x) for norm, x in zip(self.norms, feature_maps, strict=True)]
        if self.scaling == "fuse":
            size, total = maps[0].shape[2:], None
            for project, x in zip(self.projections, maps):
                x = F.interpolate(project(x), size=size, mode="bilinear", align_corners=False)
                total = x if total is None else total + x
            return (total,)
        return tuple(maps)
