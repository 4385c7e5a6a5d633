"""Annotations -> masks: polygons and run lengths, drawn when a mask is asked for.

Polygons have the pixels that COCO's tools (cocoapi, common/maskApi.c) give them, so that scores are comparable: about
those whose centre is inside. Coordinates are in pixels from the upper left corner of the image: (0.5, 0.5) is the
centre of the first pixel. A polygon that crosses itself is filled by even and odd; several of one object are joined.

Shapes: (H, W) image size.
"""

from collections.abc import Callable, Iterable

import numpy as np

from .labels import VOID_NAMES, Labels, default_ignore_index


BACKGROUND_NAMES = {"background", "_background_"}
Shape = tuple[int, list]  # raw id, and what `fill` takes


class AnnotatedMask:
    """A mask that is drawn from annotations; `numpy.asarray` draws it, (H, W) raw ids.

    Args:
        path: of the file, for messages.
        read: function without arguments -> size (H, W) and shapes, the lowest first.
        background: raw id where no annotation is.
        by_size: the shapes are in no order; larger ones are drawn first.

    Attributes:
        covered_twice: pixels under more than one shape, and those of them under different classes, where the last one
            counts; None until it is drawn.
    """

    def __init__(self, path, read: Callable[[], tuple], background: int = 0, by_size: bool = False):
        self.path = str(path)
        self.read, self.background, self.by_size = read, background, by_size
        self.covered_twice: tuple[int, int] | None = None

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        try:
            size, shapes = self.read()
            mask, *covered_twice = draw(size, shapes, self.background, self.by_size)
        except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:  # of rows and JSON of any content
            what = f"{error!r} in it" if isinstance(error, KeyError | TypeError | AttributeError) else error
            raise ValueError(f"{self.path}: the mask cannot be drawn: {what}") from error
        self.covered_twice = tuple(covered_twice)
        return mask if dtype is None else mask.astype(dtype)


def draw(size: tuple[int, int], shapes: list[Shape], background: int = 0, by_size: bool = False) -> tuple:
    """(H, W) ids of shapes, the last one on top; pixels under more than one, and those under different classes."""
    regions = [(raw, fill(parts, size)) for raw, parts in shapes]
    if by_size:
        regions.sort(key=lambda region: -np.count_nonzero(region[1][1]))  # stable
    largest = max([background, *(raw for raw, _ in regions)])
    mask = np.full(size, background, np.uint8 if largest < 256 else np.uint16)
    times, differ = np.zeros(size, np.uint8), np.zeros(size, bool)
    for raw, (place, inside) in regions:
        covered = inside & (times[place] > 0)
        differ[place] |= covered & (mask[place] != raw)
        times[place] += inside & (times[place] < 2)
        mask[place][inside] = raw
    return mask, int(np.count_nonzero(times == 2)), int(np.count_nonzero(differ))


def fill(parts: list, size: tuple[int, int]) -> tuple[tuple[slice, slice], np.ndarray]:
    """Where it lies, and the pixels there (bool), of what polygons [x, y, x, y, ...] or (H, W) booleans cover."""
    if len(parts) == 1 and isinstance(parts[0], np.ndarray) and parts[0].dtype == bool:
        if parts[0].shape != tuple(size):
            raise ValueError(f"a shape of {parts[0].shape} pixels in an image of {size}; correct the annotation")
        return (slice(None), slice(None)), parts[0]
    polygons = [polygon_points(part) for part in parts]
    ends = np.concatenate(polygons or [np.zeros((1, 2))])
    (left, top), (right, bottom) = np.floor(ends.min(0)), np.ceil(ends.max(0))
    left, right = (int(np.clip(value, 0, size[1])) for value in (left, right))
    top, bottom = (int(np.clip(value, 0, size[0])) for value in (top, bottom))
    inside = np.zeros((bottom - top, right - left), bool)
    for points in polygons:
        inside |= fill_polygon(points, inside.shape, (left, top))
    return (slice(top, bottom), slice(left, right)), inside


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
    by_name: dict[str, int] = {}
    for raw, train_id in sorted(labels.mapping.items(), reverse=True):  # the smallest id of a class counts
        if train_id != labels.ignore_index:
            by_name[labels.id2label[train_id].strip().lower()] = raw
    ignored = next((raw for raw, train_id in labels.mapping.items() if train_id == labels.ignore_index), None)
    background = next((by_name[name] for name in BACKGROUND_NAMES if name in by_name), ignored)
    ids = {}
    for name in names:
        key = name.strip().lower()
        void = background if key in BACKGROUND_NAMES else ignored if key.strip("_") in VOID_NAMES else None
        if (raw := by_name.get(key, void)) is None:
            raise ValueError(f"{where}: {name!r} is none of the classes {', '.join(labels.names)}; rename or add it")
        ids[name] = raw
    if background is None:
        raise ValueError(
            f"{where}: no class is called background, and no id is ignored; add one of them to the classes"
        )
    return ids, background


def covered_twice(masks: Iterable) -> tuple[int, int, int]:
    """Sums of `AnnotatedMask.covered_twice` over the masks that were drawn, and how many of them have such pixels."""
    counts = [mask.covered_twice for mask in masks if getattr(mask, "covered_twice", None) and mask.covered_twice[0]]
    return (*(sum(numbers) for numbers in zip(*counts, strict=True)), len(counts)) if counts else (0, 0, 0)
