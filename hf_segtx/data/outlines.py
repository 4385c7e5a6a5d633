"""Label maps -> the outlines of their regions, exact to the pixel, for tools in which annotations are corrected.

A region is a set of pixels of one label that touch by their sides. Its outline runs along the sides of pixels,
clockwise on the screen; holes run the other way. Drawn with `annotations.fill`, they give the label map again.

Shapes: (H, W) image size, N points.
"""

from typing import NamedTuple

import numpy as np


# The sides of a pixel, clockwise: top, right, bottom, left. For each the neighbour beyond it, the pixel that follows
# along it and the corner (x, y) where it begins.
_BEYOND = ((0, -1), (1, 0), (0, 1), (-1, 0))
_ALONG = ((1, 0), (0, 1), (-1, 0), (0, -1))
_CORNER = ((0, 0), (1, 0), (1, 1), (0, 1))


class Region(NamedTuple):
    """label: its value; outline: (N, 2) x and y of the corners in pixels; holes: such outlines."""

    label: int
    outline: np.ndarray
    holes: list[np.ndarray]


def find_regions(label_map: np.ndarray, ignored: set[int] = frozenset()) -> list[Region]:
    """The regions of an (H, W) label map, from the top down, without those of the ignored labels."""
    labels = np.pad(np.asarray(label_map).astype(np.int64), 1, constant_values=-(2**31))
    width = labels.shape[1]
    flat = labels.ravel()
    wanted = (flat != -(2**31)) & ~np.isin(flat, list(ignored))
    beyond, along = ([x + y * width for x, y in steps] for steps in (_BEYOND, _ALONG))
    sides = [np.flatnonzero(wanted & (flat != np.roll(flat, -step))) for step in beyond]  # pixels with a border there
    first = np.cumsum([0, *map(len, sides)])  # number of each side's first border

    def number(side: int, pixels: np.ndarray) -> np.ndarray:
        return first[side] + np.searchsorted(sides[side], pixels)

    following = np.empty(first[4], np.int64)  # border -> the next one along the outline
    for side, pixels in enumerate(sides):
        label, turn = flat[pixels], (side + 1) % 4
        ahead, left = pixels + along[side], pixels + along[side] + beyond[side]
        is_corner = flat[ahead] != label
        is_straight = ~is_corner & (flat[left] != label)
        choices = [number(turn, pixels), number(side, ahead)]
        following[first[side] : first[side + 1]] = np.select(
            [is_corner, is_straight], choices, number((side + 3) % 4, left)
        )
    rings, ring_of = _rings(following)
    pixels = np.concatenate(sides)
    side_of = np.repeat(np.arange(4), [len(pixels) for pixels in sides])
    return _grouped(rings, ring_of, pixels, side_of, sides[3], first[3], flat, width)


def _rings(following: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """The cycles of borders, and the number of each border's cycle."""
    steps, ring_of, rings = following.tolist(), [-1] * len(following), []
    for start in range(len(steps)):
        if ring_of[start] < 0:
            ring, border = [], start
            while ring_of[border] < 0:
                ring_of[border] = len(rings)
                ring.append(border)
                border = steps[border]
            rings.append(np.array(ring))
    return rings, np.array(ring_of, np.int64)


def _grouped(rings, ring_of, pixels, side_of, left_pixels, first_left, flat, width) -> list[Region]:
    """Regions of rings: whoever walks left from the leftmost pixel of a hole meets another ring of the same region."""
    corners, regions, owner = np.array(_CORNER), {}, {}
    holes = []
    for number, ring in enumerate(rings):
        sides = side_of[ring]
        turning = sides != np.roll(sides, 1)
        bends = ring[turning]
        points = np.stack([pixels[bends] % width - 1, pixels[bends] // width - 1], 1) + corners[side_of[bends]]
        x, y = points.T
        if np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) > 0:
            regions[number] = Region(int(flat[pixels[ring[0]]]), points, [])
        else:
            holes.append((number, pixels[ring], points))
    for number, inside, _ in holes:
        leftmost = inside[np.argmin(inside % width)]
        owner[number] = int(ring_of[first_left + np.searchsorted(left_pixels, leftmost, "right") - 1])
    for number, _, points in holes:
        while number in owner:
            number = owner[number]
        regions[number].holes.append(points)
    return list(regions.values())


def joined(region: Region) -> np.ndarray:
    """(N, 2): one outline for tools that know no holes: a line leads to each hole and back, and covers no pixel."""
    outline = region.outline
    for hole in region.holes:
        place = int(np.argmin(np.abs(outline - hole[0]).sum(1)))
        outline = np.concatenate([outline[: place + 1], hole, hole[:1], outline[place:]])
    return outline
