"""Pictures of label maps: colours, overlays, legends, and image, truth and prediction side by side; PIL and numpy only.

Shapes: (H, W) label map of class ids, any integer type; `palette`: one (red, green, blue) of 0-255 for each of K
classes. Void pixels (`ignore_index`) are black in colour maps, hatched in comparisons, and left as they are in
overlays.
"""

from collections.abc import Sequence
from functools import cache
from itertools import product

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
    image = _as_image(image)
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
    font = _font(TEXT_SIZE)
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
        image = _as_image(image)
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
        draw.text((x, title_height / 2), title, fill=FAINT, font=_font(TEXT_SIZE + 2), anchor="mm")
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


def _as_image(image) -> Image.Image:
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
def _font(size: int):
    return ImageFont.load_default(size)


# ------------------------------------------------------------------- what a Vision Transformer looks at, what it learnt

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
    image, maps: Sequence, patch: tuple[int, int], layers: Sequence[int] | None = None, panel_width: int = 120
) -> Image.Image:
    """The image with the patch framed, then a row for each layer with the map of each head.

    Each map is drawn from black (0) to pale yellow (its largest weight).

    Args:
        image: PIL image or (H, W, 3) uint8 array that the maps cover.
        maps: (heads, h, w) of each layer, from `patch_attention`.
        patch: (row, column) in the grid.
        layers: the number of each layer, counted from 0; by default 0, 1, ...
    """
    image, layers = _as_image(image), list(range(len(maps)) if layers is None else layers)
    grid_size = np.shape(maps[0])[1:]
    panel = (panel_width, max(1, round(image.height * panel_width / image.width)))
    large = (2 * panel_width, 2 * panel[1])
    margin, title_height = round(5.5 * TEXT_SIZE), round(2.2 * TEXT_SIZE)
    heads = max(len(layer) for layer in maps)
    width = max(margin + heads * (panel[0] + GAP), margin + large[0] + GAP)
    picture = Image.new("RGB", (width, large[1] + 2 * title_height + len(maps) * (panel[1] + GAP)), PAPER)
    draw, font = ImageDraw.Draw(picture), _font(TEXT_SIZE)

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
            colors = Image.fromarray(_heat(weights / max(weights.max(), 1e-12)))
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
    picture, draw, place = _axes(
        (720, 480), (-0.5, len(distances) - 0.5), (0, end), "layer", "mean attention distance (pixels)", ticks=(40, 8)
    )
    for layer, heads in enumerate(distances):
        for distance in heads:
            x, y = place(layer, float(distance))
            draw.ellipse((x - 8, y - 8, x + 8, y + 8), fill=palette(1)[0], outline=PAPER, width=2)
    return picture.resize((720, 480), Image.Resampling.LANCZOS)


