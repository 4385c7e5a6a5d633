"""Padding and sliding windows: where an image and its windows lie, and its label map from the logits of its windows.

All geometry is computed here, for the image processor, inference and large images alike. An image is resized, then it
is either padded to a size that the network takes or cut into windows.

Windows are merged as by Segmenter (arXiv 2105.05633, segm/model/utils.py) and mmsegmentation (`slide_inference`): the
logits of each window are upsampled to the window, averaged at each pixel over the windows that cover it, and the result
is resized to the image's size. All of this is linear, and acts on rows and on columns alike and apart. Along an axis
the result is linear between **knots**, of which there are hardly more than there are logits: where a window begins or
ends, and where one of its logits lies. So only the logits at the knots are averaged, in blocks of rows, and `argmax_at`
does the rest; neither windows nor images of full-size logits are ever held.

Letters: K classes, (h, w) size of a window's logits, (H, W) of the result. Sizes and places are in pixels.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from .upsampling import argmax_at, logits_at, positions


BLOCK_NUMEL = 2**22  # logits at knots held at once


# ---------------------------------------------------------------------------------------------------- whole images


def padding_rule(
    size: Mapping[str, int | None], do_resize: bool, size_divisor: int | None, minimum_size: int | None
) -> tuple[int, int]:
    """What both sides of a padded image are multiples of, and the fewest pixels that they have.

    A `size` of height and width is meant as it is said and not padded: (1, 1).
    """
    as_said = do_resize and dict(size).get("height")
    return (1, 1) if as_said else (size_divisor or 1, minimum_size or 1)


def padded_size(sizes: list[tuple[int, int]], divisor: int, minimum: int = 1) -> tuple[int, int]:
    """The smallest size in pixels that holds all `sizes` and follows a `padding_rule`."""
    height, width = (math.ceil(max(*sides, minimum) / divisor) * divisor for sides in zip(*sizes, strict=True))
    return height, width


def enlarged_size(size: tuple[int, int], window_size) -> tuple[int, int]:
    """The size, or, if a side is below the window's, the smallest one of the same ratio of which none is.

    As `resize` of segm/model/utils.py, which has square windows: the side that decides becomes the window's, the other
    one is rounded down.
    """
    window = window_pair(window_size)
    first = max((0, 1), key=lambda axis: window[axis] / size[axis])
    if size[first] >= window[first]:
        return size
    other = max(window[1 - first], int(size[1 - first] / size[first] * window[first]))
    return (window[first], other) if first == 0 else (other, window[first])


def scaled_side(side: int, scale: float, divisor: int, minimum: int) -> int:
    """The side in pixels, times `scale`, rounded to what the `padding_rule` allows."""
    return max(round(side * scale / divisor), math.ceil(minimum / divisor)) * divisor


def unpadded_positions(
    target: tuple[int, int], own: tuple[int, int], padded: tuple[int, int], steps: tuple[int, int], align_corners: bool
) -> list[torch.Tensor]:
    """Where the pixels of the image lie among the logits of the padded image: their rows (H,) and columns (W,).

    Args:
        target: (H, W), size of the result.
        own: size of the image that the model was given, at the top left of the padded one.
        padded: size of the model's input, which the logits cover.
        steps: size of the logits.
        align_corners: as in `F.interpolate`.
    """
    places = []
    for size, part, whole, step in zip(target, own, padded, steps, strict=True):
        extent = 1 + (part - 1) * (step - 1) / max(whole - 1, 1) if align_corners else part * step / whole
        places.append(positions(extent, size, align_corners))
    return places


# --------------------------------------------------------------------------------------------------------- windows


def window_pair(value: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    """A `window_size` or `window_stride` as height and width."""
    height, width = (value, value) if isinstance(value, int) else value
    return height, width


def window_grid(
    size: tuple[int, int],
    window_size,
    window_stride,
    size_divisor: int | None,
    minimum_size: int | None,
    is_cut: bool,
) -> tuple[tuple[int, int], tuple[list[int], list[int]]]:
    """The windows of an image of `size`: their size, and first row of each row and first column of each column of them.

    Args:
        is_cut: no larger than the image, or than the network can take.

    Raises:
        ValueError: if the stride would leave pixels out, or the model cannot take windows of that size.
    """
    window = window_pair(window_size)
    stride = window_pair(window_stride or window)
    for edge, step in zip(window, stride, strict=True):
        if not 0 < step <= edge:
            raise ValueError(f"window_stride {stride} for window_size {window}; set it to at least 1, at most the size")
        if edge < (minimum_size or 1):
            raise ValueError(f"window_size {window} is below minimum_size {minimum_size}; the network takes no less")
    if is_cut:
        window = tuple(map(min, window, padded_size([size], size_divisor or 1, minimum_size or 1)))
    rows, columns = (window_starts(*axis) for axis in zip(size, window, stride, strict=True))
    return window, (rows, columns)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixel of each window along an axis: every `stride` pixels, the last one aligned to the border."""
    return [*range(0, length - window, stride), max(length - window, 0)]


