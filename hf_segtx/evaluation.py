"""Scores of a checkpoint on a data set in full: protocol, tables, errors, and whether its card says the same.

`hf_segtx.inference.evaluate` measures; this is what is asked of it and what is made of it. From the same pass come,
beside the mean IoU, boundary IoU, IoU of small, medium and large objects, a 95 % interval, confusions and the worst
images (`hf_segtx.error_analysis`). Every number comes with its protocol and a fingerprint of images and true label
maps, which tells whether two numbers were measured on the same data.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from PIL import Image, ImageDraw
from torch.utils.data import Dataset

from .data.labels import Labels
from .error_analysis import BoundaryIoU, ImageScores, SizeIoU, confusion_pairs, detail_table
from .export.runner import ExportedModel
from .inference import as_json, evaluate, protocol, segment, size_of_edges
from .metrics import class_table, per_cent
from .models.image_processing_segtx import SegmentationProcessing
from .visualization import comparison
from .visualization.label_maps import as_image, text_font


# Two measurements of one model on other machines differ by rounding in the few pixels where two classes are about
# equally likely; half of a tenth of a per cent is far more than that and less than anybody would report as a change.
TOLERANCE = 0.0005
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


# ----------------------------------------------------------------------------------------------------------- protocol


def set_protocol(
    processor,
    mode: str | None = None,
    window_size: Sequence[int] = (),
    window_stride: Sequence[int] = (),
    image_size: Sequence[int] = (),
    resize_mode: str = "keep",
    stretch_divisor: int | None = None,
    small_images: str | None = None,
    averaging: str | None = None,
) -> None:
    """Changes in the processor what is given; the rest of the protocol stays as it was saved.

    Args:
        mode: "whole" images, or "slide": windows that overlap.
        window_size, window_stride: height and width of windows, rows and columns from one to the next; one number is
            both.
        image_size, resize_mode: what images are resized to, as in `hf_segtx.inference.size_of_edges`.
        stretch_divisor, small_images, averaging: as in the image processor.

    Raises:
        ValueError: for values that do not go together.
    """
    if resize_mode != "keep" and not image_size:
        raise ValueError(f"resize_mode {resize_mode} is for image_size; add it, or omit resize_mode")
    if image_size:
        processor.do_resize = True
        processor.size = size_of_edges(image_size, resize_mode)
        processor.stretch_divisor = None  # which was for the other size
    given = {"window_size": window_size, "window_stride": window_stride}
    windows = {name: values[0] if len(values) == 1 else list(values) for name, values in given.items() if values}
    if mode == "whole":
        if windows:
            raise ValueError(f"mode whole has no windows; omit {' and '.join(f'`{name}`' for name in windows)}")
        windows = {"window_size": None}
    elif "window_size" in windows:
        windows.setdefault("window_stride", None)  # not that of other windows
    elif (mode == "slide" or windows) and getattr(processor, "window_size", None) is None:
        raise ValueError(
            "no window size: the processor of the model has none; give `window_size`, best that of the crops that the "
            "model was trained with, and `window_stride`, such as two thirds of it"
        )
    others = {"stretch_divisor": stretch_divisor, "small_images": small_images, "averaging": averaging}
    others = {name: value for name, value in others.items() if value is not None}
    if others and not isinstance(processor, SegmentationProcessing):
        raise ValueError(f"{next(iter(others))}: {type(processor).__name__} of the model has no such protocol; omit it")
    for name, value in {**windows, **others}.items():
        setattr(processor, name, value)


# ------------------------------------------------------------------------------------------------------------- scores


@dataclass
class Scores:
    """results: in JSON's types; tables: the same to read; worst: indices of the images with the lowest mean IoU."""

    results: dict
    tables: list[str]
    worst: list[int]


def autocast(model, precision: str) -> torch.autocast:
    """The context in which the model computes in fp32, bf16 or fp16."""
    dtype = None if isinstance(model, ExportedModel) else PRECISIONS[precision]  # its file says what it computes in
    return torch.autocast(next(model.parameters()).device.type, dtype=dtype, enabled=dtype is not None)


