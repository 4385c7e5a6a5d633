"""Bilinear upsampling fused with what follows it, so that the full-size logits `(B, K, H, W)` are never held.

`upsampled_cross_entropy` is `F.interpolate(logits, size, mode="bilinear")` and `F.cross_entropy`; `upsampled_argmax`
is `F.interpolate` and `argmax`. Both walk over **cells**: a cell is the output pixels between four neighbouring logits,
its corners, of which each pixel is a fixed mixture. So upsampling is one small matrix product per cell, and its
gradient the transposed product:

    corners (N, 4, K) -- weights (N, 4, S) --> pixels (N, K, S) -- softmax - one-hot --> gradient (N, 4, K)

A block of cell rows is small enough to stay in the cache. Pixels outside the outermost logits belong to cells whose
missing corners repeat the border, so there are (h + 1) x (w + 1) cells. The loss takes its gradient while a block is at
hand: nothing is computed twice and only `(B, K, h, w)` is saved. In the label map only a class whose largest corner
reaches the largest of all classes' smallest corners can win inside a cell: most cells of a trained model have one such
class and need no look at their pixels.

Letters: B images, K classes, (h, w) size of the logits, (H, W) of the labels, N cells of a block, S pixels of a cell.
"""

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F


BLOCK_NUMEL_CPU = 5 * 2**18  # upsampled logits held at once: few enough for a CPU's cache
BLOCK_NUMEL_GPU = 2**25  # and enough to occupy a GPU
OPERATORS = re.sub(r"\W", "_", __name__)  # a process may hold other versions of this file, from checkpoints on the Hub

# Not measured on any GPU yet, so only on request. In Triton's interpreter its kernels run on a CPU, too.
USES_TRITON = os.environ.get("HF_SEGTX_TRITON") == "1"
TRITON_DEVICES = ("cuda", "cpu") if os.environ.get("TRITON_INTERPRET") == "1" else ("cuda",)


def upsampled_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    ignore_index: int = 255,
    class_weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    align_corners: bool = False,
) -> torch.Tensor:
    """Mean cross-entropy of bilinearly upsampled logits, as `F.cross_entropy`, but 0 if all pixels are ignored.

    Computed in float32 at least, also under autocast. One class (K = 1) is a sigmoid: two classes with logits 0 and x.
    The gradient cannot be differentiated again.

    Args:
        ignore_index: label of the pixels that do not count, any integer
        class_weights: (K,), a factor for each class (two if K = 1), not trained
        label_smoothing: share of the target spread over all classes, in [0, 1]
        align_corners: as in `F.interpolate`

    Shape:
        logits: (B, K, h, w), any float type and strides; `channels_last` saves a copy
        labels: (B, H, W), any integer type, each in [0, K) or `ignore_index`
        returns: (), float32, or float64 for float64 logits

    Raises:
        ValueError: if shapes do not fit, labels are no integers, or, on the CPU, a label is neither a class nor
            `ignore_index`.
    """
    logits = two_classes(logits)
    check_label_maps(labels, logits)
    classes = logits.shape[1]
    if class_weights is None:
        class_weights = torch.ones(classes, device=logits.device)
    elif class_weights.shape != (classes,):
        raise ValueError(f"class_weights have shape {tuple(class_weights.shape)}, not ({classes},); pass one per class")
    with_gradient = torch.is_grad_enabled() and logits.requires_grad
    with torch.autocast(logits.device.type, enabled=False):
        loss, total, _ = _summed_loss(
            logits, labels, class_weights.detach(), ignore_index, label_smoothing, align_corners, with_gradient
        )
    return loss / total.detach().clamp(min=torch.finfo(total.dtype).tiny)  # 0 / tiny if every pixel is ignored


def check_label_maps(labels: torch.Tensor, logits: torch.Tensor) -> None:
    """Raises what is wrong with label maps whatever their values.

    Raises:
        ValueError: if they are not one map per image, or no integers.
    """
    if labels.dim() != 3 or labels.shape[0] != logits.shape[0]:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}; give one map of "
            f"class ids per image: ({logits.shape[0]}, height, width)"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"labels are {labels.dtype}; give class ids as integers, such as torch.long. Label maps that went through "
            "torchvision's ToTensor or ToDtype(scale=True) are divided by 255: read them with PILToTensor"
        )


