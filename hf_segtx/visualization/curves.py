"""Curves of a training run, and the axes that they are drawn in."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from .label_maps import FAINT, INK, PAPER, TEXT_SIZE, legend, palette, text_font


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
        plot, draw, place = axes(size, (0, last), (0, max(highest, 1e-9)), "step", title, ticks=(6, 8))
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


def reliability_picture(curves: Mapping[str, Sequence[tuple[float, float, float]]]) -> Image.Image:
    """Which share of the pixels is right at each confidence; of a calibrated model it is the diagonal.

    Args:
        curves: {name: (confidence, share that is right, share of all pixels) of each bin, in per cent}; the larger the
            last, the larger the dot.
    """
    size, colors = (480, 480), palette(len(curves))
    picture, draw, place = axes(size, (0, 100), (0, 100), "confidence %", "right %", ticks=(6, 6))
    draw.line((*place(0, 0), *place(100, 100)), fill=FAINT, width=3)
    for curve, color in zip(curves.values(), colors, strict=True):
        points = [place(confidence, right) for confidence, right, _ in curve]
        draw.line(points, fill=color, width=5, joint="curve")
        for (x, y), (_, _, share) in zip(points, curve, strict=True):
            radius = 5 + 2.5 * share**0.5
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color, outline=PAPER, width=2)
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    key = legend(list(curves), colors, width=215)
    picture.paste(key, (80, 22))
    return picture


def axes(size, x_limits, y_limits, x_title: str, y_title: str, ticks: tuple[int, int] = (0, 0)):
    """An empty plot of twice the size, for smooth dots; its draw object, and the function (x, y) -> pixels.

    Args:
        ticks: how many numbers there may be at most along x and y.
    """
    width, height = 2 * size[0], 2 * size[1]
    left, right, top, bottom = 130, width - 30, 30, height - 110
    picture = Image.new("RGB", (width, height), PAPER)
    draw, font = ImageDraw.Draw(picture), text_font(2 * TEXT_SIZE)

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