def score(
    model,
    processor,
    dataset: Dataset,
    labels: Labels,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    precision: str = "fp32",
    details: bool = True,
    worst: int = 5,
    batch_size: int = 1,
    window_batch_size: int = 4,
    num_workers: int = 0,
) -> Scores:
    """Evaluates; in a run of several processes each calls it, and each gets the scores of all.

    Args:
        dataset, batch_size, window_batch_size, num_workers, scales, flip: as in `hf_segtx.inference.evaluate`.
        labels: of the data.
        precision: fp32, bf16 or fp16.
        details: boundaries, sizes, single images and confusions, too.
        worst: how many of the worst images to name.

    Raises:
        ValueError: for a precision of an exported model, which has its own.
    """
    is_exported = isinstance(model, ExportedModel)
    if is_exported and precision != "fp32":
        raise ValueError(f"precision {precision} is for checkpoints; an exported file computes as it was written")
    classes = list(labels.id2label.values())
    metrics = [kind(len(classes), labels.ignore_index) for kind in (BoundaryIoU, SizeIoU, ImageScores) if details]
    how = {"scales": scales, "flip": flip, "window_batch_size": window_batch_size}
    loading = {"batch_size": batch_size, "num_workers": num_workers}
    with autocast(model, precision):
        scores = evaluate(model, processor, dataset, **how, **loading, extra_metrics=metrics)
    results = {
        "protocol": protocol(processor, labels.ignore_index, scales=scales, flip=flip),
        "precision": model.precision if is_exported else precision,
        **as_json(scores, classes),
    }
    tables, indices = [class_table(scores, classes)], []
    if details:
        boundary, sizes, images = (metric.compute() for metric in metrics)
        tables.append(detail_table(boundary, sizes, classes))
        _add_details(results, boundary, sizes, images)
        results["confusions"] = confusion_pairs(scores["confusion_matrix"], classes)
        iou = images["image_iou"]
        indices = [int(index) for index in np.argsort(iou)[:worst] if iou[index] >= 0]
        results["worst_images"] = [
            {"name": str(dataset[index]["name"]), "mean_iou": float(iou[index])} for index in indices
        ]
    return Scores(results, [*tables, summary(results)], indices)


def _add_details(results: dict, boundary: dict, sizes: dict, images: dict) -> None:
    """Puts what `hf_segtx.error_analysis` found into the results, in JSON's types: nan becomes None."""

    def number(value: float) -> float | None:
        return None if math.isnan(value) else float(value)

    results["mean_boundary_iou"] = number(boundary["mean_boundary_iou"])
    results["sizes"] = {
        size: {"mean_iou": number(scores["mean_iou"]), "objects": scores["objects"]} for size, scores in sizes.items()
    }
    for index, scores in enumerate(results["classes"].values()):
        scores["boundary_iou"] = number(boundary["per_category_boundary_iou"][index])
        for size in sizes:
            scores[f"{size}_iou"] = number(sizes[size]["per_category_iou"][index])
    results["mean_image_iou"] = number(images["mean_image_iou"])
    results["mean_iou_interval"] = [number(bound) for bound in images["mean_iou_interval"]]


def summary(results: dict) -> str:
    """What the tables do not say, and how all of it was measured."""
    lines = []
    if "confusions" in results:
        low, high = (math.nan if bound is None else bound for bound in results["mean_iou_interval"])
        lines.append(
            f"mean IoU {100 * results['mean_iou']:.2f} %, 95 % interval {per_cent(low)} to {per_cent(high)} % "
            f"(bootstrap over the images); of a single image {100 * results['mean_image_iou']:.2f} % in the mean"
        )
        lines.append("most frequent confusions:")
        lines += [
            f"  {pair['truth']} taken for {pair['prediction']}: {per_cent(pair['share_of_class'])} % of the class, "
            f"{per_cent(pair['share_of_errors'])} % of all errors"
            for pair in results["confusions"]
        ]
        lines.append("images with the lowest mean IoU:")
        lines += [f"  {per_cent(image['mean_iou'])} %  {image['name']}" for image in results["worst_images"]]
    if results["skipped"]:
        lines += [f"left out, {len(results['skipped'])} in all:", *(f"  {error}" for error in results["skipped"])]
    lines.append(
        f"{results['images']} images, {results['images_per_second']:.1f} images/s; fingerprint of the data "
        f"{results['data_fingerprint']}\nprotocol: {results['precision']}, {results['protocol']}"
    )
    return "\n".join(lines)


