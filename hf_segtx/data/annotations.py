"""Annotations -> masks: polygons and run lengths, drawn when a mask is asked for.

Polygons have the pixels that COCO's tools (cocoapi, common/maskApi.c) give them, so that scores are comparable: about
those whose centre is inside. Coordinates are in pixels from the upper left corner of the image: (0.5, 0.5) is the
centre of the first pixel. A polygon that crosses itself is filled by even and odd; several of one object are joined.

Shapes: (H, W) image size.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from .labels import VOID_NAMES, Labels, default_ignore_index


BACKGROUND_NAMES = {"background", "_background_"}
Shape = tuple[int, list]  # raw id, and what `fill` takes


class Overlap(NamedTuple):
    """What is covered more than once in a mask, or in many.

    Args:
        pixels: under more than one shape.
        other_class: those of them under shapes of different classes, where the last shape counts.
        filled: shapes with a polygon inside another one of theirs, which does not make a hole.
    """

    pixels: int
    other_class: int
    filled: int


class AnnotatedMask:
    """A mask that is drawn from annotations; `numpy.asarray` draws it, (H, W) raw ids.

    Args:
        path: of the file, for messages.
        read: function without arguments -> size (H, W) and shapes, the lowest first.
        background: raw id where no annotation is.
        by_size: the shapes are in no order; larger ones are drawn first.

    Attributes:
        overlap: what lies under more than one shape; None until the mask is drawn.
    """

    def __init__(self, path, read: Callable[[], tuple], background: int = 0, by_size: bool = False):
        self.path = str(path)
        self.read, self.background, self.by_size = read, background, by_size
        self.overlap: Overlap | None = None

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        try:
            size, shapes = self.read()
            mask, self.overlap = draw(size, shapes, self.background, self.by_size)
        except (
            ValueError,
            OSError,
            LookupError,
            TypeError,
            AttributeError,
            ArithmeticError,
        ) as error:  # JSON of any kind
            what = error if isinstance(error, ValueError | OSError) else f"{error!r} in it"
            raise ValueError(f"{self.path}: the mask cannot be drawn: {what}") from error
        return mask if dtype is None else mask.astype(dtype)


def draw(size: tuple[int, int], shapes: list[Shape], background: int = 0, by_size: bool = False) -> tuple:
    """(H, W) ids of shapes, the last one on top, and the `Overlap`."""
    if min(size) < 1 or size[0] * size[1] > 2**32:
        raise ValueError(f"an image of {size[0]} x {size[1]} pixels; correct its height and width")
    regions = [(raw, *fill(parts, size)) for raw, parts in shapes]
    if by_size:
        regions.sort(key=lambda region: -np.count_nonzero(region[2]))  # stable
    largest = max([background, *(raw for raw, *_ in regions)])
    mask = np.full(size, background, np.uint8 if largest < 256 else np.uint16)
    times, differ = np.zeros(size, np.uint8), np.zeros(size, bool)
    for raw, place, inside, _ in regions:
        differ[place] |= inside & (times[place] > 0) & (mask[place] != raw)
        times[place] += inside & (times[place] < 2)
        mask[place][inside] = raw
    filled = sum(has_filled for *_, has_filled in regions)
    return mask, Overlap(int(np.count_nonzero(times == 2)), int(np.count_nonzero(differ)), filled)


def fill(parts: list, size: tuple[int, int]) -> tuple[tuple[slice, slice], np.ndarray, bool]:
    """What polygons [x, y, x, y, ...], or (H, W) booleans, cover together.

    Returns:
        where it lies in the image, the pixels there (bool), and whether a polygon lies inside the others.
    """
    if len(parts) == 1 and isinstance(parts[0], np.ndarray) and parts[0].dtype == bool:
        if parts[0].shape != tuple(size):
            raise ValueError(f"a shape of {parts[0].shape} pixels in an image of {size}; correct the annotation")
        return (slice(None), slice(None)), parts[0], False
    polygons = [polygon_points(part) for part in parts]
    if not polygons:
        raise ValueError("a shape without polygons; add one, or remove the shape")
    ends = np.concatenate(polygons)
    left, top = np.clip(np.floor(ends.min(0)), 0, size[::-1]).astype(int).tolist()
    right, bottom = np.clip(np.ceil(ends.max(0)), 0, size[::-1]).astype(int).tolist()
    inside, has_filled = np.zeros((bottom - top, right - left), bool), False
    for number, points in enumerate(polygons):
        pixels = fill_polygon(points, inside.shape, (left, top))
        has_filled |= number > 0 and pixels.any() and not ((pixels & ~inside).any() and (inside & ~pixels).any())
        inside |= pixels
    return (slice(top, bottom), slice(left, right)), inside, bool(has_filled)


def polygon_points(coordinates: Iterable) -> np.ndarray:
    """(N, 2) x and y of [x, y, x, y, ...].

    Raises:
        ValueError: if they are not three points or more of finite numbers.
    """
    try:
        points = np.array(coordinates, np.float64).ravel()
    except (TypeError, ValueError):
        points = np.zeros(1)
    if points.size < 6 or points.size % 2 or not np.isfinite(points).all() or np.abs(points).max() > 1e6:
        text = str(coordinates)
        raise ValueError(
            f"{text[:60]}{'...' if len(text) > 60 else ''} is no polygon; give x and y of three points or more"
        )
    return points.reshape(-1, 2)


def fill_polygon(points: np.ndarray, size: tuple[int, int], corner: tuple[int, int] = (0, 0)) -> np.ndarray:
    """(H, W) bool: the pixels of a polygon, as `rleFrPoly` of COCO's tools has them, from `corner` (x, y) on.

    The outline is drawn on a grid five times as fine. Wherever it passes the middle of a column of pixels, all pixels
    of that column below are toggled.
    """
    height, width = size
    if not height or not width:
        return np.zeros(size, bool)
    fine = np.trunc(5 * points + 0.5).astype(np.int64)
    starts, ends = fine, np.roll(fine, -1, axis=0)
    steps = np.abs(ends - starts).max(1)  # (N,) along the longer axis of each edge
    is_wide = np.abs(ends - starts)[:, 0] == steps
    main = np.where(is_wide, 0, 1)
    edges = np.arange(len(fine))
    backwards = starts[edges, main] > ends[edges, main]  # edges are the same from both ends
    starts, ends = (np.where(backwards[:, None], b, a) for a, b in ((starts, ends), (ends, starts)))
    slopes = (ends - starts)[edges, 1 - main] / np.maximum(steps, 1)

    edge = np.repeat(edges, steps + 1)  # of each point of the outline
    step = np.arange(len(edge)) - np.repeat(np.cumsum(steps + 1) - steps - 1, steps + 1)
    step = np.where(backwards[edge], steps[edge] - step, step)
    along = starts[edge, main[edge]] + step
    across = np.trunc(starts[edge, 1 - main[edge]] + slopes[edge] * step + 0.5).astype(np.int64)
    x, y = np.where(is_wide[edge], along, across), np.where(is_wide[edge], across, along)

    moves = np.flatnonzero(np.diff(x))
    column = np.minimum(x[moves], x[moves + 1])
    row = np.minimum(y[moves], y[moves + 1])
    # column c of pixels has its middle between 5 c + 2 and 5 c + 3 of the fine grid
    column, row, is_middle = column // 5 - corner[0], np.ceil((row + 0.5) / 5 - 0.5) - corner[1], column % 5 == 2
    kept = is_middle & (column >= 0) & (column < width)
    places, counts = np.unique(np.clip(row[kept], 0, height) * width + column[kept], return_counts=True)
    toggles = np.zeros((height + 1) * width, np.uint8)
    toggles[places[counts % 2 == 1].astype(np.int64)] = 1
    return np.bitwise_xor.accumulate(toggles.reshape(height + 1, width)[:height], axis=0).view(bool)


def decode_runs(counts: str | bytes | list[int], size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool from COCO's run lengths, column by column, the first run outside.

    In a text each number is the difference to the last but one (from the fourth number on), in groups of five bits,
    lowest first, one a character from "0" on; 32 says that more follow, 16 in the last that it is negative.
    """
    if isinstance(counts, str | bytes):
        numbers, value, shift = [], 0, 0
        for code in counts.encode() if isinstance(counts, str) else counts:
            value |= (code - 48 & 31) << shift
            shift += 5
            if not code - 48 & 32:
                if code - 48 & 16:
                    value -= 1 << shift
                numbers.append(value + numbers[-2] if len(numbers) > 2 else value)
                value, shift = 0, 0
        counts = numbers
    if any(not isinstance(count, int) or count < 0 for count in counts) or sum(counts) != size[0] * size[1]:
        raise ValueError(
            f"the runs cover {sum(map(int, counts))} pixels, the mask has {size[0]} x {size[1]}; export it again"
        )
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(size[::-1]).T


