"""How layers are computed faster on a CPU, or in less memory: the same functions up to rounding, nothing else.

    linear        as a matrix product or as the 1x1 convolution that it is, whichever this processor does faster
    rows          wide maps in blocks of rows that fit the cache, in prediction
    activation    GELU within the convolution before it, in prediction
    training      BatchNorm, ReLU and convolution that keep only their input for the backward pass
    inference     a copy with BatchNorm folded into convolutions, weights in the order that is computed with, large
                  3x3 convolutions by Winograd's algorithm

What is fast depends on the processor and the shape; each choice is made in one function here.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers import PreTrainedModel
from transformers.activations import GELUActivation

from .upsampling import positions


INSTRUCTION_SET = torch.backends.cpu.get_cpu_capability()  # "AVX2", "AVX512", "DEFAULT", ...
HAS_ONEDNN = torch.backends.mkldnn.is_available()

# Values of the widest maps that are held at once in prediction.
BLOCK_NUMEL_CPU = 5 * 2**18  # few enough for a CPU's cache; SegFormer-B5 has so many in a stage of 32x32 pixels
BLOCK_NUMEL_GPU = 2**25  # and enough to occupy a GPU


# ------------------------------------------------------------------------------------------------------------ linear


def is_faster_as_convolution(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the product of tokens x (..., C_in) and a weight (C_out, C_in) is faster as a 1x1 convolution.

    PyTorch gives convolutions to oneDNN and matrix products to MKL, which leaves out AVX-512 on processors of other
    makers: there the convolution takes down to half of the time, forward and backward. With AVX2 (measured on an EPYC,
    one thread) it takes 0.7 to 0.95 of the product's time where channels become fewer, of narrow tokens and, forward,
    of wide ones, and 1 to 1.2 elsewhere. A dilated convolution of up to 20480 values never reaches oneDNN, and takes
    two to six times as long as the product. What this rests on is printed by benchmarks/layers.py.
    """
    width_out, width_in = weight.shape
    if not HAS_ONEDNN or x.numel() <= 20480:
        return False
    if INSTRUCTION_SET != "AVX2":
        return True
    forward_only = not (torch.is_grad_enabled() and weight.requires_grad)
    suits = width_in <= 32 or width_in >= 2 * width_out or (width_in >= 768 and forward_only)
    return suits and x.numel() >= 1024 * width_in


def has_plain_weight(module: nn.Module) -> bool:
    """Whether the weight is an ordinary tensor: not one that is quantised, or spread over devices."""
    return type(module.weight) in (torch.Tensor, nn.Parameter)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """As F.linear. In float32 on a CPU, where that is faster, it is computed as the 1x1 convolution that it is.

    The dilation, which has no meaning for one pixel, makes PyTorch use oneDNN with a single thread, too. The tokens lie
    along the width because oneDNN's gradient of the weights takes four times as long if the height is odd.

    Shape:
        x: (..., C_in), weight: (C_out, C_in), bias: (C_out,)
        returns: (..., C_out)
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_exporting():
        return F.linear(x, weight, bias)
    if not is_faster_as_convolution(x, weight):
        return F.linear(x, weight, bias)
    # (1, C_in, 1, N), channels-last; a single map that is not would stay so, and so would what comes out
    tokens = x.contiguous().reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)
    y = F.conv2d(tokens, weight[:, :, None, None], bias, dilation=2)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """nn.Linear, computed by [`linear`]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not has_plain_weight(self):
            return super().forward(x)
        return linear(x, self.weight, self.bias)


# ---------------------------------------------------------------------------------------------------- blocks of rows


def is_prediction(module: nn.Module) -> bool:
    """Whether maps may be computed in blocks of rows, which takes less memory but would slow down training."""
    return not (module.training or torch.is_grad_enabled() or torch.compiler.is_compiling())


