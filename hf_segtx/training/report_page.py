"""What a run that configured itself shows: warnings while it trains, and a page at its end.

    for text in warnings_of(evaluations, losses, class_scores, facts): print(text)
    write_page(folder / "report.html", ...)   # one file, pictures included

The page has the decisions and their reasons, curves, the scores of each class, the worst images, and the three things
that would help most. Each of these is a number measured in this run, with what to do about it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from .. import html_page as html
from ..data.dataset import evenly
from ..error_analysis import ImageScores, SizeIoU, confusion_pairs
from ..inference import evaluate, predict
from ..visualization import comparison
from .data_facts import DataFacts


REPORTED_IMAGES = 60  # of the validation images, evenly spread, that are looked at one by one
TRAINING_IMAGES = 24  # that are scored beside them
WORST_IMAGES = 4
FALL = 0.02  # of mean IoU, below the best, that counts as a fall


class Advice(NamedTuple):
    """Something that would help, and how much: an estimate of mean IoU in [0, 1], to put them in order."""

    gain: float
    text: str


@dataclass
class Findings:
    """What was measured of the final model.

    Attributes:
        class_iou: (K,) of the whole validation set, nan for classes without pixels.
        confusion: (K, K) pixels, rows truth.
        sizes: of `SizeIoU`, on the images that were looked at.
        training_iou: mean IoU on some training images.
        worst: (name, mean IoU) of the worst images, and their picture.
    """

    class_iou: np.ndarray
    confusion: np.ndarray
    sizes: dict
    training_iou: float
    worst: list[tuple[str, float]]
    picture: Image.Image | None


# ------------------------------------------------------------------------------------------------------------ warnings


def curves_part(evaluations: Sequence[dict], losses: Sequence[dict]) -> str | None:
    """A warning where the loss goes on falling while the score on the validation data has fallen twice, or more."""
    if len(evaluations) < 3 or len(losses) < 4:
        return None
    best = max(evaluations, key=lambda entry: entry["mean_iou"])
    after = [entry for entry in evaluations if entry["step"] > best["step"]]
    if len(after) < 2 or any(entry["mean_iou"] > best["mean_iou"] - FALL for entry in after[-2:]):
        return None
    before = [entry["loss"] for entry in losses if entry["step"] <= best["step"]]
    since = [entry["loss"] for entry in losses if entry["step"] > best["step"]]
    if not before or not since or np.mean(since[-5:]) >= np.mean(before[-5:]):
        return None
    return (
        f"training and validation part: the loss has fallen on, but mean IoU is {after[-1]['mean_iou']:.1%} after "
        f"{best['mean_iou']:.1%} at step {best['step']}. More images, pretrained weights, or fewer steps would help; "
        "the best model so far is kept"
    )


def classes_at_zero(class_iou: np.ndarray, step: int, total: int, facts: DataFacts) -> str | None:
    """A warning, from the middle of a run on, about classes that no pixel is found of."""
    if step < 0.5 * total:
        return None
    zero = [index for index, iou in enumerate(class_iou) if iou == 0 and facts.class_shares[index] > 0]
    if not zero:
        return None
    shown = [
        f"{facts.class_names[index]} ({facts.class_shares[index]:.2%} of the pixels, in "
        f"{facts.class_images[index] * facts.num_images:.0f} training images)"
        for index in sorted(zero, key=lambda index: facts.class_shares[index])[:5]
    ]
    return (
        f"{len(zero)} of {len(class_iou)} classes are still at 0 after step {step}: {', '.join(shown)}. More images of "
        "them, more time, or a larger image_size where they are small would help"
    )


# ------------------------------------------------------------------------------------------------------------- reading


def examine_model(
    model, processor, train_dataset, validation_dataset, labels, scores: dict, max_images: int = REPORTED_IMAGES
) -> Findings:
    """Looks at the final model on some images of both parts.

    Args:
        scores: of `evaluate`, on the whole validation set.
        max_images: of the validation images.
    """
    shown = evenly(len(validation_dataset), max_images)
    part = validation_dataset.select(shown)
    images, sizes = ImageScores(labels.num_ids, labels.ignore_index), SizeIoU(labels.num_ids, labels.ignore_index)
    evaluate(model, processor, part, batch_size=1, extra_metrics=(images, sizes), progress=False)
    seen = train_dataset.select(evenly(len(train_dataset), min(TRAINING_IMAGES, math.ceil(len(part) / 2))))
    training_iou = float(evaluate(model, processor, seen, batch_size=1, progress=False)["mean_iou"])
    image_iou = images.compute()["image_iou"]
    order = [int(index) for index in np.argsort(image_iou) if not math.isnan(image_iou[index])][:WORST_IMAGES]
    items = [part[index] for index in order]
    picture = None
    if items:
        maps = [label_map.cpu().numpy() for label_map in predict(model, processor, [item["image"] for item in items])]
        truths = [item["label"] for item in items]
        names = list(labels.id2label.values())
        images = [item["image"] for item in items]
        picture = comparison(images, truths, maps, names, labels.colors, labels.ignore_index)
    return Findings(
        class_iou=np.asarray(scores["per_category_iou"], float),
        confusion=np.asarray(scores["confusion_matrix"]),
        sizes=sizes.compute(),
        training_iou=training_iou,
        worst=[(Path(item["name"]).name, float(image_iou[index])) for index, item in zip(order, items, strict=True)],
        picture=picture,
    )


def advise(
    findings: Findings, evaluations: Sequence[dict], facts: DataFacts, *, is_pretrained: bool, image_scale: float
) -> list[str]:
    """The three things that would help most, the best first.

    Args:
        is_pretrained: whether the run started from trained weights.
        image_scale: size at which images are shown to the model over their own size.
    """
    candidates = [
        _of_time(evaluations),
        _of_weak_class(findings, facts),
        _of_gap(findings, is_pretrained),
        _of_size(findings, image_scale),
        _of_confusion(findings, facts),
        _of_start(findings, is_pretrained or facts.num_channels != 3),  # there are none for other channels
    ]
    found = sorted((advice for advice in candidates if advice), reverse=True)
    return [advice.text for advice in found[:3]]


def _of_time(evaluations: Sequence[dict]) -> Advice | None:
    if len(evaluations) < 3:
        return None
    last, early = evaluations[-1], [entry for entry in evaluations if entry["step"] <= 2 / 3 * evaluations[-1]["step"]]
    if not early:
        return None
    rise = last["mean_iou"] - early[-1]["mean_iou"]
    if rise < 0.005:
        return None
    text = (
        f"More time: in the last {1 - early[-1]['step'] / last['step']:.0%} of the steps mean IoU still rose from "
        f"{early[-1]['mean_iou']:.1%} to {last['mean_iou']:.1%}. Give twice the time_budget."
    )
    return Advice(rise, text)


def _of_weak_class(findings: Findings, facts: DataFacts) -> Advice | None:
    """Of the classes far below the mean, the one that the fewest images show."""
    iou, mean = findings.class_iou, float(np.nanmean(findings.class_iou))
    weak = [index for index in range(len(iou)) if iou[index] < 0.6 * mean]
    if not weak:
        return None
    index = min(weak, key=lambda index: (facts.class_images[index], iou[index]))
    others = [float(iou[other]) for other in weak]
    count = round(facts.class_images[index] * facts.num_images)
    text = (
        f"More images of {facts.class_names[index]}: its IoU is {iou[index]:.1%}, the mean {mean:.1%}; {count} of "
        f"{facts.num_images} training images show it, on {facts.class_shares[index]:.2%} of all pixels."
    )
    return Advice(sum(0.5 * mean - 0.5 * value for value in others) / len(iou), text)


def _of_gap(findings: Findings, is_pretrained: bool) -> Advice | None:
    validation = float(np.nanmean(findings.class_iou))
    gap = findings.training_iou - validation
    if gap < 0.05:
        return None
    cure = "More labelled images" if is_pretrained else "More labelled images, or pretrained weights (backbone_weights)"
    text = (
        f"{cure}: mean IoU is {findings.training_iou:.1%} on training images and {validation:.1%} on validation "
        "images, so what is learned does not carry over."
    )
    return Advice(0.5 * gap, text)


def _of_size(findings: Findings, image_scale: float) -> Advice | None:
    small, large = (findings.sizes[size]["mean_iou"] for size in ("small", "large"))
    objects = findings.sizes["small"]["objects"]
    if not objects or math.isnan(small) or math.isnan(large) or large - small < 0.1:
        return None
    share = objects / max(1, sum(entry["objects"] for entry in findings.sizes.values()))
    how = f"Show the images larger (image_size; now {image_scale:.2f} of their size), with a longer time_budget"
    if image_scale >= 1:
        how = "Larger pictures of small objects, or a larger crop_size"
    text = (
        f"{how}: objects of less than 32x32 pixels, {share:.0%} of all, have a mean IoU of {small:.1%}, those above "
        f"96x96 {large:.1%}."
    )
    return Advice(0.15 * share * (large - small) + (0.05 if image_scale < 0.75 else 0), text)


def _of_confusion(findings: Findings, facts: DataFacts) -> Advice | None:
    pairs = confusion_pairs(findings.confusion, facts.class_names, count=10)
    pairs = [pair for pair in pairs if pair["share_of_class"] > 0.25]
    if not pairs:
        return None
    pair = max(pairs, key=lambda pair: pair["share_of_class"])
    text = (
        f"Look at the labels of {pair['truth']} and {pair['prediction']}: {pair['share_of_class']:.0%} of the pixels "
        f"of {pair['truth']} are taken for {pair['prediction']}, {pair['share_of_errors']:.0%} of all errors. If "
        "people cannot tell them apart either, make them one class."
    )
    return Advice(0.3 * pair["share_of_class"] / len(facts.class_names), text)


def _of_start(findings: Findings, is_pretrained: bool) -> Advice | None:
    if is_pretrained:
        return None
    validation = float(np.nanmean(findings.class_iou))
    text = (
        f"Pretrained weights (backbone_weights or model_name_or_path): this run began with random ones and reached "
        f"{findings.training_iou:.1%} even on images that it was trained with."
    )
    return Advice(0.25 * (1 - max(findings.training_iou, validation)), text)


# ---------------------------------------------------------------------------------------------------------------- page


def write_run_page(folder: Path, results: dict, facts: DataFacts, findings: Findings) -> None:
    """Writes report.html of a run into its folder.

    Args:
        results: what all_results.json holds.
    """
    protocol = results["protocol"].rstrip(".")
    rows = zip(facts.class_names, findings.class_iou, facts.class_shares, facts.class_images, strict=True)
    curves = folder / "curves.png"
    write_page(
        folder / "report.html",
        title=f"Training report: {folder.resolve().name}",
        summary=f"Mean IoU {results['mean_iou']:.2%} on {results['images']} validation images: {protocol}. "
        f"{results['step']} steps, {results['training_seconds']:.0f} s of training on {results['machine']}.",
        decisions=results["decisions"],
        advice=results["advice"],
        warnings=results["warnings"],
        classes=[(name, *map(float, numbers)) for name, *numbers in rows],
        curves=Image.open(curves) if curves.is_file() else None,
        findings=findings,
    )


def write_page(
    path: Path,
    *,
    title: str,
    summary: str,
    decisions: Sequence,
    advice: Sequence[str],
    warnings: Sequence[str],
    classes: Sequence[tuple[str, float, float, float]],
    curves: Image.Image | None,
    findings: Findings | None,
) -> None:
    """Writes the page, one HTML file without anything outside of it.

    Args:
        decisions: {"name", "value", "reason"} each.
        classes: (name, IoU, share of the pixels, share of the images) of each, [0, 1]; nan where undefined.
    """
    parts = [html.paragraph(summary)]
    if advice:
        parts += [html.heading("What would help most"), html.points(advice, numbered=True)]
    if warnings:
        parts += [html.heading("Warnings"), html.points(warnings)]
    if curves:
        parts += [html.heading("Curves"), html.picture(curves, "loss and scores over the steps")]
    rows = [(name, 100 * iou, html.bar(iou), 100 * pixels, 100 * images) for name, iou, pixels, images in classes]
    header = ["class", "IoU %", "", "% of training pixels", "% of training images"]
    parts += [html.heading("Classes"), html.table(header, rows)]
    if findings and findings.picture:
        names = "; ".join(f"{name}: {iou:.1%}" for name, iou in findings.worst)
        parts += [html.heading("Worst images"), html.paragraph(f"Mean IoU of each: {names}")]
        parts.append(html.picture(findings.picture, "image, truth and prediction of the worst images"))
    if decisions:
        rows = [(html.code(decision["name"]), _shown(decision["value"]), decision["reason"]) for decision in decisions]
        parts += [html.heading("What was decided"), html.table(["what", "value", "why"], rows)]
    path.write_text(html.page(title, parts), encoding="utf-8")


def _shown(value) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
