"""Small layers that several architectures share.

Shapes: B images, N = h * w tokens, C channels; (h, w) the size of a feature map.
"""

import torch
import torch.nn.functional as F
from torch import nn


def tokens_to_map(tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Tokens (B, N, C) as a feature map (B, C, h, w). A view: a token sequence is a channels-last map."""
    return tokens.unflatten(1, size).permute(0, 3, 1, 2)


def map_to_tokens(feature_map: torch.Tensor) -> torch.Tensor:
    """Feature map (B, C, h, w) as tokens (B, N, C). A view when the map is channels-last in memory."""
    return feature_map.permute(0, 2, 3, 1).flatten(1, 2)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """As F.linear. In float32 on a CPU it is computed as the 1x1 convolution that it is.

    PyTorch gives convolutions to oneDNN and matrix products to MKL, which leaves out AVX-512 on processors of other
    makers: there the convolution takes half of the time, forward and backward; elsewhere both take the same. The
    dilation, which has no meaning for one pixel, makes PyTorch do so with a single thread, too. The tokens lie along
    the width because oneDNN's gradient of the weights takes four times as long if the height is odd.

    Shape:
        x: (..., C_in), weight: (C_out, C_in), bias: (C_out,)
        returns: (..., C_out)
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_exporting():
        return F.linear(x, weight, bias)
    tokens = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)  # (1, C_in, 1, N), channels-last
    y = F.conv2d(tokens, weight[:, :, None, None], bias, dilation=2)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """nn.Linear, computed by [`linear`]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


def eager_attention_forward(module, query, key, value, attention_mask=None, scaling=None, dropout=0.0, **kwargs):
    """Softmax attention written out; the only path that can return its weights. Tensors (B, heads, N, d)."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2), weights


class DropPath(nn.Module):
    """Stochastic depth: in training, a residual branch is left out for a whole image with probability `rate`.

    Huang et al., arXiv 1603.09382. What is kept is scaled by 1 / (1 - rate), so that the expectation stays.

    Shape:
        branch: (B, ...), any number of further dimensions
        returns: the same
    """

    def __init__(self, rate: float = 0.0):
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


class WinogradConv2d(nn.Conv2d):
    """A trained 3x3 convolution of stride 1 for inference on a CPU, in two thirds of the multiplications.

    Winograd's F(2, 3) (Lavin and Gray, arXiv 1509.09308, Section 4.1) along the height: two rows of the result take
    four products of sums of rows with sums of the kernel's rows, instead of six. The same up to rounding (1e-5 of the
    result's standard deviation). From about 256 channels on the products outweigh the sums. Elsewhere than in float32
    on a CPU the convolution is computed as usual.

    Args:
        conv: with "same" padding, its dilation the same in height and width.

    Shape:
        feature_map: (B, C, h, w), channels-last
        returns: (B, O, h, w)
    """

    def __init__(self, conv: nn.Conv2d):
        with torch.device("meta"):
            super().__init__(conv.in_channels, conv.out_channels, 3, padding=conv.dilation, dilation=conv.dilation)
        self.weight, self.bias = conv.weight, conv.bias
        top, middle, bottom = conv.weight.detach().split(1, dim=2)  # each (O, C, 1, 3)
        kernels = torch.cat([top, (top + middle + bottom) / 2, (top - middle + bottom) / 2, bottom])  # (4 O, C, 1, 3)
        self.register_buffer("kernels", kernels.contiguous(memory_format=torch.channels_last), persistent=False)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        if feature_map.device.type != "cpu" or feature_map.dtype != torch.float32:
            return super().forward(feature_map)
        (batch, _, height, width), dilation = feature_map.shape, self.dilation[0]
        pairs = -(-height // (2 * dilation))  # of rows that are `dilation` apart, so many for each row below it
        shape = (batch, pairs, 2, dilation, width, self.out_channels)
        result = feature_map.new_empty(shape).permute(0, 5, 1, 2, 3, 4)  # channels-last
        for start in range(0, pairs, step := max(1, 2**10 // (batch * dilation * width))):  # sums fit the cache
            stop = min(start + step, pairs)
            top, bottom = (2 * start - 1) * dilation, (2 * stop + 1) * dilation
            x = feature_map[:, :, max(top, 0) : bottom]
            x = F.pad(x, (0, 0, max(-top, 0), max(bottom - height, 0))).unflatten(2, (-1, 2, dilation))
            even, odd = x[:, :, :-1, 0], x[:, :, :-1, 1]  # (B, C, stop - start, dilation, w): rows 0 and 1 of the four,
            next_even, next_odd = x[:, :, 1:, 0], x[:, :, 1:, 1]  # 2 and 3
            products = []
            sums = (even - next_even, odd + next_even, next_even - odd, odd - next_odd)
            for rows, kernel, bias in zip(sums, self.kernels.chunk(4), (None, self.bias, None, None)):
                product = F.conv2d(rows.flatten(2, 3), kernel, bias, padding=(0, dilation), dilation=(1, dilation))
                products.append(product.unflatten(2, (-1, dilation)))
            torch.add(products[0], products[1], out=result[:, :, start:stop, 0]).add_(products[2])
            torch.sub(products[1], products[2], out=result[:, :, start:stop, 1]).sub_(products[3])
        return result.flatten(2, 4)[:, :, :height]