def worst_picture(model, processor, dataset: Dataset, labels: Labels, scores: Scores, **views) -> Image.Image:
    """The worst images beside truth and prediction, with rank and mean IoU in the corner of each.

    Args:
        views: scales and flip, as in `score`.
    """
    items = [dataset[index] for index in scores.worst]
    with autocast(model, scores.results["precision"]):
        maps = [segment(model, processor, [item["image"]], **views)[0].label_map for item in items]
    return ranked_picture(items, maps, [image["mean_iou"] for image in scores.results["worst_images"]], labels)


def ranked_picture(items: list[dict], label_maps: list, scores: list[float], labels: Labels) -> Image.Image:
    """Images, truths and predictions; in each image's corner its number, from 1, and its score, of 0-1."""
    images = []
    for rank, (item, value) in enumerate(zip(items, scores, strict=True), 1):
        image = as_image(item["image"]).copy()
        size = max(8, image.width // 16)  # the panel is drawn some 300 pixels wide
        font, text = text_font(size), f"{rank}: {100 * value:.1f} %"
        draw = ImageDraw.Draw(image)
        draw.rectangle(draw.textbbox((size / 3, size / 3), text, font=font), fill="white")
        draw.text((size / 3, size / 3), text, fill="black", font=font)
        images.append(image)
    truths = [item["label"] for item in items]
    return comparison(images, truths, label_maps, list(labels.id2label.values()), labels.colors, labels.ignore_index)


# ------------------------------------------------------------------------------------------------- what the card says


def read_card(model: str, file: str | Path | None = None, **hub) -> dict:
    """The measurement of a model's card: at least "mean_iou"; from all_results.json it has "classes", ..., too.

    Args:
        model: folder or name on the Hub.
        file: JSON of a measurement, instead of the card.
        hub: `cache_dir` and `token` of the download.

    Raises:
        ValueError, OSError: if there is none.
    """
    if file:
        return _measurement(Path(file))
    place = Path(model) / "all_results.json"
    try:
        if not Path(model).is_dir():
            place = Path(hf_hub_download(model, "all_results.json", **hub))
        if place.is_file():
            return _measurement(place)
    except EntryNotFoundError:
        pass  # not a model that was trained here
    except (HfHubHTTPError, HFValidationError) as error:
        raise ValueError(f"{model} is neither a folder nor a model that the Hub gives out: {error}") from error
    card = Path(model) / "README.md" if Path(model).is_dir() else model
    if isinstance(card, str) or card.is_file():
        data = ModelCard.load(card, token=hub.get("token"), ignore_metadata_errors=True).data
        for result in data.eval_results or []:
            if result.metric_type == "mean_iou":
                return {"mean_iou": result.metric_value, **(result.metric_args or {})}
    raise ValueError(
        f"the card of {model} gives no mean IoU: no all_results.json, and no README.md with a model-index that has the "
        "metric mean_iou; evaluate without `from_card`"
    )


def _measurement(file: Path) -> dict:
    """What is in a JSON file of scores."""
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); give a file that this command or a training wrote") from error
    if not isinstance(card, dict) or not isinstance(card.get("mean_iou"), int | float):
        raise ValueError(f"{file} has no mean_iou; give a file that this command or a training wrote")
    return card


def check_data_of_card(card: dict, **measured) -> None:
    """Raises ValueError if the card says that it was measured on other data ("images", "data_fingerprint")."""
    for key, value in measured.items():
        if card.get(key, value) != value:
            raise ValueError(
                f"other data than the card's: {key} is {value} here and {card[key]} on the card; give the same data, "
                "with validation_dir or dataset_name, max_eval_samples, ..."
            )


def comparison_with_card(card: dict, results: dict) -> tuple[bool, str]:
    """Whether the card's mean IoU was measured again, and a text that says so."""
    difference = results["mean_iou"] - card["mean_iou"]
    is_same = abs(difference) <= TOLERANCE
    text = (
        f"mean IoU on the card {100 * card['mean_iou']:.2f} %, measured {100 * results['mean_iou']:.2f} %: "
        f"{'the same' if is_same else 'NOT the same'} (difference {100 * difference:+.3f}, allowed "
        f"{100 * TOLERANCE:.2f})"
    )
    if card.get("protocol", results["protocol"]) != results["protocol"]:
        text += f"\nprotocol on the card: {card['protocol']}"
    return is_same, text
