"""Small layers that several architectures share.

Shapes: B images, N = h * w tokens, C channels; (h, w) the size of a feature map.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .cpu import map_to_train_on


def tokens_to_map(tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Tokens (B, N, C) as a feature map (B, C, h, w). A view: a token sequence is a channels-last map."""
    return tokens.unflatten(1, size).permute(0, 3, 1, 2)


def map_to_tokens(feature_map: torch.Tensor) -> torch.Tensor:
    """Feature map (B, C, h, w) as tokens (B, N, C). A view when the map is channels-last in memory."""
    return feature_map.permute(0, 2, 3, 1).flatten(1, 2)


def weight_of(conv: nn.Conv2d) -> torch.Tensor:
    """The weight of a convolution that is computed in another order than by calling it.

    Raises:
        ValueError: if there is an adapter on it, which would have no effect.
    """
    if hasattr(conv, "base_layer"):  # as all layers of peft
        raise ValueError(
            f"an adapter on {conv.base_layer} would have no effect: its head reads the weight. Leave it out of "
            "target_modules, and train the head as a whole (modules_to_save of peft's LoraConfig)"
        )
    return conv.weight


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout, **kwargs):
    """Softmax attention written out, unmasked; the only path that can return its weights. Tensors (B, heads, N, d)."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2), weights


def refuse_tracing() -> None:
    """Raises if the model is being traced, which would freeze the sizes of the example without a word.

    Raises:
        ValueError: under `torch.jit.trace`, the old exporter of torch.onnx and OpenVINO's `example_input`.
    """
    if torch.jit.is_tracing():
        raise ValueError(
            "tracing (torch.jit.trace, torch.onnx.export with dynamo=False, openvino.convert_model with example_input) "
            "would give wrong results at other sizes than the example's; use torch.export.export, and hand its result "
            "to torch.onnx.export or openvino.convert_model, or the command `segtx export`, which does so"
        )


def padding_of(side: int, patch_size: int) -> int:
    """Pixels that a side lacks to whole patches; written so that an export can reckon with symbols for sides."""
    return (side + patch_size - 1) // patch_size * patch_size - side


def crop_padding(
    logits: torch.Tensor, image_size: tuple[int, int], patch_size: int, align_corners: bool = False
) -> torch.Tensor:
    """Takes out of the logits what the padding of the image to whole patches added; nothing to do without padding.

    Padding ends between two logits, so the crop is made after upsampling: then, and only then, the result has the size
    of the image. A processor with `size_divisor` spares this.

    Shape:
        logits: (B, K, h', w'), covering the padded image
        returns: the same where nothing was padded, else (B, K, H, W)
    """
    (height, width), (rows, columns) = image_size, logits.shape[2:]
    bottom, right = padding_of(height, patch_size), padding_of(width, patch_size)
    if not torch.compiler.is_exporting():
        if not (bottom or right):
            return logits
        padded = (height + bottom, width + right)
        return F.interpolate(logits, size=padded, mode="bilinear", align_corners=align_corners)[..., :height, :width]
    # One graph for every size: `cropped` is 1, or 0 where nothing was padded and the logits stay as they are.
    cropped = (bottom + right + 2 * patch_size - 2) // (2 * patch_size - 1)
    size = (rows + cropped * (height + bottom - rows), columns + cropped * (width + right - columns))
    logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)
    for dim, side in ((2, size[0] - cropped * bottom), (3, size[1] - cropped * right)):  # of a slice, strides would
        logits = logits.index_select(dim, torch.arange(side, device=logits.device))  # become a condition on the size
    return logits


class DropPath(nn.Module):
    """Stochastic depth: in training, a residual branch is left out for a whole image with probability `rate`.

    Huang et al., arXiv 1603.09382. What is kept is scaled by 1 / (1 - rate), so that the expectation stays.

    Shape:
        branch: (B, ...), any number of further dimensions
        returns: the same
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        if self.rate == 0.0 or not self.training:
            return branch
        keep = branch.new_empty((branch.shape[0],) + (1,) * (branch.ndim - 1)).bernoulli_(1 - self.rate)
        return branch * keep.div_(1 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class ConvNormAct(nn.Sequential):
    """Convolution, BatchNorm and ReLU, "same" padding: the brick of every convolutional head here.

    The parts are called `conv`, `norm` and `act`, so parameters read `...conv.weight`, `...norm.weight`.

    Args:
        in_channels, out_channels, kernel_size: of the convolution; kernel_size in pixels of the map, odd.
        bias: whether the convolution has a bias although BatchNorm follows (some authors' code has it).

    Shape:
        feature_map: (B, in_channels, h, w)
        returns: (B, out_channels, h, w)
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, bias: bool = False, **conv_arguments):
        super().__init__()
        padding = kernel_size // 2 * conv_arguments.get("dilation", 1)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=bias, **conv_arguments)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.ReLU(inplace=True)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return super().forward(map_to_train_on(self.conv, feature_map))