def two_classes(logits: torch.Tensor) -> torch.Tensor:
    """The logits, or 0 and the logit if there is one class: a sigmoid."""
    return logits if logits.shape[1] > 1 else torch.cat([torch.zeros_like(logits), logits], dim=1)


def upsampled_argmax(logits: torch.Tensor, size: tuple[int, int], *, align_corners: bool = False) -> torch.Tensor:
    """Best class of every pixel of bilinearly upsampled logits; if K = 1, whether the upsampled logit is positive.

    Every pixel is exact; where the two best classes are equal up to rounding (of TF32, where a GPU is allowed to use it
    for matrix products) it can be either of them.

    Shape:
        logits: (B, K, h, w), any float type and strides; `channels_last` saves a copy
        size: (H, W), pixels
        returns: (B, H, W), int64
    """
    return _label_map(two_classes(logits.detach()), size[0], size[1], align_corners)


def is_for_triton(logits: torch.Tensor) -> bool:
    """Whether a Triton kernel computes loss and label map: if asked for, on a GPU, and for all types but float64."""
    return USES_TRITON and logits.device.type in TRITON_DEVICES and logits.dtype != torch.float64


def positions(size_in: float, size_out: int, align_corners: bool, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Where bilinear upsampling of `size_in` values (not always whole) reads each of `size_out`: (size_out,).

    Position 1.25 is three quarters of value 1 and one of value 2; below 0 and beyond the last value the border counts.
    """
    output = torch.arange(size_out, dtype=dtype)
    if align_corners:
        return output * ((size_in - 1) / max(size_out - 1, 1))
    return (output + 0.5) * (size_in / size_out) - 0.5


def argmax_at(logits: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """`upsampled_argmax` of any part of the logits: of their bilinear interpolation at the product of rows and columns.

    Shape:
        logits: (B, K, h, w)
        rows: (H,), columns: (W,), ascending positions as those of `positions`
        returns: (B, H, W), int64
    """
    logits = two_classes(logits.detach())
    return _best_class(logits, Cells(logits, rows, columns))


def logits_at(logits: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Bilinear interpolation of the logits at the product of rows and columns, in any order.

    Shape:
        logits: (B, K, h, w)
        rows: (H,), columns: (W,), positions as those of `positions`
        returns: (B, K, H, W), at least float32
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    for dim, position in ((2, rows), (3, columns)):
        position = position.clamp(0, logits.shape[dim] - 1)
        below = position.floor()
        share = (position - below).to(logits).view(-1, *[1] * (3 - dim))
        below, above = (index.long().to(logits.device) for index in (below, position.ceil()))
        logits = torch.lerp(logits.index_select(dim, below), logits.index_select(dim, above), share)
    return logits


def _axis(size_in: int, position: torch.Tensor, dtype: torch.dtype):
    """The cells of one axis, whose outputs are at these ascending positions.

    Cell c is between the inputs c - 1 and c, and has as many slots as the fullest needs.

    Returns the number of slots per cell, the cell and the slot of each output position (size_out,), the first output
    position of each cell and size_out, and the shares (cells, 2, slots) of the two inputs, 0 in slots without output.
    """
    below = position.floor()  # -1 to size_in - 1
    cell = below.long() + 1
    first = torch.searchsorted(cell, torch.arange(size_in + 2))
    slots, slot = int(first.diff().max()), torch.arange(len(position)) - first[cell]
    weights = torch.zeros(size_in + 1, 2, slots, dtype=dtype)
    weights[cell, :, slot] = torch.stack([1 - (position - below), position - below], dim=1).to(dtype)
    return slots, cell, slot, first.tolist(), weights


class Cells:
    """The cells of an upsampling, in `blocks` of cell rows [start, stop).

    Args:
        logits: (B, K, h, w), whose shape, type and device count.
        row_positions, column_positions: (H,) and (W,), ascending, in the sense of `positions`.
    """

    def __init__(self, logits: torch.Tensor, row_positions: torch.Tensor, column_positions: torch.Tensor):
        _, classes, rows, columns = logits.shape
        device, self.dtype = logits.device, torch.promote_types(logits.dtype, torch.float32)
        self.size = len(row_positions), len(column_positions)
        row_slots, row_cell, row_slot, self.first_row, row_weights = _axis(rows, row_positions, self.dtype)
        column_slots, column_cell, column_slot, _, column_weights = _axis(columns, column_positions, self.dtype)
        self.pixels, self.columns = row_slots * column_slots, columns + 1
        # CPU kernels are fast along many classes, and across classes over whole vectors of pixels
        self.classes_last = device.type != "cpu" or (self.pixels % 16 > 0 and classes >= 16)
        row_numel = self.columns * self.pixels * classes
        step = min(max((BLOCK_NUMEL_CPU if device.type == "cpu" else BLOCK_NUMEL_GPU) // row_numel, 1), rows + 1)
        self.blocks = [(start, min(start + step, rows + 1)) for start in range(0, rows + 1, step)]
        # a block's corners and pixels are put where the last block's were: fresh memory would cost page faults
        self.corner_buffer = torch.empty(step * self.columns, 4, classes, dtype=self.dtype, device=device)
        self.block_numel = step * row_numel
        # position in all cells' pixels (N, S) of an output pixel: the sum of its row's and its column's part
        row_position = row_cell * self.columns * self.pixels + row_slot * column_slots
        column_position = column_cell * self.pixels + column_slot
        # the two axes' factors of the weights, with equal rows of 4 S numbers, so that their product is a fast one
        sizes = (-1, 2, 2, row_slots, column_slots)
        row_weights = row_weights[:, :, None, :, None].expand(sizes).reshape(-1, 1, 4, self.pixels)
        column_weights = column_weights[:, None, :, None].expand(sizes).reshape(-1, 4, self.pixels)
        # which of a block's `inputs` are the corners of each cell: (N, 4)
        corners = torch.arange(step)[:, None] * (columns + 2) + torch.arange(columns + 1)
        corner_index = corners.view(-1, 1) + torch.tensor([0, 1, columns + 2, columns + 3])
        tables = row_position, column_position, row_weights, column_weights, corner_index
        tables = (table.to(device, non_blocking=True) for table in tables)  # do not wait for what a GPU has still to do
        self.row_position, self.column_position, self.row_weights, self.column_weights, self.corner_index = tables
        self.input_column = torch.arange(-1, columns + 1, device=device).clamp_(0, columns - 1)

    @classmethod
    def of_size(cls, logits: torch.Tensor, size: tuple[int, int], align_corners: bool) -> "Cells":
        """The cells of the upsampling to `size` pixels, with positions rounded as F.interpolate does."""
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return cls(
            logits, *(positions(*pair, align_corners, dtype) for pair in zip(logits.shape[2:], size, strict=True))
        )

    def inputs(self, image: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """The logits around a block, from (K, h, w), with the border repeated: (stop - start + 1, w + 2, K)."""
        height, width = image.shape[1:]
        first = max(start - 1, 0)
        pixels = image[:, first:stop].flatten(1).T.to(self.dtype).contiguous()  # (rows * w, K), a view if channels_last
        row = torch.arange(start - 1, stop, device=image.device).clamp_(0, height - 1) - first
        index = (row[:, None] * width + self.input_column).flatten()
        return pixels.index_select(0, index).view(-1, width + 2, len(image))

    def weights(self, start: int, stop: int) -> torch.Tensor:
        """Share of the four corners in each pixel: (N, 4, S)."""
        return (self.row_weights[start:stop] * self.column_weights).flatten(0, 1)

    def corners(self, inputs: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        """The corners (n, 4, K) of the cells whose rows of `corner_index` are `which`; valid until the next call."""
        corners = self.corner_buffer[: len(which)]
        torch.index_select(inputs.flatten(0, 1), 0, which.flatten(), out=corners.flatten(0, 1))
        return corners

    def upsample(self, corners: torch.Tensor, weights: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
        """Pixels (n, K, S), or (n, S, K) if `classes_last`, at the beginning of `buffer`."""
        left, right = (weights.mT, corners) if self.classes_last else (corners.mT, weights)
        shape = (len(left), left.shape[1], right.shape[2])
        return torch.bmm(left, right, out=buffer[: shape[0] * shape[1] * shape[2]].view(shape))

    def output(self, start: int, stop: int) -> tuple[slice, torch.Tensor]:
        """A block's output rows, and where their pixels are in (N, S): (rows * W,)."""
        rows = slice(self.first_row[start], self.first_row[stop])
        offset = start * self.columns * self.pixels
        return rows, (self.row_position[rows, None] + (self.column_position - offset)).flatten()


class PixelBlock(NamedTuple):
    """Upsampled logits and labels of a block of an image's pixels; valid until the next block.

    Args:
        index: number of the image.
        rows: its output rows that the block covers.
        position: (rows * W,), where they are among the N * S pixels of the block.
        weights: (N, 4, S), share of the corners in each pixel.
        corners: (N, 4, K), logits; to be replaced by their gradient if there is one.
        upsampled: (N, K, S), or (N, S, K).
        axis: which of these the classes are.
        buffer: of the shape of `upsampled`, to be written.
        label: (N, S), in [0, K); K at ignored pixels and in slots without pixel.
    """

    index: int
    rows: slice
    position: torch.Tensor
    weights: torch.Tensor
    corners: torch.Tensor
    upsampled: torch.Tensor
    axis: int
    buffer: torch.Tensor
    label: torch.Tensor

    def index_of_label(self) -> torch.Tensor:
        """(N, 1, S) or (N, S, 1), what gathers the label's values from those of all classes. From now on K is K - 1."""
        return self.label.clamp_(max=self.upsampled.shape[self.axis] - 1).unsqueeze(self.axis)

    def set_gradient(self, scale: torch.Tensor, pixels: torch.Tensor) -> None:
        """Puts the gradient of the corners in their place.

        Shape:
            scale: (N, S); pixels: as `upsampled`; their product is the gradient of the upsampled logits
        """
        pixels_last = pixels.mT if self.axis == 1 else pixels
        torch.bmm(self.weights * scale.unsqueeze(1), pixels_last, out=self.corners)


def pixel_blocks(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ignore_index: int,
    align_corners: bool,
    gradient: torch.Tensor | None = None,
) -> Iterator[PixelBlock]:
    """A pass over the pixels of upsampled logits and their labels, block by block.

    Args:
        gradient: like the logits, of `Cells.dtype`: what whoever takes the blocks leaves in their `corners` is the
            gradient of these; the sum over all cells, the gradient of the logits, is put here.

    Raises:
        ValueError: if, on the CPU, a label is neither a class nor `ignore_index`.
    """
    cells = Cells.of_size(logits, labels.shape[1:], align_corners)
    classes, axis = logits.shape[1], 2 if cells.classes_last else 1
    buffers = torch.empty(2, cells.block_numel, dtype=cells.dtype, device=logits.device)
    if gradient is not None:
        image_gradient = buffers.new_empty(logits.shape[2] + 2, logits.shape[3] + 2, classes)  # with a border
    for index, image in enumerate(logits):
        if gradient is not None:
            image_gradient.zero_()
        for start, stop in cells.blocks:
            rows, position = cells.output(start, stop)
            weights = cells.weights(start, stop)
            label = labels[index, rows].long().flatten()
            ignored = label == ignore_index
            label = label.masked_fill(ignored, 0)
            if label.is_cpu and label.numel():
                check_labels(label, classes, ignore_index)
            slots = label.new_full((len(weights) * cells.pixels,), classes)
            label = slots.scatter_(0, position, label.masked_fill_(ignored, classes)).view(-1, cells.pixels)
            corners = cells.corners(cells.inputs(image, start, stop), cells.corner_index[: len(weights)])
            upsampled = cells.upsample(corners, weights, buffers[0])
            buffer = buffers[1, : upsampled.numel()].view_as(upsampled)
            yield PixelBlock(index, rows, position, weights, corners, upsampled, axis, buffer, label)
            for corner in range(4) if gradient is not None else ():
                row, column = start + corner // 2, corner % 2
                target = image_gradient[row : row + stop - start, column : column + cells.columns]
                target += corners[:, corner].view_as(target)
        if gradient is not None:  # the repeated border goes back to where it came from
            for padded in (image_gradient, image_gradient.transpose(0, 1)):
                padded[1] += padded[0]
                padded[-2] += padded[-1]
            gradient[index] = image_gradient[1:-1, 1:-1].permute(2, 0, 1)


def check_labels(labels: torch.Tensor, classes: int, ignore_index: int) -> None:
    """Raises if a label is no class.

    Raises:
        ValueError: if it is not in [0, classes).
    """
    for label in labels.aminmax():
        if not 0 <= label < classes:
            raise ValueError(
                f"label {label} is neither in [0, {classes}) nor the ignore index {ignore_index}; "
                "map the labels to classes, or set the number of classes or the ignore index"
            )


@torch.library.custom_op(f"{OPERATORS}::upsampled_cross_entropy", mutates_args=())
def _summed_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    class_weights: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
    with_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sum of the loss (), sum of the labels' weights (), gradient of the former (B, K, h, w), empty unless asked for.

    An operator, so that compilers see one step, whose labels can be checked.
    """
    if is_for_triton(logits):
        from .triton_kernels import summed_loss

        return summed_loss(logits, labels, class_weights, ignore_index, label_smoothing, align_corners, with_gradient)
    classes, dtype = logits.shape[1], torch.promote_types(logits.dtype, torch.float32)
    loss, total = (torch.zeros((), dtype=dtype, device=logits.device) for _ in range(2))
    gradient = torch.empty_like(logits, dtype=dtype) if with_gradient else None
    class_weights = class_weights.to(dtype)
    weight_of_label = F.pad(class_weights, (0, 1))  # label K has no weight
    for block in pixel_blocks(logits, labels, ignore_index, align_corners, gradient):
        upsampled, axis = block.upsampled, block.axis
        weight = weight_of_label.index_select(0, block.label.flatten()).view_as(block.label)  # (N, S)
        total += weight.sum()
        counted, label = block.label < classes, block.index_of_label()

        probabilities = torch.softmax(upsampled, axis, out=block.buffer)
        picked = probabilities.gather(axis, label).squeeze(axis).masked_fill_(~counted, 1)
        if picked.is_cpu and picked.amin() > 1e-30:  # it does not underflow; a GPU would wait longer for the answer
            loss_of_label = -picked.log()
        else:
            logsumexp = upsampled.amax(axis) - probabilities.amax(axis).log()
            loss_of_label = (logsumexp - upsampled.gather(axis, label).squeeze(axis)).masked_fill_(~counted, 0)
        scale, share = weight, 1.0  # of softmax, and of the one-hot label relative to it, in the gradient
        if label_smoothing:
            uniform = counted.to(dtype) * (label_smoothing / classes)  # weight of all classes' terms
            weight *= 1 - label_smoothing
            logsumexp = loss_of_label + upsampled.gather(axis, label).squeeze(axis)
            weighted_logits = torch.bmm((block.corners @ class_weights).unsqueeze(1), block.weights).squeeze(1)
            loss += (uniform * (class_weights.sum() * logsumexp - weighted_logits)).sum()
            scale = weight + uniform * class_weights.sum()
            share = weight / scale.clamp(min=torch.finfo(dtype).tiny)
        loss += (weight * loss_of_label).sum()

        if with_gradient:
            block.set_gradient(scale, probabilities.scatter_(axis, label, (picked - share).unsqueeze(axis)))
            if label_smoothing:
                block.corners.sub_(torch.bmm(block.weights, uniform.unsqueeze(2)) * class_weights)
    return loss, total, loss.new_empty(0) if gradient is None else gradient


@_summed_loss.register_fake
def _(logits, labels, class_weights, ignore_index, label_smoothing, align_corners, with_gradient):
    dtype = torch.promote_types(logits.dtype, torch.float32)
    gradient = torch.empty_like(logits, dtype=dtype) if with_gradient else logits.new_empty(0, dtype=dtype)
    return logits.new_empty((), dtype=dtype), logits.new_empty((), dtype=dtype), gradient


def _save_gradient(ctx, inputs, output):
    ctx.set_materialize_grads(False)  # no zeros for the other outputs
    ctx.save_for_backward(output[2])
    ctx.logits_dtype = inputs[0].dtype


def _backward(ctx, gradient_of_loss, *_):
    (gradient,) = ctx.saved_tensors
    used = gradient_of_loss is not None
    return (gradient * gradient_of_loss).to(ctx.logits_dtype) if used else None, *[None] * 6


_summed_loss.register_autograd(_backward, setup_context=_save_gradient)


@torch.library.custom_op(f"{OPERATORS}::upsampled_argmax", mutates_args=())
def _label_map(logits: torch.Tensor, height: int, width: int, align_corners: bool) -> torch.Tensor:
    """Label map (B, H, W)."""
    if is_for_triton(logits):
        from .triton_kernels import label_map

        return label_map(logits, height, width, align_corners)
    return _best_class(logits, Cells.of_size(logits, (height, width), align_corners))


@_label_map.register_fake
def _(logits, height, width, align_corners):
    return logits.new_empty((logits.shape[0], height, width), dtype=torch.long)


def _best_class(logits: torch.Tensor, cells: Cells) -> torch.Tensor:
    """Label map (B, H, W)."""
    classes, (height, width) = logits.shape[1], cells.size
    label_map = torch.empty(len(logits), height, width, dtype=torch.long, device=logits.device)
    numbers = torch.arange(classes, dtype=cells.dtype, device=logits.device)
    buffer = torch.empty(cells.block_numel, dtype=cells.dtype, device=logits.device)
    for index, image in enumerate(logits):
        for start, stop in cells.blocks:
            inputs, weights = cells.inputs(image, start, stop), cells.weights(start, stop)
            which = cells.corner_index[: len(weights)]
            if logits.is_cpu:  # a GPU would have to wait for their number
                only, undecided = _candidates(inputs, numbers)
                which, weights = which.index_select(0, undecided), weights.index_select(0, undecided)
            upsampled = cells.upsample(cells.corners(inputs, which), weights, buffer)
            if cells.classes_last:
                best = upsampled.argmax(2)
            else:  # max_pool2d over images (K, 1) of S channels is argmax(1), several times as fast
                upsampled = upsampled.unsqueeze(2).permute(0, 3, 1, 2)  # (n, S, K, 1)
                best = F.max_pool2d(upsampled, (classes, 1), return_indices=True)[1].flatten(1)
            if logits.is_cpu:
                best = only.unsqueeze(1).repeat(1, cells.pixels).index_copy_(0, undecided, best)  # (N, S)
            rows, position = cells.output(start, stop)
            label_map[index, rows] = best.flatten().index_select(0, position).view(-1, width)
    return label_map


def _candidates(inputs: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The class of each cell that has one candidate (N,), any number for the others, and which these are (n,).

    Shape:
        inputs: as of `Cells.inputs`
        numbers: (K,), those of the classes
    """
    smallest, largest = torch.minimum(inputs[1:], inputs[:-1]), torch.maximum(inputs[1:], inputs[:-1])
    smallest = torch.minimum(smallest[:, 1:], smallest[:, :-1])
    largest = torch.maximum(largest[:, 1:], largest[:, :-1])
    candidates = largest.ge_(smallest.amax(2, keepdim=True)).view(-1, len(numbers))  # (N, K), 0 or 1
    undecided = (candidates.sum(1) != 1).nonzero().squeeze(1)
    return candidates.mul_(numbers).sum(1).long(), undecided