class Part(NamedTuple):
    """Pixels `begin` to `end` of an axis, and the first pixels of the windows that cover them."""

    begin: int
    end: int
    starts: list[int]

    @property
    def length(self) -> int:
        return self.end - self.begin

    def covered(self, length: int, window: int) -> int:
        """How many pixels of an axis of `length` pixels its windows cover together."""
        return min(self.starts[-1] + window, length) - self.starts[0]


def axis_parts(length: int, window: int, starts: list[int], longest: int) -> list[Part]:
    """An axis of `length` pixels in parts of at most `longest` pixels, each of which begins where a window does."""
    cuts = [0]
    while length - cuts[-1] > longest:
        cuts.append(max(start for start in starts if start <= cuts[-1] + longest))
    return [
        Part(begin, end, [start for start in starts if begin - window < start < end])
        for begin, end in pairwise([*cuts, length])
    ]


def stack_by_image(logits: torch.Tensor, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and windows of several images, of which each was cut on its own, by image; rows of 0 where one has fewer.

    Shape:
        logits: (N, K, h, w), windows: (N, 7) as of the image processor, all of image 0
        returns: (B, n, K, h, w) and (B, n, 7), n the most windows of an image
    """
    first = (windows[:, :3] == 0).all(1).nonzero().flatten().tolist()  # at the top left
    counts = [end - begin for begin, end in pairwise([*first, len(windows)])]
    logits, windows = (pad_sequence(x.split(counts), batch_first=True) for x in (logits, windows))
    return logits, windows


def unstack(logits: torch.Tensor, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `stack_by_image` made as (N, K, h, w) and (N, 7), with the numbers of the images."""
    windows = windows.clone()
    windows[..., 0] = torch.arange(len(windows), device=windows.device)[:, None]
    real = windows[..., 3] > 0  # height of the window
    return logits[real], windows[real]


class MergedWindows:
    """The logits of one image, from those of its windows, which are added row by row.

    Args:
        own: size of the image that was cut into windows. If smaller than a window, it was padded on the right, bottom.
        target: size of the result.
        window: size of the windows.
        starts: first row of each row of windows, and first column of each column.
        align_corners: as in `F.interpolate`, for both resizings.
    """

    def __init__(
        self,
        own: tuple[int, int],
        target: tuple[int, int],
        window: tuple[int, int],
        starts: tuple[list[int], list[int]],
        align_corners: bool,
    ):
        self.own, self.starts = own, starts
        self._geometry = list(zip(own, target, window, starts, strict=True))
        self._align_corners = align_corners
        self._rows: _Axis | None = None  # they follow from the size of the first logits
        self._columns: _Axis | None = None
        self._windows: list[torch.Tensor] = []  # logits of a row of windows that is not complete
        self._strips: list[torch.Tensor | None] = []  # of each row of windows, merged along columns: (h, knots, K)
        self._done = 0  # rows of the label map that were handed out

    def resume(self, row: int) -> int:
        """Makes ready for a label map whose first rows exist; returns the first row of windows that is needed.

        For results of the image's own size. To be called before the first `add`.
        """
        own, target, window, starts = self._geometry[0]
        if own != target:
            raise ValueError(f"a label map of {target} rows for an image of {own} rows cannot be resumed")
        first = next(index for index, start in enumerate(starts) if start + window > min(row, own - 1))
        self._strips, self._done = [None] * first, row
        return first

    def add(self, logits: torch.Tensor) -> bool:
        """Takes the logits (K, h, w) of the next window: from left to right, then from top to bottom.

        Returns whether that was the last of its row.
        """
        if self._rows is None:
            self._rows, self._columns = (
                _Axis(*axis, steps, self._align_corners)
                for axis, steps in zip(self._geometry, logits.shape[1:], strict=True)
            )
        self._windows.append(logits)
        complete = len(self._windows) == len(self.starts[1])
        if complete:
            strip = torch.stack([window.permute(1, 2, 0) for window in self._windows], dim=1)  # (h, windows, w, K)
            strip = strip.flatten(1, 2).to(torch.promote_types(strip.dtype, torch.float32))
            merged = strip.new_zeros(len(strip), self._columns.knots, strip.shape[2])
            self._strips.append(self._columns.mix(strip, merged, dim=1))
            self._windows = []
        return complete

    def next_rows(self) -> torch.Tensor:
        """Label map (rows, W) int64 of the rows that are complete now; gives back memory that no other row needs."""
        begin = self._done
        self._done = max(begin, int(torch.searchsorted(self._rows.last_window, len(self._strips))))
        label_map = self.label_map(begin, self._done)
        if self._done < len(self._rows.positions):
            unneeded = int(self._rows.first_window[self._done])
            self._strips[:unneeded] = [None] * unneeded
        return label_map

    def label_map(self, begin: int, end: int) -> torch.Tensor:
        """Classes (end - begin, W) int64 of some rows of the result, as `upsampled_argmax`."""
        rows, columns = self._rows, self._columns
        step = max(1, BLOCK_NUMEL * len(rows.positions) // (rows.knots * self._strips[-1][0].numel()))
        blocks = [
            argmax_at(*self._block(start, min(start + step, end)), columns.positions)[0]
            for start in range(begin, end, step)
        ]
        empty = torch.empty(0, len(columns.positions), dtype=torch.long, device=self._strips[-1].device)
        return torch.cat([empty, *blocks])

    def logits(self, begin: int, end: int, mirrored: bool = False) -> torch.Tensor:
        """Logits (K, end - begin, W) of some rows of the result, from right to left if `mirrored`."""
        columns = self._columns.positions
        return logits_at(*self._block(begin, end), columns.flip(0) if mirrored else columns)[0]

    def _block(self, begin: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (1, K, k, l) at the knots around some rows of the result, and the places of these rows among them."""
        rows = self._rows.positions[begin:end]
        first, last = int(rows[0].floor()), int(rows[-1].ceil())
        strips = self._strips
        merged = strips[-1].new_zeros(last + 1 - first, *strips[-1].shape[1:])
        for window, strip in enumerate(strips):
            if strip is not None:
                self._rows.mix(strip, merged, 0, first, last, window)
        return merged.permute(2, 0, 1)[None], rows - first


class _Axis:
    """One axis of the way from the logits of windows to the result.

    Args:
        own, target, window, starts, align_corners: as in `MergedWindows`, of this axis.
        steps: logits of a window.

    Attributes:
        knots: their number.
        positions: (target,) float64, place of each output among the knots, in the sense of `upsampling.positions`.
        first_window, last_window: (target,) the windows that each output needs.
    """

    def __init__(self, own: int, target: int, window: int, starts: list[int], steps: int, align_corners: bool):
        # Place of a pixel among a window's logits: (pixel - origin) / stride.
        if align_corners and steps > 1:
            stride, origin = (window - 1) / (steps - 1), torch.tensor(starts, dtype=torch.float64)
        else:
            stride = window / steps
            origin = torch.tensor(starts, dtype=torch.float64) + (stride - 1) / 2

        # Pieces: runs of pixels that lie in the same windows, between the same logits of each.
        pixels = torch.arange(own, dtype=torch.float64)
        into = pixels[:, None] - torch.tensor(starts)  # (own, windows)
        cell = ((pixels[:, None] - origin) / stride + 1e-9).floor()  # -1 to steps - 1 within a window
        cell[(into < 0) | (into >= window)] = -2
        cell, piece, length = torch.unique_consecutive(cell, dim=0, return_inverse=True, return_counts=True)
        covered = cell > -2  # (pieces, windows)
        if own == target:  # pieces end at the logits themselves, where most have the end of the next in common
            begin = (origin + cell * stride).masked_fill(~covered, -torch.inf).amax(1)
            end = (origin + (cell + 1) * stride).masked_fill(~covered, torch.inf).amin(1)
        else:  # the second resizing sees only pixels
            end = length.cumsum(0).double() - 1
            begin = end - length + 1

        # A knot: place among each window's logits, -1 outside of the window.
        places = ((torch.stack([begin, end], 1)[..., None] - origin) / stride).round(decimals=9)  # (pieces, 2, windows)
        places = places.clamp(cell[:, None], cell[:, None] + 1).clamp(0, steps - 1)
        places = places.masked_fill(~covered[:, None], -1).flatten(0, 1)
        places, knot = torch.unique_consecutive(places, dim=0, return_inverse=True)
        first_knot, last_knot = knot.view(-1, 2)[piece].unbind(1)  # of each pixel's piece; one knot or neighbours
        share = ((pixels - begin[piece]) / (end - begin)[piece]).nan_to_num(0.0)
        of_pixel = first_knot + share * (last_knot - first_knot)
        if own == target:
            self.positions = of_pixel
        else:
            place = positions(own, target, align_corners).clamp(0, own - 1)
            self.positions = torch.lerp(of_pixel[place.long()], of_pixel[place.ceil().long()], place.frac())

        # Each knot is a mean over its windows of mixtures of two logits; below are all terms that are not 0.
        self.knots = len(places)
        inside = places >= 0
        below, share = places.floor(), places.frac()
        weight = torch.stack([1 - share, share], 2) / inside.sum(1)[:, None, None]
        weight = weight * inside[..., None]  # (knots, windows, 2)
        self._knot, self._window, above = weight.nonzero().T.contiguous()
        self._weight = weight[self._knot, self._window, above]
        self._step = below[self._knot, self._window].long() + above
        self._steps = steps
        windows = torch.arange(len(starts))
        first = windows.where(inside, len(starts)).amin(1)
        last = windows.where(inside, -1).amax(1)
        self.first_window = first[self.positions.floor().long()]
        self.last_window = last[self.positions.ceil().long()]

    def mix(
        self,
        logits: torch.Tensor,
        merged: torch.Tensor,
        dim: int,
        first: int = 0,
        last: int | None = None,
        window: int | None = None,
    ) -> torch.Tensor:
        """Adds the logits' terms to knots `first` to `last` along dimension `dim`: `merged`, which is returned.

        The logits are those of all windows, one after the other, or of `window` only.
        """
        chosen = slice(*torch.searchsorted(self._knot, torch.tensor([first, self.knots if last is None else last + 1])))
        knot, step, weight = self._knot[chosen] - first, self._step[chosen], self._weight[chosen]
        if window is None:
            step = step + self._window[chosen] * self._steps
        else:
            own = self._window[chosen] == window
            knot, step, weight = knot[own], step[own], weight[own]
        terms = logits.index_select(dim, step.to(logits.device))
        terms *= weight.to(logits).view(-1, *[1] * (logits.dim() - dim - 1))
        return merged.index_add_(dim, knot.to(logits.device), terms)