def block_rows(x: torch.Tensor, height: int, row_numel: int) -> int:
    """Into blocks of how many rows to cut `height` rows of `row_numel` values, on the device of x; 16 at least.

    The blocks are about equal. Of smaller ones too much would be computed twice, at their borders.
    """
    block_numel = BLOCK_NUMEL_CPU if x.device.type == "cpu" else BLOCK_NUMEL_GPU
    most = max(16, block_numel // row_numel)
    return -(-height // -(-height // most))


def by_rows(
    function: Callable[[torch.Tensor, slice], torch.Tensor], x: torch.Tensor, width: int, halo: int
) -> torch.Tensor:
    """function(x) in blocks of rows, for a function whose maps between x and its result have `width` channels.

    Args:
        function: takes rows with `halo` more on each side (none beyond the border), and which of them are wanted.

    Shape:
        x: (B, h, w, C)
        returns: (B, h, w, C)
    """
    batch, height, columns = x.shape[:3]
    step = block_rows(x, height, batch * columns * width)
    if step >= height:
        return function(x, slice(height))
    result = torch.empty_like(x)
    for begin in range(0, height, step):
        end, first = min(begin + step, height), max(begin - halo, 0)
        result[:, begin:end] = function(x[:, first : end + halo], slice(begin - first, end - first))
    return result


def interpolation_matrices(size_in: int, size_out: int, step: int) -> list[tuple[slice, torch.Tensor]]:
    """Bilinear interpolation along one side: for each `step` results, which values they lie between, and the matrix."""
    place = positions(size_in, size_out, align_corners=False).clamp(0, size_in - 1)
    matrix = (1 - (place[:, None] - torch.arange(size_in)).abs()).clamp(min=0)  # two values in each row
    blocks = []
    for rows, places in zip(matrix.split(step), place.split(step)):
        used = slice(int(places[0]), int(places[-1]) + 2)
        blocks.append((used, rows[:, used]))
    return blocks


def add_upsampled_by_rows(
    feature_maps: list[torch.Tensor],
    functions: list[Callable[[torch.Tensor], torch.Tensor]],
    width: int,
    size: tuple[int, int],
    finish: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """finish(the sum of all function(feature_map), bilinearly upsampled to `size`), in blocks of rows.

    Of a smaller map, the few rows that a block needs are widened first; then one product interpolates between them and
    adds the result to the block.

    Args:
        functions: one for each map, of each of its pixels alone; their results have `width` channels.
        finish: likewise, of the sum.

    Shape:
        feature_maps: (B, C_i, h_i, w_i), of which each function makes (B, width, h_i, w_i)
        returns: (B, K, *size), channels-last
    """
    pairs = list(zip(feature_maps, functions))
    finest = [pair for pair in pairs if pair[0].shape[2:] == size]  # computed block by block; the others fit in memory
    smaller = [function(feature_map) for feature_map, function in pairs if feature_map.shape[2:] != size]
    batch, (height, columns), result = feature_maps[0].shape[0], size, None
    # Two blocks need the same rows of small maps, but the product that interpolates grows with the square of a block.
    step = 16 if feature_maps[0].device.type == "cpu" else block_rows(feature_maps[0], height, batch * width * columns)
    matrices = [interpolation_matrices(x.shape[2], height, step) for x in smaller]
    for begin in range(0, height, step):
        end = min(begin + step, height)
        total = None if finest else smaller[0].new_zeros(batch, end - begin, columns, width)
        for feature_map, function in finest:
            x = function(feature_map[:, :, begin:end]).permute(0, 2, 3, 1)
            total = x if total is None else x.add_(total)
        for x, blocks in zip(smaller, matrices):
            rows, matrix = blocks[begin // step]
            x = x[:, :, rows]
            x = F.interpolate(x, size=(x.shape[2], columns), mode="bilinear").permute(0, 2, 3, 1)
            weights = matrix.to(x).expand(batch, -1, -1)
            total.view(batch, end - begin, -1).baddbmm_(weights, x.flatten(2))  # x: (B, rows, columns width)
        block = finish(total.permute(0, 3, 1, 2))
        if result is None:
            result = block.new_empty(batch, height, columns, block.shape[1]).permute(0, 3, 1, 2)
        result[:, :, begin:end] = block
    return result


# -------------------------------------------------------------------------------------------------------- activation


def has_hooks(*modules: nn.Module) -> bool:
    """Whether a pass calls functions that were registered with the modules, so that it has to call these."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for module in modules for kind in kinds)


def conv_gelu(conv: nn.Conv2d, activation: nn.Module, feature_map: torch.Tensor) -> torch.Tensor:
    """activation(conv(feature_map)), in one pass over the map where that is a prediction with GELU in float32 on a CPU.

    Args:
        conv: padded with zeros, by a number of pixels.

    Shape:
        feature_map: (B, C, h, w)
        returns: (B, O, h', w')
    """
    is_plain = type(conv) is nn.Conv2d and has_plain_weight(conv) and type(activation) is GELUActivation
    is_cpu = HAS_ONEDNN and feature_map.device.type == "cpu" and feature_map.dtype == conv.weight.dtype == torch.float32
    if not is_plain or not is_cpu or not is_prediction(conv) or has_hooks(conv, activation):
        return activation(conv(feature_map))
    geometry = conv.padding, conv.stride, conv.dilation, conv.groups
    return torch.ops.mkldnn._convolution_pointwise(feature_map, conv.weight, conv.bias, *geometry, "gelu", [], "none")


# ------------------------------------------------------------------------------------------ BatchNorm and convolution


def batch_norm_terms(norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift (C,) that a BatchNorm is in evaluation mode."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


class NormReLUConv(torch.autograd.Function):
    """Batch normalisation in training, ReLU, convolution and maybe another normalisation, which keep their input alone.

    What their backward pass needs besides is computed again: from the statistics, and by the convolution if it is
    followed by a normalisation.

    Args:
        x: (B, C_in, H, W)
        arguments: weight, bias, running mean and running variance of the first normalisation; the convolution's weight;
            the same four of the second, or four None; momentum and epsilon; stride, padding and dilation.
    """

    @staticmethod
    def forward(ctx, x, *arguments):
        norm, weight, next_norm = arguments[:4], arguments[4], arguments[5:9]
        momentum, eps, *geometry = arguments[9:]
        y, *statistics = torch.native_batch_norm(x, *norm, True, momentum, eps)
        y = F.conv2d(y.relu_(), weight, None, *geometry)
        if next_norm[0] is not None:
            y, *next_statistics = torch.native_batch_norm(y, *next_norm, True, momentum, eps)
            statistics += next_statistics
        ctx.save_for_backward(x, *norm, weight, *next_norm, *statistics)
        ctx.eps, ctx.geometry = eps, geometry
        return y

    @staticmethod
    def backward(ctx, gradient):
        x, *tensors = ctx.saved_tensors
        norm, weight, next_norm, statistics = tensors[:4], tensors[4], tensors[5:9], tensors[9:]
        eps, geometry = ctx.eps, ctx.geometry
        of_x, *of_norm, _, _, of_weight = ctx.needs_input_grad[:6]
        scale = norm[0] * statistics[1]
        shift = norm[1] - statistics[0] * scale
        y = torch.addcmul(shift[:, None, None], x, scale[:, None, None]).relu_()

        def through_norm(gradient, x, norm, statistics, wanted):
            parts = gradient, x, norm[0], *norm[2:], *statistics, True, eps, wanted
            return torch.ops.aten.native_batch_norm_backward(*parts)

        next_gradients = None, None
        if next_norm[0] is not None:
            z = F.conv2d(y, weight, None, *geometry)
            wanted = [True, *ctx.needs_input_grad[6:8]]
            gradient, *next_gradients = through_norm(gradient, z, next_norm, statistics[2:], wanted)
        before = any((of_x, *of_norm))
        gradient, weight_gradient, _ = torch.ops.aten.convolution_backward(
            gradient, y, weight, None, *geometry, False, [0, 0], 1, [before, of_weight, False]
        )
        gradients = None, None, None
        if before:
            gradient = torch.ops.aten.threshold_backward(gradient, y, 0)
            gradients = through_norm(gradient, x, norm, statistics[:2], [of_x, *of_norm])
        return *gradients, None, None, weight_gradient, *next_gradients, *[None] * 7


def norm_relu_conv(norm: nn.Module, conv: nn.Conv2d, x: torch.Tensor, next_norm: nn.Module | None = None):
    """next_norm(conv(relu(norm(x)))), the convolution without bias; when trained on a CPU, by [`NormReLUConv`]."""
    norms = [norm] if next_norm is None else [norm, next_norm]
    is_plain = all(type(norm) is nn.BatchNorm2d and norm.training and norm.momentum is not None for norm in norms)
    is_plain = is_plain and len({(norm.momentum, norm.eps) for norm in norms}) == 1 and not has_hooks(conv, *norms)
    is_plain = is_plain and type(conv) is nn.Conv2d  # no adapter, which has weights of its own
    if not is_plain or not torch.is_grad_enabled() or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        y = conv(F.relu(norm(x), inplace=True))
        return y if next_norm is None else next_norm(y)
    for norm in norms:
        norm.num_batches_tracked.add_(1)
    tensors = [(norm.weight, norm.bias, norm.running_mean, norm.running_var) for norm in norms] + [(None,) * 4]
    options = norm.momentum, norm.eps, conv.stride, conv.padding, conv.dilation
    return NormReLUConv.apply(x, *tensors[0], conv.weight, *tensors[1], *options)


def optimize_for_inference(model: PreTrainedModel) -> PreTrainedModel:
    """A copy for inference, faster, the same function up to rounding; the model itself stays as it is.

    What weights alone decide is computed once, see [`fold`]; and on a CPU in float32 the weights of linear layers are
    laid out as oneDNN computes with them, see [`PackedLinear`] and [`PackedPatches`]. So first move the model to its
    device and dtype. The copy is in evaluation mode, has no gradients, and is not to be saved: only the model is.
    """

    def refuse(*_):
        raise RuntimeError("a copy for inference cannot be saved; save the model that `optimize_for_inference` took")

    if any(isinstance(module, (PackedLinear, PackedPatches)) for module in model.modules()):
        return model  # it is such a copy
    optimized = fold(copy.deepcopy(model))
    for parent in filter(is_own, list(optimized.modules())):
        for name, module in list(parent.named_children()):
            if PackedLinear.is_for(module):
                setattr(parent, name, PackedLinear(module.weight, module.bias).eval())
            elif PackedPatches.is_for(module):
                setattr(parent, name, PackedPatches(module).eval())
    optimized.register_state_dict_pre_hook(refuse)
    return optimized


def is_own(parent: nn.Module) -> bool:
    """Whether a module of this package calls the parent's children, which others may take the place of.

    Modules of other packages may read their weights (transformers' DINOv2, peft's adapters), or have a BatchNorm beside
    a convolution whose result it is not given alone (timm's RepViT).
    """
    package = type(parent).__module__.rpartition(".")[0]
    is_container = type(parent) is nn.ModuleList or type(parent).forward is nn.Sequential.forward
    return package == __name__.rpartition(".")[0] or is_container


def fold(model: nn.Module) -> nn.Module:
    """The model, changed for inference: each BatchNorm of ours becomes part of its convolution; weights channels-last.

    It is in evaluation mode and has no gradients. A head that folds its layers in its own way has a method `folded`,
    and what that returns takes its place. Large 3x3 convolutions become [`WinogradConv2d`].
    """
    for parent in filter(is_own, list(model.eval().modules())):
        if hasattr(parent, "folded"):
            continue
        conv_name, conv = None, None
        for name, module in list(parent.named_children()):
            if hasattr(module, "folded") and not has_hooks(*module.modules()):
                setattr(parent, name, module.folded())
            is_norm = type(module) in (nn.BatchNorm2d, nn.SyncBatchNorm)
            is_pair = type(conv) is nn.Conv2d and is_norm and not isinstance(parent, nn.ModuleList)
            if is_pair and not has_hooks(conv, module):
                conv = fuse_conv_bn_eval(conv, module)
                if is_faster_by_winograd(conv):
                    conv = WinogradConv2d(conv)
                setattr(parent, conv_name, conv)
                setattr(parent, name, nn.Identity())
            conv_name, conv = name, module
    return model.to(memory_format=torch.channels_last).eval().requires_grad_(False)  # eval: also what is new


def is_packable(module: nn.Linear | nn.Conv2d) -> bool:
    """Whether oneDNN can take its place: it has an ordinary weight in float32 on a CPU, and no hooks."""
    weight = module.weight
    is_plain = HAS_ONEDNN and not has_hooks(module) and has_plain_weight(module)
    return is_plain and weight.device.type == "cpu" and weight.dtype == torch.float32


class PackedLinear(nn.Linear):
    """A trained linear layer for inference on a CPU in float32, whose weight lies as oneDNN computes with it.

    oneDNN and MKL otherwise bring the weight into such an order at every call. The plain weight is not kept, so the
    layer can be neither moved, compiled nor differentiated.
    """

    TOKENS = 1024  # that the order is chosen for; of any other number the result is the same

    @staticmethod
    def is_for(module: nn.Module) -> bool:
        """Whether the module is a plain linear layer that this one can take the place of."""
        return type(module) is Linear and is_packable(module)

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None):
        with torch.device("meta"):
            super().__init__(weight.shape[1], weight.shape[0], bias=False)
        self.weight, self.bias = None, bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), self.TOKENS)

    def _apply(self, function, recurse=True):
        moved = function(torch.empty(0))
        if moved.device.type != "cpu" or moved.dtype != torch.float32:
            raise RuntimeError(
                f"a copy for inference on a CPU in float32 cannot be moved to {moved.device} in {moved.dtype}; move "
                "the model, then call its `optimize_for_inference`"
            )
        return super()._apply(function, recurse)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling() or (x.requires_grad and torch.is_grad_enabled()):
            raise RuntimeError("a copy for inference can be neither compiled nor differentiated; take the model itself")
        return torch.ops.mkldnn._linear_pointwise(x.float(), self.packed, self.bias, "none", [], "")


class PackedPatches(nn.Module):
    """A trained convolution of patches side by side for inference: as a [`PackedLinear`] of the patches.

    Shape:
        feature_map: (B, C, h, w), best channels-last
        returns: (B, O, floor(h / side), floor(w / side)), channels-last
    """

    @staticmethod
    def is_for(module: nn.Module) -> bool:
        """Whether the module is a plain one that this one can take the place of."""
        if type(module) is not nn.Conv2d:
            return False
        side = module.stride[0]
        is_of_patches = side > 1 and module.stride == module.kernel_size == (side, side) and module.groups == 1
        return is_of_patches and module.padding == (0, 0) and module.dilation == (1, 1) and is_packable(module)

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.side = conv.stride[0]
        self.product = PackedLinear(conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        rows, columns = (size // self.side for size in feature_map.shape[2:])
        x = feature_map[:, :, : rows * self.side, : columns * self.side].permute(0, 2, 3, 1)
        x = x.unflatten(2, (columns, self.side)).unflatten(1, (rows, self.side)).transpose(2, 3)
        return self.product(x.flatten(3)).permute(0, 3, 1, 2)


def map_to_train_on(conv: nn.Conv2d, feature_map: torch.Tensor) -> torch.Tensor:
    """The map in the layout that its convolution trains on in less time.

    With AVX2 oneDNN takes up to five times as long for the gradient of a 3x3 kernel if the map's channels are last, as
    those of a map of tokens are: 2.6 instead of 0.55 s for 256 -> 256 channels and a side of 256 (EPYC, two threads).
    """
    kernel_size = getattr(conv, "base_layer", conv).kernel_size  # that of peft's adapters
    is_slow = INSTRUCTION_SET == "AVX2" and conv.training and kernel_size != (1, 1)
    return feature_map.contiguous() if is_slow and feature_map.device.type == "cpu" else feature_map


def is_faster_by_winograd(conv: nn.Conv2d) -> bool:
    """Whether the products that Winograd's algorithm saves outweigh its sums: from about 256 channels on."""
    is_plain = conv.kernel_size == (3, 3) and conv.stride == (1, 1) and conv.groups == 1
    return is_plain and min(conv.weight.shape[:2]) >= 256


class WinogradConv2d(nn.Conv2d):
    """A trained 3x3 convolution of stride 1 for inference on a CPU, in two thirds of the multiplications.

    Winograd's F(2, 3) (Lavin and Gray, arXiv 1509.09308, Section 4.1) along the height: two rows of the result take
    four products of sums of rows with sums of the kernel's rows, instead of six. The same up to rounding (1e-5 of the
    result's standard deviation). Elsewhere than in float32 on a CPU the convolution is computed as usual.

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
        is_cpu = feature_map.device.type == "cpu" and feature_map.dtype == torch.float32
        if not is_cpu or torch.compiler.is_exporting():
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