def encode_runs(inside: np.ndarray) -> list[int]:
    """The run lengths of an (H, W) bool, as `decode_runs` reads them."""
    flat = inside.T.ravel()
    return np.diff([0, *(np.flatnonzero(np.diff(flat, prepend=False))), flat.size]).tolist()


def labels_of_names(names: Iterable[str]) -> Labels:
    """The contract of annotated classes: 0 is background, then the names in their order."""
    others = [name for name in names if name.strip().lower() not in BACKGROUND_NAMES]
    return Labels(("background", *others), (), default_ignore_index(len(others) + 1))


def raw_ids(labels: Labels, names: Iterable[str], where: str) -> tuple[dict[str, int], int]:
    """Name -> raw id, and the raw id of what no annotation covers.

    Names that say that something is to be ignored, such as "void", are, unless they are classes. Without a class
    "background" what no annotation covers is ignored.

    Raises:
        ValueError: for a name that is no class.
    """
    exact: dict[str, int] = {}
    for raw, train_id in sorted(labels.mapping.items(), reverse=True):  # the smallest id of a class counts
        if train_id != labels.ignore_index:
            exact[labels.id2label[train_id]] = raw
    folded = {_folded(name): raw for name, raw in exact.items() if [*map(_folded, exact)].count(_folded(name)) == 1}
    ignored = next((raw for raw, train_id in labels.mapping.items() if train_id == labels.ignore_index), None)
    background = next((folded[name] for name in BACKGROUND_NAMES if name in folded), ignored)
    ids = {}
    for name in names:
        word = _folded(name)
        void = background if word in BACKGROUND_NAMES else ignored if word.strip("_") in VOID_NAMES else None
        if (raw := exact.get(name, folded.get(word, void))) is None:
            raise ValueError(f"{where}: {name!r} is none of the classes {', '.join(labels.names)}; rename or add it")
        ids[name] = raw
    if background is None:
        raise ValueError(
            f"{where}: no class is called background, and no id is ignored; add one of them to the classes"
        )
    return ids, background


def _folded(name: str) -> str:
    return name.strip().lower()


def overlap_of(masks: Iterable) -> tuple[Overlap, int]:
    """Sums of the `overlap` of masks (or others that have one) that were drawn, and how many of them have any."""
    overlaps = [overlap for mask in masks if (overlap := getattr(mask, "overlap", None)) is not None and any(overlap)]
    return Overlap(*map(sum, zip(*overlaps))) if overlaps else Overlap(0, 0, 0), len(overlaps)


def describe_overlap(overlap: Overlap, count: int) -> str:
    """What overlaps in `count` masks, in words."""
    text = (
        f"{count} have {overlap.pixels} pixels under more than one annotation, {overlap.other_class} of them under "
        "annotations of different classes: the last one counts, the smaller one where annotations are in no order"
    )
    if overlap.filled:
        text += (
            f"; {overlap.filled} objects have a polygon inside another one of theirs, which makes no hole: write such "
            "objects as run lengths"
        )
    return text
