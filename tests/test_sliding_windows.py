"""Merging the logits of sliding windows: against a loop over windows written down from the papers' description."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from hf_segtx.models import sliding_windows
from hf_segtx.models.sliding_windows import (
    MergedWindows,
    axis_parts,
    padded_size,
    padding_rule,
    scaled_side,
    unpadded_positions,
    window_grid,
    window_starts,
)


CASES = {  # own, target, window, stride, logits of a window
    "aligned": ((40, 60), (40, 60), (16, 24), (8, 16), (4, 6)),
    "aligned, resized": ((40, 60), (55, 77), (16, 24), (8, 16), (4, 6)),
    "off the grid": ((37, 53), (37, 53), (16, 16), (11, 7), (4, 4)),
    "off the grid, smaller and larger": ((37, 53), (91, 20), (16, 16), (5, 16), (4, 4)),
    "one logit a window": ((10, 50), (10, 50), (16, 16), (16, 16), (1, 2)),
    "logits for every pixel": ((10, 50), (23, 49), (16, 16), (12, 12), (16, 16)),
    "last window overlaps by all but a pixel": ((33, 33), (33, 33), (32, 32), (32, 32), (2, 3)),
    "padded": ((9, 11), (20, 30), (16, 16), (16, 16), (4, 4)),
    "one row, three windows deep": ((1, 70), (3, 70), (16, 12), (1, 4), (5, 4)),
}


def merge_slowly(window_logits, own, target, window, starts, align_corners):
    """As slide_inference of mmsegmentation: sum and count at the padded size, then crop and resize."""
    size = [max(pair) for pair in zip(own, window, strict=True)]
    total, count = torch.zeros(len(window_logits[0]), *size).double(), torch.zeros(1, *size).double()
    for logits, (top, left) in zip(window_logits, product(*starts), strict=True):
        part = slice(None), slice(top, top + window[0]), slice(left, left + window[1])
        total[part] += F.interpolate(logits[None], window, mode="bilinear", align_corners=align_corners)[0]
        count[part] += 1
    merged = (total / count)[None, :, : own[0], : own[1]]
    return F.interpolate(merged, target, mode="bilinear", align_corners=align_corners)[0]


def example(own, target, window, stride, steps, align_corners=False, classes=5):
    starts = tuple(window_starts(*axis) for axis in zip(own, window, stride, strict=True))
    generator = torch.Generator().manual_seed(0)
    count = len(starts[0]) * len(starts[1])
    window_logits = [torch.randn(classes, *steps, dtype=torch.float64, generator=generator) for _ in range(count)]
    merged = MergedWindows(own, target, window, starts, align_corners)
    return merged, window_logits, merge_slowly(window_logits, own, target, window, starts, align_corners)


@pytest.mark.parametrize(
    "length, window, stride, wanted",
    [  # by hand, as the authors of Segmenter: every `stride`, and the last at the border
        (10, 4, 3, [0, 3, 6]),
        (11, 4, 3, [0, 3, 6, 7]),
        (4, 4, 3, [0]),
        (3, 4, 4, [0]),
        (2048, 768, 512, [0, 512, 1024, 1280]),
    ],
)
def test_window_starts_match_counting(length, window, stride, wanted):
    assert window_starts(length, window, stride) == wanted


@pytest.mark.parametrize(
    "sizes, divisor, minimum, wanted",
    [  # by hand: multiples of the divisor, not below the minimum
        ([(1, 1)], 1, 29, (29, 29)),
        ([(28, 300)], 1, 29, (29, 300)),
        ([(28, 300), (40, 7)], 1, 1, (40, 300)),
        ([(17, 5)], 16, 1, (32, 16)),
        ([(17, 5)], 16, 33, (48, 48)),
    ],
)
def test_padded_size_matches_counting(sizes, divisor, minimum, wanted):
    assert padded_size(sizes, divisor, minimum) == wanted


def test_a_size_of_height_and_width_is_not_padded():
    said, ratio = {"height": 20, "width": 30}, {"shortest_edge": 20, "longest_edge": None}
    assert padding_rule(said, True, 16, 29) == (1, 1)
    assert padding_rule(said, False, 16, 29) == padding_rule(ratio, True, 16, 29) == (16, 29)
    assert padding_rule(ratio, True, None, None) == (1, 1)


def test_scaled_sides_fit_the_network():
    assert [scaled_side(64, scale, 16, 1) for scale in (0.1, 0.5, 0.6, 1.75)] == [16, 32, 32, 112]
    assert [scaled_side(64, scale, 1, 29) for scale in (0.1, 0.5)] == [29, 32]
    assert scaled_side(64, 0.1, 16, 29) == 32


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(window_size=32, window_stride=33), "window_stride .33, 33. for window_size .32, 32."),
        (dict(window_size=32, window_stride=(0, 4)), "window_stride .0, 4. for window_size .32, 32."),
        (dict(window_size=28, window_stride=14, minimum_size=29), "below minimum_size 29"),
    ],
)
def test_windows_that_cannot_be_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        window_grid((100, 100), **({"size_divisor": None, "minimum_size": None, "is_cut": False} | settings))


@pytest.mark.parametrize(
    "settings, wanted",
    [  # by hand: size, window_size, window_stride, size_divisor, minimum_size, is_cut
        (((2, 3), 1, 1, None, None, False), ((1, 1), ([0, 1], [0, 1, 2]))),
        (((29, 30), 29, None, None, 29, False), ((29, 29), ([0], [0, 1]))),
        (((1, 3), 4, 4, None, None, False), ((4, 4), ([0], [0]))),
        (((1, 3), 4, 4, None, None, True), ((1, 3), ([0], [0]))),
        (((3, 30), 16, 16, 4, 6, True), ((8, 16), ([0], [0, 14]))),
    ],
)
def test_window_grid_matches_counting(settings, wanted):
    assert window_grid(*settings) == wanted


def test_places_in_an_image_of_one_row_and_two_columns():
    rows, columns = unpadded_positions((3, 2), (1, 2), (1, 2), (1, 2), True)
    assert rows.tolist() == [0, 0, 0] and columns.tolist() == [0, 1]


@pytest.mark.parametrize("window", [8, 10])
@pytest.mark.parametrize("longest", [10, 16, 23])
def test_parts_cover_the_axis_once_with_all_their_windows(longest, window):
    length = 53
    starts = window_starts(length, window, 4)
    parts = axis_parts(length, window, starts, longest)
    assert [pixel for part in parts for pixel in range(part.begin, part.end)] == list(range(length))
    for part in parts:
        assert part.length <= longest and part.begin in starts
        needed = {start for start in starts if {*range(start, start + window)} & {*range(part.begin, part.end)}}
        assert set(part.starts) == needed
        assert part.covered(length, window) == max(needed) + window - min(needed)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_merged_logits_match_slow_loop(case, align_corners, monkeypatch):
    merged, window_logits, wanted = example(*CASES[case], align_corners)
    for logits in window_logits:
        merged.add(logits)
    height = wanted.shape[1]
    seen = torch.cat([merged.logits(0, height // 2), merged.logits(height // 2, height)], dim=1)
    torch.testing.assert_close(seen, wanted, rtol=0, atol=1e-8)  # places of knots are rounded to 1e-9
    torch.testing.assert_close(merged.logits(0, height, mirrored=True), wanted.flip(2), rtol=0, atol=1e-8)
    assert torch.equal(merged.label_map(0, height), wanted.argmax(0))
    monkeypatch.setattr(sliding_windows, "BLOCK_NUMEL", 500)
    assert torch.equal(merged.label_map(0, height), wanted.argmax(0))


@pytest.mark.parametrize("case", CASES)
def test_rows_come_as_windows_do(case):
    merged, window_logits, wanted = example(*CASES[case])
    rows = [merged.next_rows() for logits in window_logits if merged.add(logits)]
    assert torch.equal(torch.cat(rows), wanted.argmax(0))


def test_one_class_is_a_sigmoid():
    merged, window_logits, wanted = example(*CASES["off the grid"], classes=1)
    for logits in window_logits:
        merged.add(logits)
    assert torch.equal(merged.label_map(0, 37), (wanted[0] > 0).long())


@pytest.mark.parametrize("row", [0, 1, 11, 12, 16, 26, 27, 36, 37])
def test_resumed_label_map_is_the_rest(row):
    merged, window_logits, wanted = example(*CASES["off the grid"])
    first = merged.resume(row)
    assert first == sum(end <= min(row, 36) for end in (16, 27, 37))  # windows that end before
    columns = len(merged.starts[1])
    rows = [merged.next_rows() for logits in window_logits[first * columns :] if merged.add(logits)]
    assert torch.equal(torch.cat(rows), wanted.argmax(0)[row:])


def test_holds_little():
    """Neither full-size logits nor, once it is given back, those of past rows of windows: 20 rows of windows here."""
    window, classes = (16, 16), 50
    merged, window_logits, wanted = example((320, 64), (320, 64), window, (16, 16), (4, 4), classes=classes)
    largest = 0
    for logits in window_logits:
        if merged.add(logits):
            merged.next_rows()
            held = sum(strip.numel() for strip in merged._strips if strip is not None)
            largest = max(largest, held)
    assert largest <= 3 * 4 * 20 * classes < wanted.numel() / 50
    assert 4 * sliding_windows.BLOCK_NUMEL == 16 * 2**20  # bytes of float32, of the logits around a block of rows
