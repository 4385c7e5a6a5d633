"""What is good and what is wrong with a model, on a page: one HTML file without anything outside of it.

Everything on it was measured: scores of classes, boundaries and sizes; how far confidences are to be believed; which
class is taken for which, with typical examples; the worst images.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from . import html_page as html
from .calibration import Calibration, Reliability
from .data.labels import Labels
from .error_analysis import SIZES
from .evaluation import autocast
from .inference import segment
from .metrics import per_cent
from .typical_errors import typical_errors
from .visualization import overlay, reliability_picture
from .visualization.label_maps import as_image


SHOWN_CONFUSIONS = 4  # with typical errors
SHOWN_WIDTH = 480  # pixels of a picture in the page
WRONG = (255, 0, 160)


def write_report(
    path: str | Path,
    model,
    processor,
    dataset: Dataset,
    labels: Labels,
    results: dict,
    worst: Sequence[int],
    calibration: Calibration,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> None:
    """Writes the page.

    Args:
        labels: of the data.
        results: of `hf_segtx.evaluation.score`, with its details, and "model" and "data", what they are called.
        worst: images to show, the worst first.
        calibration: of the same model and data.
        scales, flip: that the results were measured with.
    """
    low, high = results["mean_iou_interval"]
    interval = "" if low is None or high is None else f" (95 % interval {per_cent(low)} to {per_cent(high)})"
    parts = [
        html.paragraph(
            f"Mean IoU {per_cent(results['mean_iou'])} %{interval} on {results['images']} images of {results['data']}; "
            f"{results['precision']}, {results['protocol']} Fingerprint of the data: {results['data_fingerprint']}."
        ),
        html.heading("Classes, boundaries, sizes of objects"),
        *_class_parts(results),
        html.heading("Confidence"),
        *_calibration_parts(calibration),
        html.heading("What is taken for what"),
    ]
    with autocast(model, results["precision"]):
        parts += _confusion_parts(model, processor, dataset, labels, results["confusions"])
        if worst:
            shown = _worst_parts(model, processor, dataset, labels, results, worst, scales=scales, flip=flip)
            parts += [html.heading("Worst images"), *shown]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(html.page(f"Report on {results['model']}", parts), encoding="utf-8")


def _class_parts(results: dict) -> list[str]:
    keys = ["boundary_iou", *(f"{size}_iou" for size in SIZES)]

    def share(value: float | None) -> float | None:
        return None if value is None else 100 * value

    rows = [
        (name, share(scores["iou"]), html.bar(scores["iou"]), *(share(scores[key]) for key in ("accuracy", *keys)))
        for name, scores in results["classes"].items()
    ]
    means = [results["mean_accuracy"], results["mean_boundary_iou"]]
    means += [results["sizes"][size]["mean_iou"] for size in SIZES]
    rows.append(("mean", share(results["mean_iou"]), html.bar(results["mean_iou"]), *map(share, means)))
    rows.append(("objects", "", "", "", "", *(results["sizes"][size]["objects"] for size in SIZES)))
    header = ["class", "IoU %", "", "accuracy %", "boundary IoU %", *(f"{size} IoU %" for size in SIZES)]
    words = "Boundary IoU counts errors near contours only. Small objects have fewer than 32x32 pixels, large ones at "
    return [html.table(header, rows), html.paragraph(f"{words}least 96x96.")]


def _calibration_parts(calibration: Calibration) -> list[str]:
    before, after = calibration.before, calibration.after
    words = (
        f"The model is sure of its pixels to {per_cent(before.mean_confidence)} % in the mean, and right in "
        f"{per_cent(before.accuracy)} %. The expected calibration error, how far confidence and truth are apart, is "
        f"{per_cent(before.error)} %; with a temperature fitted to half of the images it is {per_cent(after.error)} % "
        f"on the other half. Fitted to all of them the temperature is {calibration.temperature:.3f}. Label maps do not "
        "depend on it."
    )
    curves = {"as it is": _curve(before), "with a fitted temperature": _curve(after)}
    return [html.paragraph(words), html.picture(reliability_picture(curves), "share of right pixels over confidence")]


def _curve(reliability: Reliability) -> list[tuple[float, float, float]]:
    """(confidence, share that is right, share of all pixels) of each bin with pixels, in per cent."""
    pixels = reliability.pixels
    kept = pixels > 0
    columns = reliability.confidence[kept] / pixels[kept], reliability.hits[kept] / pixels[kept]
    return (100 * np.stack([*columns, pixels[kept] / pixels.sum()], 1)).tolist()


def _confusion_parts(model, processor, dataset: Dataset, labels: Labels, confusions: list[dict]) -> list[str]:
    rows = [
        (pair["truth"], pair["prediction"], 100 * pair["share_of_class"], 100 * pair["share_of_errors"],
         html.bar(pair["share_of_errors"]))
        for pair in confusions
    ]  # fmt: skip
    parts: list[str] = [html.table(["truth", "prediction", "% of the class", "% of all errors", ""], rows)]
    if not hasattr(model, "backbone"):  # exported, or another package's
        return parts
    ids, shown = list(labels.id2label.values()), confusions[:SHOWN_CONFUSIONS]
    pairs = [(ids.index(pair["truth"]), ids.index(pair["prediction"])) for pair in shown]
    for pair, errors in zip(shown, typical_errors(model, processor, dataset, pairs), strict=True):
        if errors:
            parts.append(html.paragraph(f"Typical: {pair['truth']} taken for {pair['prediction']}"))
            pictures = (
                (
                    error.picture,
                    f"stands for {error.group} of {sum(other.group for other in errors)}; {Path(error.name).name}",
                )
                for error in errors
            )
            parts.append(html.figures(pictures, small=True))
    return parts


def _worst_parts(model, processor, dataset, labels: Labels, results: dict, worst: Sequence[int], **views) -> list[str]:
    parts: list[str] = []
    seen: set[int] = set()
    for index, score in zip(worst, results["worst_images"], strict=True):
        item = dataset[index]
        image, truth = as_image(item["image"]), np.asarray(item["label"])
        label_map = segment(model, processor, [item["image"]], **views)[0].label_map.cpu().numpy()
        void = truth == labels.ignore_index
        seen |= set(np.unique(label_map).tolist()) | set(np.unique(truth[~void]).tolist())
        wrong, name = np.where((truth != label_map) & ~void, 0, 1), Path(score["name"]).name
        pictures = [
            (overlay(image, truth, labels.colors, ignore_index=labels.ignore_index), f"truth; {name}"),
            (overlay(image, label_map, labels.colors, ignore_index=labels.ignore_index),
             f"prediction, mean IoU {per_cent(score['mean_iou'])} %"),
            (overlay(image, wrong, [WRONG], 0.7, ignore_index=1), f"wrong: {per_cent(1 - wrong[~void].mean())} %"),
        ]  # fmt: skip
        for picture, _ in pictures:
            picture.thumbnail((SHOWN_WIDTH, SHOWN_WIDTH), Image.Resampling.LANCZOS)
        parts.append(html.figures(pictures))
    names, colors = list(labels.id2label.values()), labels.colors
    return [html.color_key([names[index] for index in sorted(seen)], [colors[index] for index in sorted(seen)]), *parts]