def training_curves(evaluations: Sequence[dict], losses: Sequence[dict] = ()) -> Image.Image:
    """Scores over the steps of training, and beside them the loss if there is one.

    Args:
        evaluations: {"step", "mean_iou", "mean_accuracy", "overall_accuracy"} each, scores of [0, 1]; further keys and
            missing scores are passed over.
        losses: {"step", "loss"} each. The line is their running mean over a fiftieth of the training.

    Raises:
        ValueError: if there is nothing to draw.
    """
    names = {"mean_iou": "mean IoU", "mean_accuracy": "mean accuracy", "overall_accuracy": "overall accuracy"}
    curves = {
        name: [(entry["step"], 100 * entry[key]) for entry in evaluations if entry.get(key) is not None]
        for key, name in names.items()
    }
    plots = [("score %", curves)]
    if losses:
        window = max(1, len(losses) // 50)
        values = np.convolve([entry["loss"] for entry in losses], np.full(window, 1 / window), mode="valid")
        steps = [entry["step"] for entry in losses[window - 1 :]]
        plots.insert(0, ("loss", {"loss": list(zip(steps, values.tolist(), strict=True))}))
    plots = [(title, {name: curve for name, curve in curves.items() if curve}) for title, curves in plots]
    plots = [(title, curves) for title, curves in plots if curves]
    if not plots:
        raise ValueError("no evaluations and no losses; give at least one of either")
    size = (560, 400)
    last = max(step for _, curves in plots for curve in curves.values() for step, _ in curve)
    picture = Image.new("RGB", (len(plots) * size[0], size[1]), PAPER)
    for column, (title, curves) in enumerate(plots):
        highest = 100 if title == "score %" else 1.05 * max(value for _, value in curves["loss"])
        plot, draw, place = _axes(size, (0, last), (0, max(highest, 1e-9)), "step", title, ticks=(6, 8))
        for curve, color in zip(curves.values(), palette(len(curves)), strict=True):
            points = [place(*point) for point in curve]
            draw.line(points, fill=color, width=5, joint="curve")
            if title == "score %":
                for x, y in points:
                    draw.ellipse((x - 8, y - 8, x + 8, y + 8), fill=color, outline=PAPER, width=2)
        plot = plot.resize(size, Image.Resampling.LANCZOS)
        if len(curves) > 1:
            key = legend(list(curves), palette(len(curves)), width=170)
            plot.paste(key, (size[0] - 190, size[1] - 65 - key.height))
        picture.paste(plot, (column * size[0], 0))
    return picture


def embedding_picture(coordinates, names: Sequence[str], palette: Palette) -> Image.Image:
    """Classes in the plane of `class_embedding_coordinates`, a dot and its name each.

    A name that would cover others is set further off, with a line to its dot; where that fails it is left out.
    """
    coordinates = np.asarray(coordinates)
    low, high = coordinates.min(0), coordinates.max(0)
    room = 0.08 * np.maximum(high - low, 1e-12)
    limits = np.stack([low - room, high + room], -1)
    picture, draw, place = _axes((900, 700), limits[0], limits[1], "first direction", "second direction")
    dots = [place(*point) for point in coordinates.tolist()]
    taken = [(x - 10, y - 10, x + 10, y + 10) for x, y in dots]
    font = _font(2 * TEXT_SIZE - 4)
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
    image = _as_image(image)
    panel = (panel_width, max(1, round(image.height * panel_width / image.width)))
    title_height = round(1.8 * TEXT_SIZE)
    columns = 2 if len(classes) > 1 else 1  # of classes, with two panels each
    block = (2 * (panel[0] + GAP), panel[1] + title_height + GAP)
    top = panel[1] + 2 * GAP
    rows = -(-len(classes) // columns)
    picture = Image.new("RGB", (columns * block[0] + GAP, top + rows * block[1]), PAPER)
    draw, font = ImageDraw.Draw(picture), _font(TEXT_SIZE)
    picture.paste(image.resize(panel, Image.Resampling.LANCZOS), (GAP, GAP))
    lines = ("each class: where its region is (left),", "how much each pixel is related to it (right)")
    for number, line in enumerate(lines):
        draw.text((panel[0] + 2 * GAP, GAP + number * 1.4 * TEXT_SIZE), line, fill=FAINT, font=font)
    for number, index in enumerate(classes):
        x, y = GAP + number % columns * block[0], top + number // columns * block[1]
        draw.text((x, y), names[index], fill=INK, font=font)
        region, related = region_maps[index] / region_maps[index].max(), relation[index] / relation.max()
        for side, values in enumerate((region, related)):
            colors = Image.fromarray(_heat(values)).resize(panel, Image.Resampling.BILINEAR)
            picture.paste(colors, (x + side * (panel[0] + GAP), y + title_height))
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


def _heat(values: np.ndarray) -> np.ndarray:
    """[0, 1] (H, W) -> colours (H, W, 3) uint8."""
    stops = np.linspace(0, 1, len(HEAT))
    channels = [np.interp(values, stops, channel) for channel in zip(*HEAT, strict=True)]
    return np.stack(channels, -1).round().astype(np.uint8)


def _axes(size, x_limits, y_limits, x_title: str, y_title: str, ticks: tuple[int, int] = (0, 0)):
    """An empty plot of twice the size, for smooth dots; its draw object, and the function (x, y) -> pixels.

    Args:
        ticks: how many numbers there may be at most along x and y.
    """
    width, height = 2 * size[0], 2 * size[1]
    left, right, top, bottom = 130, width - 30, 30, height - 110
    picture = Image.new("RGB", (width, height), PAPER)
    draw, font = ImageDraw.Draw(picture), _font(2 * TEXT_SIZE)

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_limits[0]) / (x_limits[1] - x_limits[0]), (y - y_limits[0]) / (y_limits[1] - y_limits[0])
        return left + across * (right - left), bottom - up * (bottom - top)

    draw.rectangle((left, top, right, bottom), outline=FAINT, width=2)
    draw.text(((left + right) / 2, height - 12), x_title, fill=INK, font=font, anchor="mb")
    turned = Image.new("RGB", (round(font.getlength(y_title)), 3 * TEXT_SIZE), PAPER)
    ImageDraw.Draw(turned).text((0, 0), y_title, fill=INK, font=font)
    turned = turned.rotate(90, expand=True)
    picture.paste(turned, (4, round((top + bottom - turned.height) / 2)))
    for x in _ticks(*x_limits, ticks[0]):
        draw.text((place(x, y_limits[0])[0], bottom + 10), f"{x:g}", fill=FAINT, font=font, anchor="mt")
    for y in _ticks(*y_limits, ticks[1]):
        level = place(x_limits[0], y)[1]
        draw.text((left - 10, level), f"{y:g}", fill=FAINT, font=font, anchor="rm")
        draw.line((left, level, right, level), fill=(225, 228, 232), width=1)
    return picture, draw, place


def _ticks(low: float, high: float, count: int) -> list[float]:
    """At most `count` multiples of 1, 2 or 5 times a power of ten within the limits."""
    if count == 0:
        return []
    step = 10.0 ** np.floor(np.log10((high - low) / count))
    step = next(s for s in (step, 2 * step, 5 * step, 10 * step) if (high - low) / s < count)
    return [step * i for i in range(int(np.ceil(low / step - 1e-9)), int(high / step + 1e-9) + 1)]
