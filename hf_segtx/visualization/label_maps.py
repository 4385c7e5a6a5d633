"""Pictures of label maps: colours, overlays, legends, and image, truth and prediction side by side; PIL and numpy only.

Shapes: (H, W) label map of class ids, any integer type; `palette`: one (red, green, blue) of 0-255 for each of K
classes. Void pixels (`ignore_index`) are black in colour maps, hatched in comparisons, and left as they are in
overlays.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont


Palette = Sequence[tuple[int, int, int]]

INK, FAINT, PAPER = (32, 36, 44), (120, 126, 136), (255, 255, 255)  # text, secondary text, background
HATCH = ((0, 0, 0), (72, 72, 72))  # stripes of void pixels
GAP = 12  # pixels between and around panels
TEXT_SIZE = 15  # pixels


def palette(n: int) -> list[tuple[int, int, int]]:
    """`n` colours, each as different as possible from those before it: `palette(n)[:k] == palette(k)`.

    Farthest-point choice in the perceptual space OKLab among colours that are neither near black, white nor grey.
    Colours repeat beyond 1000.
    """
    colors = _distinct_colors(min(n, 1000))
    return [colors[i % len(colors)] for i in range(n)]


@cache
def _distinct_colors(n: int) -> list[tuple[int, int, int]]:
    levels = np.linspace(10, 250, 19).round().astype(np.uint8)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    points = _oklab(candidates)
    lightness, chroma = points[:, 0], np.hypot(points[:, 1], points[:, 2])
    pleasant = (lightness > 0.42) & (lightness < 0.88) & (chroma > 0.05) & (chroma < 0.175)
    candidates, points = candidates[pleasant], points[pleasant] * (0.8, 1, 1)  # hue tells classes apart, not lightness
    chosen = [int(np.abs(candidates.astype(int) - (70, 130, 180)).sum(1).argmin())]  # starts with a steel blue
    distance = np.full(len(candidates), np.inf)
    while len(chosen) < n:
        distance = np.minimum(distance, np.square(points - points[chosen[-1]]).sum(1))
        chosen.append(int(distance.argmax()))
    return [tuple(color) for color in candidates[chosen[:n]].tolist()]


def _oklab(colors: np.ndarray) -> np.ndarray:
    """sRGB of 0-255 (N, 3) -> OKLab (N, 3); https://bottosson.github.io/posts/oklab."""
    srgb = colors / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_cones = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566]]
    to_cones.append([0.0883024619, 0.2817188376, 0.6299787005])
    to_lab = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099]]
    to_lab.append([0.0259040371, 0.7827717662, -0.8086757660])
    return np.cbrt(linear @ np.transpose(to_cones)) @ np.transpose(to_lab)


def color_map(label_map, palette: Palette, ignore_index: int = 255) -> np.ndarray:
    """The colours of a label map, void black: (H, W) -> (H, W, 3) uint8.

    Raises:
        ValueError: if an id has no colour.
    """
    ids = _as_ids(label_map, len(palette), ignore_index)
    return np.array([*palette, (0, 0, 0)], np.uint8)[ids]


def overlay(image, label_map, palette: Palette, alpha: float = 0.5, ignore_index: int = 255) -> Image.Image:
    """The image under the colours of its label map, with the borders of the regions drawn in full colour.

    Args:
        image: PIL image or (H, W, 3) uint8 array.
        label_map: (H, W) of the image's size.
        alpha: opacity of the colours, [0, 1].

    Raises:
        ValueError: if sizes differ or an id has no colour.
    """
    image = as_image(image)
    ids = _as_ids(label_map, len(palette), ignore_index)
    _check_size(image, ids, "label map")
    pixels, colors = np.asarray(image), np.array([*palette, (0, 0, 0)], np.float32)
    result = pixels * np.float32(1 - alpha)
    result += (colors * alpha)[ids]
    result = (result + 0.5).astype(np.uint8)
    border = np.zeros(ids.shape, bool)
    border[:-1] |= ids[:-1] != ids[1:]
    border[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    result[border] = colors[ids[border]]
    void = ids == len(palette)
    result[void] = pixels[void]
    return Image.fromarray(result)


def label_png(label_map, palette: Palette, ignore_index: int = 255) -> Image.Image:
    """A label map as a palette image (mode "P"): pixel values are the ids, void is 255; to be saved as PNG.

    Raises:
        ValueError: if an id has no colour, or there are more than 255 classes.
    """
    if len(palette) > 255:
        raise ValueError(f"{len(palette)} classes do not fit into an 8-bit mask (at most 255); save 16 bits")
    ids = _as_ids(label_map, len(palette), ignore_index)
    ids[ids == len(palette)] = 255
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(palette)] = palette
    image = Image.fromarray(ids.astype(np.uint8))
    image.putpalette(colors.tobytes())  # turns mode "L" into "P"
    return image


