"""Loss and label map of bilinearly upsampled logits as one Triton kernel each: `upsampling.py` on a GPU, on request.

Not measured on any GPU yet: HF_SEGTX_TRITON=1 in the environment chooses it (see `upsampling.py`, which says what is
computed). Triton's interpreter, TRITON_INTERPRET=1, runs it on a CPU, which is how it is tested.

A program walks along a part of a row of cells, from left to right. The logits at a cell's four corners, of all classes,
stay in registers while its pixels are mixed from them, a tile (S, K) at a time; of the next cell two corners are there
already. The gradient of a logit is the sum over the four cells around it: left and right meet in the registers of one
program, which for that looks at one cell more than its part, above and below by an atomic addition. As 0 + a + b is
0 + b + a, every run gives the same bits.

Letters: B images, K classes, (h, w) size of the logits, (H, W) of the labels, S pixels of a tile.
"""

import torch


try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("HF_SEGTX_TRITON=1 asks for Triton: `pip install triton`, or unset it") from error


TILE = 2048  # upsampled logits in the registers of a program: twice as many would spill
COLUMNS = tl.constexpr(16)  # of logits that a program walks over: few enough to occupy a GPU with few images


def summed_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    class_weights: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
    with_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sum of the loss (), sum of the labels' weights (), gradient of the former (B, K, h, w), empty unless asked for.

    A label that is neither a class nor `ignore_index` makes the loss NaN: an error would have to wait for the GPU.

    Shape:
        logits: (B, K, h, w), float32, float16 or bfloat16, any strides
        labels: (B, H, W), any integer type and strides
        class_weights: (K,)
    """
    grid, geometry, tiles = _launch(logits, labels.shape[1:], align_corners)
    sums = torch.empty(2, *grid, dtype=torch.float32, device=logits.device)
    gradient = torch.zeros_like(logits, dtype=torch.float32) if with_gradient else sums.new_empty(0, 0, 0, 0)
    _loss_kernel[grid](
        logits,
        labels,
        class_weights.float().contiguous(),
        gradient,
        sums,
        (*logits.stride(), *labels.stride(), *gradient.stride()),
        geometry,
        ignore_index,
        label_smoothing,
        WITH_GRADIENT=with_gradient,
        **tiles,
    )
    return sums[0].sum(), sums[1].sum(), gradient if with_gradient else gradient.flatten()


def label_map(logits: torch.Tensor, height: int, width: int, align_corners: bool) -> torch.Tensor:
    """Label map (B, H, W), int64, of logits (B, K, h, w) in float32, float16 or bfloat16 with any strides."""
    grid, geometry, tiles = _launch(logits, (height, width), align_corners)
    result = torch.empty(len(logits), height, width, dtype=torch.int64, device=logits.device)
    _label_map_kernel[grid](logits, result, logits.stride(), geometry, **tiles)
    return result


def _launch(logits: torch.Tensor, size: tuple[int, int], align_corners: bool) -> tuple[tuple[int], tuple, dict]:
    """How the kernels are started.

    Returns: the number of programs; numbers of classes, rows and columns, steps between output pixels in logits and
    between logits in output pixels, half a pixel; padded number of classes and pixels of a tile.
    """
    batch, classes, *inputs = logits.shape
    ends = 1 if align_corners else 0
    steps = [(size_in - ends) / max(size_out - ends, 1) for size_in, size_out in zip(inputs, size)]
    geometry = classes, *inputs, *size, *steps, *(1 / step if step else 0.0 for step in steps), 0.5 * (1 - ends)
    padded = triton.next_power_of_2(classes)
    in_cell = -(-size[0] // inputs[0]) * -(-size[1] // inputs[1])
    pixels = min(triton.next_power_of_2(in_cell), max(TILE // padded, 1))
    grid = batch * (inputs[0] + 1) * -(-inputs[1] // COLUMNS.value)
    return (grid,), geometry, {"PADDED": padded, "PIXELS": pixels}


@triton.jit
def _position(index, step, half):
    """Where bilinear upsampling reads an output pixel, in logits."""
    return (index + half) * step - half


@triton.jit
def _outputs_of_cell(cell, size_in, size_out, step, inverse, half):
    """First output pixel of a cell along one axis, and how many there are."""
    first = _first_output(cell, size_in, size_out, step, inverse, half)
    return first, _first_output(cell + 1, size_in, size_out, step, inverse, half) - first


@triton.jit
def _first_output(cell, size_in, size_out, step, inverse, half):
    """The first output pixel at or beyond the logit before a cell, along one axis."""
    guess = tl.ceil((cell - 1 + half) * inverse - half).to(tl.int32)
    guess += tl.where(_position(guess, step, half) < cell - 1, 1, 0)  # rounding can miss by one
    guess -= tl.where(_position(guess - 1, step, half) >= cell - 1, 1, 0)
    guess = tl.minimum(tl.maximum(guess, 0), size_out)
    guess = tl.where(cell <= 0, 0, guess)
    return tl.where(cell > size_in, size_out, guess)


@triton.jit
def _place_of_program(rows, columns):
    """Image, row of cells, and the logits [first, last) in whose width the program's part lies."""
    parts = (columns + COLUMNS - 1) // COLUMNS
    program = tl.program_id(0)
    first = (program % parts) * COLUMNS
    program = program // parts
    return (program // (rows + 1)).to(tl.int64), program % (rows + 1), first, tl.minimum(first + COLUMNS, columns)


@triton.jit
def _pair(image, cell_row, rows, column, row_stride, column_stride, is_class):
    """Logits (K,) above and below a row of cells, with the border repeated; 0 where there is no class."""
    image += tl.cast(column, tl.int64) * column_stride
    above = image + tl.cast(tl.maximum(cell_row - 1, 0), tl.int64) * row_stride
    below = image + tl.cast(tl.minimum(cell_row, rows - 1), tl.int64) * row_stride
    above = tl.load(above, mask=is_class, other=0.0).to(tl.float32)
    return above, tl.load(below, mask=is_class, other=0.0).to(tl.float32)


@triton.jit
def _pixels_of_tile(tile, cell_row, cell, top, left, row_count, column_count, geometry, PIXELS: tl.constexpr):
    """Rows, columns (S,) of a tile of a cell's pixels, which of them there are, and their shares of four corners."""
    _, _, _, _, _, row_step, column_step, _, _, half = geometry
    pixel = tile + tl.arange(0, PIXELS)
    is_pixel = pixel < row_count * column_count
    pixel = tl.minimum(pixel, row_count * column_count - 1)
    row, column = top + pixel // column_count, left + pixel % column_count
    below = _position(row, row_step, half) - (cell_row - 1)
    right = _position(column, column_step, half) - (cell - 1)
    above, left_share = 1 - below, 1 - right
    shares = above * left_share, above * right, below * left_share, below * right
    return row.to(tl.int64), column.to(tl.int64), is_pixel, shares


@triton.jit
def _mixed(corners, shares):
    """Upsampled logits (S, K) of corners (K,) and their shares (S,)."""
    mixed = shares[0][:, None] * corners[0][None, :] + shares[1][:, None] * corners[1][None, :]
    return mixed + shares[2][:, None] * corners[2][None, :] + shares[3][:, None] * corners[3][None, :]


@triton.jit
def _loss_of_tile(pixels, is_class, label, is_counted, class_weights_pointer, class_weights, classes, smoothing):
    """Sums of loss and weights, and the gradient (S, K), of a tile; NaN for labels that are no class."""
    shifted = tl.where(is_class[None, :], pixels, float("-inf"))
    shifted = shifted - tl.max(shifted, 1)[:, None]
    exponentials = tl.exp(shifted)
    total = tl.sum(exponentials, 1)
    is_label = tl.arange(0, pixels.shape[1])[None, :] == label[:, None]
    logit = tl.sum(tl.where(is_label, shifted, 0.0), 1)
    is_known = (label >= 0) & (label < classes)
    weight = tl.load(class_weights_pointer + label, mask=is_counted & is_known, other=0.0)
    weight = tl.where(is_counted & (is_known == 0), float("nan"), weight)
    of_label = (1 - smoothing) * weight
    uniform = tl.where(is_counted, smoothing / classes, 0.0)  # weight of all classes' terms
    weight_sum = tl.sum(class_weights, 0)
    all_logits = tl.sum(class_weights[None, :] * tl.where(is_class[None, :], shifted, 0.0), 1)
    loss = of_label * (tl.log(total) - logit) + uniform * (weight_sum * tl.log(total) - all_logits)
    scale = (of_label + uniform * weight_sum) / total
    gradient = scale[:, None] * exponentials - tl.where(is_label, of_label[:, None], 0.0)
    gradient -= uniform[:, None] * class_weights[None, :]
    return tl.sum(tl.where(is_counted, loss, 0.0), 0), tl.sum(weight, 0), gradient


@triton.jit
def _add_gradient(image, cell_row, rows, row_stride, is_class, above, below):
    """Adds a row of cells' gradients of two logits above each other; beyond the border both are the same one."""
    row_above = image + tl.cast(tl.maximum(cell_row - 1, 0), tl.int64) * row_stride
    row_below = image + tl.cast(tl.minimum(cell_row, rows - 1), tl.int64) * row_stride
    if (cell_row == 0) | (cell_row == rows):
        tl.atomic_add(row_below, above + below, mask=is_class, sem="relaxed")
    else:
        tl.atomic_add(row_above, above, mask=is_class, sem="relaxed")
        tl.atomic_add(row_below, below, mask=is_class, sem="relaxed")


@triton.jit
def _loss_kernel(
    logits_pointer,
    labels_pointer,
    class_weights_pointer,
    gradient_pointer,
    sums_pointer,
    strides,
    geometry,
    ignore_index,
    smoothing,
    WITH_GRADIENT: tl.constexpr,
    PADDED: tl.constexpr,
    PIXELS: tl.constexpr,
):
    classes, rows, columns, height, width, row_step, column_step, row_inverse, column_inverse, half = geometry
    index, cell_row, first, last = _place_of_program(rows, columns)
    number = tl.arange(0, PADDED).to(tl.int64)
    is_class = number < classes
    class_weights = tl.load(class_weights_pointer + number, mask=is_class, other=0.0)
    image = logits_pointer + index * strides[0] + number * strides[1]
    label_image = labels_pointer + index * strides[4]
    gradient_image = gradient_pointer + index * strides[7] + number * strides[8]
    top, row_count = _outputs_of_cell(cell_row, rows, height, row_step, row_inverse, half)
    corner_0, corner_2 = _pair(image, cell_row, rows, tl.maximum(first - 1, 0), strides[2], strides[3], is_class)
    above = tl.zeros([PADDED], tl.float32)  # gradient so far of the logits on the left
    below = tl.zeros([PADDED], tl.float32)
    loss_sum = 0.0
    weight_sum = 0.0
    for cell in range(first, last + 1):
        right = tl.minimum(cell, columns - 1)
        corner_1, corner_3 = _pair(image, cell_row, rows, right, strides[2], strides[3], is_class)
        left, column_count = _outputs_of_cell(cell, columns, width, column_step, column_inverse, half)
        next_above = tl.zeros([PADDED], tl.float32)
        next_below = tl.zeros([PADDED], tl.float32)
        is_own = (cell < last) | (last == columns)  # the next program's first cell is looked at for the gradient only
        for tile in range(0, row_count * column_count, PIXELS):
            row, column, is_pixel, shares = _pixels_of_tile(
                tile, cell_row, cell, top, left, row_count, column_count, geometry, PIXELS
            )
            label = tl.load(label_image + row * strides[5] + column * strides[6]).to(tl.int64)
            is_counted = is_pixel & (label != ignore_index)
            pixels = _mixed((corner_0, corner_1, corner_2, corner_3), shares)
            tile_loss, tile_weight, gradient = _loss_of_tile(
                pixels, is_class, label, is_counted, class_weights_pointer, class_weights, classes, smoothing
            )
            loss_sum += tl.where(is_own, tile_loss, 0.0)
            weight_sum += tl.where(is_own, tile_weight, 0.0)
            if WITH_GRADIENT:
                above += tl.sum(gradient * shares[0][:, None], 0)
                next_above += tl.sum(gradient * shares[1][:, None], 0)
                below += tl.sum(gradient * shares[2][:, None], 0)
                next_below += tl.sum(gradient * shares[3][:, None], 0)
        if WITH_GRADIENT:
            beyond = tl.where(cell == columns, 1.0, 0.0)  # where the last logit is repeated
            above += beyond * next_above
            below += beyond * next_below
            if cell > first:
                place = gradient_image + tl.cast(cell - 1, tl.int64) * strides[10]
                _add_gradient(place, cell_row, rows, strides[9], is_class, above, below)
            before = tl.where(cell == 0, 1.0, 0.0)  # where the first one is
            above = next_above + before * above
            below = next_below + before * below
        corner_0 = corner_1
        corner_2 = corner_3
    tl.store(sums_pointer + tl.program_id(0), loss_sum)
    tl.store(sums_pointer + tl.num_programs(0) + tl.program_id(0), weight_sum)


@triton.jit
def _label_map_kernel(logits_pointer, result_pointer, strides, geometry, PADDED: tl.constexpr, PIXELS: tl.constexpr):
    classes, rows, columns, height, width, row_step, column_step, row_inverse, column_inverse, half = geometry
    index, cell_row, first, last = _place_of_program(rows, columns)
    last = tl.where(last == columns, last + 1, last)  # there is a cell more than logits
    number = tl.arange(0, PADDED).to(tl.int64)
    is_class = number < classes
    image = logits_pointer + index * strides[0] + number * strides[1]
    top, row_count = _outputs_of_cell(cell_row, rows, height, row_step, row_inverse, half)
    corner_0, corner_2 = _pair(image, cell_row, rows, tl.maximum(first - 1, 0), strides[2], strides[3], is_class)
    for cell in range(first, last):
        right = tl.minimum(cell, columns - 1)
        corner_1, corner_3 = _pair(image, cell_row, rows, right, strides[2], strides[3], is_class)
        left, column_count = _outputs_of_cell(cell, columns, width, column_step, column_inverse, half)
        for tile in range(0, row_count * column_count, PIXELS):
            row, column, is_pixel, shares = _pixels_of_tile(
                tile, cell_row, cell, top, left, row_count, column_count, geometry, PIXELS
            )
            pixels = _mixed((corner_0, corner_1, corner_2, corner_3), shares)
            best = tl.argmax(tl.where(is_class[None, :], pixels, float("-inf")), 1)
            tl.store(result_pointer + (index * height + row) * width + column, best.to(tl.int64), mask=is_pixel)
        corner_0 = corner_1
        corner_2 = corner_3
