"""What a transformer looks at, and what a model learnt, as pictures."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from PIL import Image, ImageDraw

from .curves import axes
from .label_maps import FAINT, GAP, INK, PAPER, TEXT_SIZE, Palette, as_image, palette, text_font


# Black through violet and orange to pale yellow, evenly brighter: a map of weights can be read in grey, too.
HEAT = ((0, 0, 4), (59, 15, 112), (140, 41, 129), (222, 73, 104), (254, 159, 109), (252, 253, 191))


def patch_attention(weights, patch: tuple[int, int], grid_size: tuple[int, int]) -> np.ndarray:
    """What one patch attends to, in each head of a layer; Segmenter, Figure 6.

    Args:
        weights: (heads, P + N, P + N) attention weights of one image, P prefix tokens before N = h * w patches.
        patch: (row, column) of the patch in the grid.
        grid_size: (h, w) in patches.

    Returns:
        (heads, h, w) weights; what the prefix tokens get is missing from their sum.

    Raises:
        ValueError: if the patch lies outside the grid, or there are fewer tokens than patches.
    """
    weights, prefix = _as_weights(weights, grid_size)
    row, column = patch
    if not (0 <= row < grid_size[0] and 0 <= column < grid_size[1]):
        raise ValueError(
            f"patch ({row}, {column}) is outside the grid; rows go from 0 to {grid_size[0] - 1}, columns from 0 to "
            f"{grid_size[1] - 1}"
        )
    return weights[:, prefix + row * grid_size[1] + column, prefix:].reshape(-1, *grid_size)


def mean_attention_distance(weights, grid_size: tuple[int, int], patch_size: int) -> np.ndarray:
    """How far each head of a layer looks; Segmenter, Figure 7, after ViT (arXiv 2010.11929), Figure 7.

    The distance from a patch to each other, weighted by attention among patches (prefix tokens left out), mean over the
    patches.

    Args:
        weights: (heads, P + N, P + N) attention weights of one image, P prefix tokens before N = h * w patches.
        grid_size: (h, w) in patches.
        patch_size: side of a patch in pixels.

    Returns:
        (heads,) in pixels.

    Raises:
        ValueError: if there are fewer tokens than patches.
    """
    weights, prefix = _as_weights(weights, grid_size)
    places = np.stack(np.mgrid[: grid_size[0], : grid_size[1]], -1).reshape(-1, 2).astype(np.float32) * patch_size
    distances = np.sqrt(np.square(places[:, None] - places).sum(-1))  # (N, N)
    weights = weights[:, prefix:, prefix:]
    return ((weights * distances).sum(-1) / weights.sum(-1)).mean(-1)


def class_embedding_coordinates(embeddings) -> np.ndarray:
    """Class embeddings in the plane in which they differ most, by singular value decomposition; Segmenter, Figure 8.

    Their mean, which no class differs in, is taken out first.

    Args:
        embeddings: (K, C), of at least two classes.

    Returns:
        (K, 2); the sign of each axis is that which makes its largest value positive.

    Raises:
        ValueError: if there are fewer than two classes or channels.
    """
    embeddings = np.asarray(embeddings.detach().cpu() if hasattr(embeddings, "cpu") else embeddings, np.float64)
    if embeddings.ndim != 2 or min(embeddings.shape) < 2:
        raise ValueError(f"embeddings of shape {embeddings.shape}; give (K, C), of at least two classes and channels")
    left, values, _ = np.linalg.svd(embeddings - embeddings.mean(0), full_matrices=False)
    coordinates = left[:, :2] * values[:2]
    largest = np.abs(coordinates).argmax(0)
    return coordinates * np.where(coordinates[largest, [0, 1]] < 0, -1, 1)


def attention_picture(
    image,
    maps: Sequence,
    patch: tuple[int, int],
    layers: Sequence[int] | None = None,
    grid_size: tuple[int, int] | None = None,
    panel_width: int = 120,
) -> Image.Image:
    """The image with the patch framed, then a row for each layer with the map of each head.

    Each map is drawn from black (0) to pale yellow (its largest weight).

    Args:
        image: PIL image or (H, W, 3) uint8 array that the maps cover.
        maps: (heads, h, w) of each layer, from `patch_attention`; layers may have other heads and other (h, w).
        patch: (row, column) in the grid.
        layers: the number of each layer, counted from 0; by default 0, 1, ...
        grid_size: of the patch; by default that of the first map.
    """
    image, layers = as_image(image), list(range(len(maps)) if layers is None else layers)
    grid_size = grid_size or np.shape(maps[0])[1:]
    panel = (panel_width, max(1, round(image.height * panel_width / image.width)))
    large = (2 * panel_width, 2 * panel[1])
    margin, title_height = round(5.5 * TEXT_SIZE), round(2.2 * TEXT_SIZE)
    heads = max(len(layer) for layer in maps)
    width = max(margin + heads * (panel[0] + GAP), margin + large[0] + GAP)
    picture = Image.new("RGB", (width, large[1] + 2 * title_height + len(maps) * (panel[1] + GAP)), PAPER)
    draw, font = ImageDraw.Draw(picture), text_font(TEXT_SIZE)

    sides = [size / count for size, count in zip(large, grid_size[::-1], strict=True)]
    picture.paste(image.resize(large, Image.Resampling.LANCZOS), (margin, title_height // 2))
    x, y = round(margin + patch[1] * sides[0]), round(title_height // 2 + patch[0] * sides[1])
    box = (x - 2, y - 2, x + round(sides[0]) + 2, y + round(sides[1]) + 2)
    draw.rectangle(box, outline=(230, 0, 0), width=2)
    top = large[1] + 2 * title_height
    for head in range(heads):
        x = margin + head * (panel[0] + GAP) + panel[0] / 2
        draw.text((x, top - title_height / 2), f"head {head}", fill=FAINT, font=font, anchor="mm")
    for row, (layer, layer_maps) in enumerate(zip(layers, maps, strict=True)):
        y = top + row * (panel[1] + GAP)
        draw.text((GAP, y + panel[1] / 2), f"layer {layer}", fill=FAINT, font=font, anchor="lm")
        for head, weights in enumerate(np.asarray(layer_maps)):
            colors = Image.fromarray(heat_colors(weights / max(weights.max(), 1e-12)))
            picture.paste(colors.resize(panel, Image.Resampling.NEAREST), (margin + head * (panel[0] + GAP), y))
    return picture


def distance_picture(distances, longest: float | None = None) -> Image.Image:
    """Mean attention distances over depth, a dot a head.

    Args:
        distances: (layers, heads) in pixels, from `mean_attention_distance`.
        longest: end of the distance axis in pixels; by default a little over the largest.
    """
    distances = np.asarray(distances)
    end = float(longest or 1.05 * distances.max())
    picture, draw, place = axes(
        (720, 480), (-0.5, len(distances) - 0.5), (0, end), "layer", "mean attention distance (pixels)", ticks=(40, 8)
    )
    for layer, heads in enumerate(distances):
        for distance in heads:
            x, y = place(layer, float(distance))
            draw.ellipse((x - 8, y - 8, x + 8, y + 8), fill=palette(1)[0], outline=PAPER, width=2)
    return picture.resize((720, 480), Image.Resampling.LANCZOS)


def embedding_picture(coordinates, names: Sequence[str], palette: Palette) -> Image.Image:
    """Classes in the plane of `class_embedding_coordinates`, a dot and its name each.

    A name that would cover others is set further off, with a line to its dot; where that fails it is left out.
    """
    coordinates = np.asarray(coordinates)
    low, high = coordinates.min(0), coordinates.max(0)
    room = 0.08 * np.maximum(high - low, 1e-12)
    limits = np.stack([low - room, high + room], -1)
    picture, draw, place = axes((900, 700), limits[0], limits[1], "first direction", "second direction")
    dots = [place(*point) for point in coordinates.tolist()]
    taken = [(x - 10, y - 10, x + 10, y + 10) for x, y in dots]
    font = text_font(2 * TEXT_SIZE - 4)
    for (x, y), color in zip(dots, palette, strict=False):
        draw.ellipse((x - 10, y - 10, x + 10, y + 10), fill=tuple(color), outline=PAPER, width=2)
    directions = ((1, 0, "lm"), (-1, 0, "rm"), (0, -1, "mb"), (0, 1, "mt"))
    directions += ((1, -1, "lb"), (1, 1, "lt"), (-1, -1, "rb"), (-1, 1, "rt"))
    for (x, y), name in zip(dots, names, strict=True):
        for away, (right, down, anchor) in product((14, 40, 80, 120), directions):
            at = (x + away * right, y + away * down)
            box = draw.textbbox(at, name, font=font, anchor=anchor)
            free = all(box[2] < b[0] or b[2] < box[0] or box[3] < b[1] or b[3] < box[1] for b in taken)
            if free and box[0] >= 0 and box[2] <= picture.width:
                if away > 14:
                    draw.line((x, y, *at), fill=FAINT)
                draw.text(at, name, fill=INK, font=font, anchor=anchor)
                taken.append(box)
                break
    return picture.resize((900, 700), Image.Resampling.LANCZOS)


def region_picture(
    image, region_maps, relation, names: Sequence[str], classes: Sequence[int], panel_width: int = 240
) -> Image.Image:
    """OCRNet's object regions: for each class its soft region (Eq. 4) and each pixel's relation to it (Eq. 5).

    A region map is drawn from black (0) to pale yellow (its largest share), relations from black (0) to pale yellow
    (the largest of all classes).

    Args:
        image: PIL image or (H, W, 3) uint8 array that the maps cover.
        region_maps, relation: (K, h, w) `region_maps` and `pixel_region_relation` of one image of the output.
        names: of the K classes.
        classes: ids of those that are drawn.
    """
    region_maps, relation = (
        np.asarray(values.float().cpu() if hasattr(values, "cpu") else values) for values in (region_maps, relation)
    )
    image = as_image(image)
    panel = (panel_width, max(1, round(image.height * panel_width / image.width)))
    title_height = round(1.8 * TEXT_SIZE)
    columns = 2 if len(classes) > 1 else 1  # of classes, with two panels each
    block = (2 * (panel[0] + GAP), panel[1] + title_height + GAP)
    top = panel[1] + 2 * GAP
    rows = -(-len(classes) // columns)
    picture = Image.new("RGB", (columns * block[0] + GAP, top + rows * block[1]), PAPER)
    draw, font = ImageDraw.Draw(picture), text_font(TEXT_SIZE)
    picture.paste(image.resize(panel, Image.Resampling.LANCZOS), (GAP, GAP))
    lines = ("each class: where its region is (left),", "how much each pixel is related to it (right)")
    for number, line in enumerate(lines):
        draw.text((panel[0] + 2 * GAP, GAP + number * 1.4 * TEXT_SIZE), line, fill=FAINT, font=font)
    for number, index in enumerate(classes):
        x, y = GAP + number % columns * block[0], top + number // columns * block[1]
        draw.text((x, y), names[index], fill=INK, font=font)
        region, related = region_maps[index] / region_maps[index].max(), relation[index] / relation.max()
        for side, values in enumerate((region, related)):
            colors = Image.fromarray(heat_colors(values)).resize(panel, Image.Resampling.BILINEAR)
            picture.paste(colors, (x + side * (panel[0] + GAP), y + title_height))
    return picture


def heat_panels(
    image, maps: Sequence, titles: Sequence[str], opacity: float = 1, panel_width: int = 240
) -> Image.Image:
    """The image, and beside it a panel for each map, from black (0) to pale yellow (its largest value).

    Args:
        image: PIL image or (H, W, 3) uint8 array that the maps cover.
        maps: (h, w) arrays of numbers from 0 on, of any sizes.
        opacity: of the maps over the image; 1 hides it.
    """
    image = as_image(image)
    panel = (panel_width, max(1, round(image.height * panel_width / image.width)))
    small = image.resize(panel, Image.Resampling.LANCZOS)
    columns, title_height = min(4, len(maps) + 1), round(1.8 * TEXT_SIZE)
    rows = -(-(len(maps) + 1) // columns)
    block = (panel[0] + GAP, panel[1] + title_height + GAP)
    picture = Image.new("RGB", (columns * block[0] + GAP, rows * block[1] + GAP), PAPER)
    draw, font = ImageDraw.Draw(picture), text_font(TEXT_SIZE)
    for number, (title, values) in enumerate(zip(["the image", *titles], [None, *maps], strict=True)):
        x, y = GAP + number % columns * block[0], GAP + number // columns * block[1]
        draw.text((x, y), title, fill=INK, font=font)
        shown = small
        if values is not None:
            values = np.asarray(values, np.float64)
            heat = Image.fromarray(heat_colors(values / max(values.max(), 1e-30)))
            heat = heat.resize(panel, Image.Resampling.BILINEAR)
            shown = Image.blend(small, heat, opacity)
        picture.paste(shown, (x, y + title_height))
    return picture


def _as_weights(weights, grid_size: tuple[int, int]) -> tuple[np.ndarray, int]:
    """Attention weights as a float32 array, and the number of prefix tokens."""
    weights = np.asarray(weights.detach().float().cpu() if hasattr(weights, "cpu") else weights, np.float32)
    prefix = weights.shape[-1] - grid_size[0] * grid_size[1]
    if weights.ndim != 3 or prefix < 0:
        raise ValueError(
            f"attention weights of shape {weights.shape} for a grid of {grid_size[0]}x{grid_size[1]} patches; give "
            "(heads, tokens, tokens) of one image"
        )
    return weights, prefix


def heat_colors(values: np.ndarray) -> np.ndarray:
    """[0, 1] (H, W) -> colours (H, W, 3) uint8, dark to bright."""
    stops = np.linspace(0, 1, len(HEAT))
    channels = [np.interp(values.astype(np.float32), stops, channel) for channel in zip(*HEAT, strict=True)]
    return np.stack(channels, -1).round().astype(np.uint8)