def legend(
    names: Sequence[str], palette: Palette, present: Sequence[int] | None = None, width: int = 640, void: bool = False
) -> Image.Image:
    """Names beside their colours, in as many columns as `width` pixels hold.

    Args:
        names: K class names.
        present: ids to show, all by default.
        void: adds an entry for void pixels.
    """
    font = text_font(TEXT_SIZE)
    entries = [(names[i], tuple(palette[i])) for i in (range(len(names)) if present is None else present)]
    entries += [("void", None)] * void
    swatch, row = TEXT_SIZE, round(1.7 * TEXT_SIZE)
    cell = max([font.getlength(name) for name, _ in entries], default=0) + swatch + 2 * GAP
    columns = max(1, min(len(entries), int((width - GAP) // cell)))
    picture = Image.new("RGB", (width, row * -(-len(entries) // columns) + GAP), PAPER)
    draw = ImageDraw.Draw(picture)
    for i, (name, color) in enumerate(entries):
        x, y = round(GAP + i % columns * (width - GAP) / columns), GAP // 2 + i // columns * row
        box = (x, y + (row - swatch) // 2, x + swatch, y + (row + swatch) // 2)
        if color is None:
            picture.paste(Image.fromarray(_hatching(swatch, swatch)), box[:2])
        else:
            draw.rounded_rectangle(box, radius=3, fill=color)
        draw.text((x + swatch + GAP // 2, y + row / 2), name, fill=INK, font=font, anchor="lm")
    return picture


def comparison(
    images: Sequence,
    labels: Sequence,
    predictions: Sequence,
    names: Sequence[str],
    palette: Palette,
    ignore_index: int = 255,
    titles: Sequence[str] = ("image", "truth", "prediction"),
    panel_width: int = 300,
) -> Image.Image:
    """A row for each image: image, truth and prediction, with titles above and the legend of what occurs below.

    Args:
        images: PIL images or (H, W, 3) uint8 arrays, of any sizes; drawn `panel_width` pixels wide.
        labels, predictions: (H, W) maps of the images' sizes. Void pixels of the truth are hatched.
        names: K class names.

    Raises:
        ValueError: if numbers or sizes differ, or an id has no colour.
    """
    if not len(images) == len(labels) == len(predictions) > 0:
        raise ValueError(f"{len(images)} images, {len(labels)} labels, {len(predictions)} predictions; give one each")
    rows, seen = [], set()
    for image, *maps in zip(images, labels, predictions, strict=True):
        image = as_image(image)
        size = (panel_width, max(1, round(image.height * panel_width / image.width)))
        panels = [image.resize(size, Image.Resampling.LANCZOS)]
        for label_map, what in zip(maps, ("label", "prediction"), strict=True):
            ids = _as_ids(label_map, len(palette), ignore_index)
            _check_size(image, ids, what)
            seen.update(np.unique(ids).tolist())
            panels.append(_panel(ids, palette, size))
        rows.append(panels)

    title_height = round(2.2 * TEXT_SIZE)
    width = GAP + len(titles) * (panel_width + GAP)
    present = sorted(seen - {len(palette)})
    key = legend(names, palette, present, width, void=len(palette) in seen)
    height = title_height + sum(row[0].height + GAP for row in rows) + key.height
    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    for column, title in enumerate(titles):
        x = GAP + column * (panel_width + GAP) + panel_width / 2
        draw.text((x, title_height / 2), title, fill=FAINT, font=text_font(TEXT_SIZE + 2), anchor="mm")
    y = title_height
    for row in rows:
        for column, panel in enumerate(row):
            picture.paste(panel, (GAP + column * (panel_width + GAP), y))
        y += row[0].height + GAP
    picture.paste(key, (0, y - GAP // 2))
    return picture


def _panel(ids: np.ndarray, palette: Palette, size: tuple[int, int]) -> Image.Image:
    """A colour map of `size` (width, height) with void hatched at the panel's own scale."""
    ids = np.asarray(Image.fromarray(ids.astype(np.int32)).resize(size, Image.Resampling.NEAREST))
    colors = np.array([*palette, (0, 0, 0)], np.uint8)[ids]
    return Image.fromarray(np.where((ids == len(palette))[..., None], _hatching(*size), colors))


def _hatching(width: int, height: int) -> np.ndarray:
    """Diagonal stripes, (height, width, 3) uint8."""
    diagonal = (np.arange(height)[:, None] + np.arange(width)) // 3 % 2
    return np.array(HATCH, np.uint8)[diagonal]


def _as_ids(label_map, num_classes: int, ignore_index: int) -> np.ndarray:
    """(H, W) int64 copy with void as `num_classes`."""
    ids = np.asarray(label_map.cpu() if hasattr(label_map, "cpu") else label_map).astype(np.int64)
    if ids.ndim != 2:
        raise ValueError(f"label map of shape {ids.shape}; give one (H, W) map of class ids")
    void = ids == ignore_index
    wrong = ids[((ids < 0) | (ids >= num_classes)) & ~void]
    if wrong.size:
        raise ValueError(
            f"label map has the id {wrong[0]}, but the palette has colours for 0 to {num_classes - 1} and void is "
            f"{ignore_index}; give a colour for every class"
        )
    ids[void] = num_classes
    return ids


def as_image(image) -> Image.Image:
    """In RGB; of a tensor (C, H, W) the first three channels, or the first, and if deep then stretched to its range."""
    if hasattr(image, "permute"):
        pixels = np.asarray(image[: 3 if len(image) >= 3 else 1].permute(1, 2, 0))
        if pixels.dtype != np.uint8:
            low, high = pixels.min(), pixels.max()
            pixels = ((pixels - low) * (255 / max(high - low, 1e-6))).round().astype(np.uint8)
        image = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    return (image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))).convert("RGB")


def _check_size(image: Image.Image, ids: np.ndarray, what: str) -> None:
    if ids.shape != (image.height, image.width):
        raise ValueError(
            f"{what} is of size {ids.shape[1]}x{ids.shape[0]}, but its image is {image.width}x{image.height}; "
            "resize the map (nearest neighbour) to the image"
        )


@cache
def text_font(size: int):
    return ImageFont.load_default(size)
