"""Prediction and evaluation: image processor -> model -> post-processing, exactly what users of the pipeline get.

`load_model` reads a checkpoint, `predict` serves a list of images, `segment` does so at several scales, flipped, and
with probabilities, `evaluate` scores a whole data set. Training and the command `segtx evaluate` both measure with
`evaluate`: the number printed while training is that of the saved checkpoint.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby, islice, product
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from torch import distributed, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
from transformers.image_utils import SizeDict
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .architectures import ARCHITECTURES
from .data.labels import Labels, flip_permutation
from .data.loaders import evaluation_dataloader
from .error_analysis import DataFingerprint, gathered
from .export.runner import is_exported, load_exported
from .metrics import MeanIoU, is_distributed
from .models.configuration_base import SegmentationConfig
from .models.image_processing_segtx import SegmentationProcessing, enlarged, resized_size
from .models.sliding_windows import (
    BLOCK_NUMEL,
    MergedWindows,
    enlarged_size,
    padded_size,
    padding_rule,
    scaled_side,
    unpadded_positions,
    window_grid,
    window_pair,
)
from .models.upsampling import logits_at
from .weights.files import check_tensors


def load_model(
    name_or_path: str | Path,
    *,
    processor_name_or_path: str | None = None,
    allow_new_weights: bool = False,
    trust_remote_code: bool = False,
    config: dict | None = None,
    provider: str | None = None,
    threads: int | None = None,
    **hub,
):
    """The model and the image processor of a checkpoint, on the CPU and in evaluation mode.

    Checkpoints of transformers' SegFormer (`nvidia/segformer-...`) are read by ours, which computes the same faster.

    Args:
        name_or_path: folder, or name on the Hub.
        processor_name_or_path: where the processor is, if not there.
        allow_new_weights: let weights be random that the checkpoint lacks or has for another number of classes.
        trust_remote_code: run code of the checkpoint, if its architecture is in no installed package.
        config: fields of the configuration to override.
        provider, threads: of an exported folder or file (see `hf_segtx.export`): ONNX Runtime's provider or OpenVINO's
            device, and threads on the CPU.
        hub: `revision`, `cache_dir`, `token` of the download.

    Raises:
        ValueError: if a folder holds no model or no processor, its architecture is unknown, a file is damaged, pickled
            weights hold more than tensors, weights are not finite, or they are missing or of other shapes without
            `allow_new_weights`.
        OSError: as transformers, if there is no such model or a JSON file is damaged.
    """
    if is_exported(name_or_path):
        return load_exported(name_or_path, provider, threads)
    if provider or threads:
        raise ValueError(f"{name_or_path} is no exported folder or file; provider and threads are for these")
    if Path(name_or_path).is_dir() and not (Path(name_or_path) / "config.json").is_file():
        raise ValueError(f"{name_or_path} is not the folder of a model: it has no config.json")
    remote = {**hub, "trust_remote_code": trust_remote_code}
    try:
        settings, _ = SegmentationConfig.get_config_dict(name_or_path, **hub)
    except OSError as error:
        if Path(name_or_path).exists():
            raise
        raise OSError(f"{name_or_path}: no such folder, and the Hub gives none: {error}") from error
    model_type = str(settings.get("model_type", ""))
    own = ARCHITECTURES.get(model_type.removeprefix("segtx_"))
    load, load_processor, options = AutoModelForSemanticSegmentation, AutoImageProcessor, remote
    if own is not None:
        load, load_processor, options = own.model, own.processor, hub
    elif model_type not in CONFIG_MAPPING and not (trust_remote_code and "auto_map" in settings):
        cure = "pass trust_remote_code if you trust its code" if "auto_map" in settings else "install its package"
        raise ValueError(f"{name_or_path}/config.json: model_type {model_type!r} is unknown to transformers; {cure}")
    try:
        model, report = load.from_pretrained(
            name_or_path, output_loading_info=True, ignore_mismatched_sizes=True, **options, **(config or {})
        )
    except StrictDataclassError as error:
        raise ValueError(f"{name_or_path}/config.json: {' '.join(str(error).split())}") from error
    if not allow_new_weights:
        for name, found, expected in sorted(report["mismatched_keys"]):
            raise ValueError(
                f"{name_or_path}: the weight {name} is {tuple(found)}, but config.json makes it {tuple(expected)}; "
                "take both from the same checkpoint"
            )
        if missing := sorted(report["missing_keys"]):
            cure = "train it first"
            if unknown := sorted(report["unexpected_keys"]):
                cure = f"it has {unknown[0]}: hf_segtx.weights.load_original reads checkpoints of other code bases"
            raise ValueError(f"{name_or_path} lacks {len(missing)} weights, such as {missing[0]}; {cure}")
    if own is not None:
        try:
            check_tensors(model.state_dict())
        except ValueError as error:
            raise ValueError(f"{name_or_path}: {error}") from error
    place = processor_name_or_path or name_or_path
    if Path(place).is_dir() and not (Path(place) / "preprocessor_config.json").is_file():
        raise ValueError(
            f"{place} has no preprocessor_config.json; save the image processor of the training there: "
            f"{load_processor.__name__}(...).save_pretrained({str(place)!r})"
        )
    processor = load_processor.from_pretrained(place, **options)
    follow(processor, model)
    return model, processor


def follow(processor, model: nn.Module) -> None:
    """Lets an image processor of this package predict as its model was trained, however the two came together."""
    if isinstance(processor, SegmentationProcessing):
        processor.follow(model.config)


def size_of_edges(edges: Sequence[int], resize_mode: str = "keep") -> SizeDict:
    """A processor's `size`.

    Args:
        edges: "keep": shortest and longest edge (the second may be missing); "squash": height and width, or one number;
            "long": the longest edge alone.
        resize_mode: one of these.
    """
    if resize_mode == "squash":
        return SizeDict(height=edges[0], width=edges[-1])
    if resize_mode == "long":  # both edges fit into it, so the longest has it
        return SizeDict(shortest_edge=edges[0], longest_edge=edges[0])
    return SizeDict(**dict(zip(("shortest_edge", "longest_edge"), edges)))


def image_size(image) -> tuple[int, int]:
    """(height, width) in pixels of a PIL image, or of a (C, H, W) tensor or array."""
    return tuple(image.shape[-2:]) if hasattr(image, "shape") else (image.height, image.width)


@torch.no_grad()
def predict(model: nn.Module, processor, images: Sequence, *, window_batch_size: int = 4) -> list[torch.Tensor]:
    """Label maps of images of any sizes, each at its image's own size, as the processor's protocol wants it.

    Whole images of equal size go through the model together, so hand over no more than fit into memory. Of windows so
    many are held as `window_batch_size` says, and logits of two or three rows of windows. The model should be in
    evaluation mode.

    Args:
        window_batch_size: windows, of one or of several images, that go through the model together.

    Shape:
        images: PIL images, or uint8 tensors or arrays (C, H, W)
        returns: a map (H, W) int64 per image, in the images' order, on the model's device
    """
    follow(processor, model)
    if getattr(processor, "window_size", None) is not None:
        return _predict_windows(model, processor, images, window_batch_size)
    device = next(model.parameters()).device
    label_maps: list = [None] * len(images)
    sizes = [image_size(image) for image in images]
    for size in dict.fromkeys(sizes):
        members = [position for position, other in enumerate(sizes) if other == size]
        inputs = processor(images=[images[position] for position in members], return_tensors="pt").to(device)
        outputs = model(**inputs)
        maps = processor.post_process_semantic_segmentation(outputs, target_sizes=[size] * len(members))
        for position, label_map in zip(members, maps, strict=True):
            label_maps[position] = label_map
    return label_maps


def _predict_windows(model: nn.Module, processor, images: Sequence, batch_size: int) -> list[torch.Tensor]:
    label_maps: list[list[torch.Tensor]] = [[] for _ in images]

    def all_windows():
        for image, rows in zip(images, label_maps, strict=True):
            pixel_values = resized_image(processor, image)
            merged, windows = cut_windows(processor, pixel_values, image_size(image))
            yield from ((merged, rows, window) for window in windows)

    for merged, rows, logits in logits_of_windows(model, all_windows(), batch_size):
        if merged.add(logits):
            rows.append(merged.next_rows())
    return [torch.cat(rows) for rows in label_maps]


def logits_of_windows(model: nn.Module, items: Iterator[tuple], batch_size: int) -> Iterator[tuple]:
    """The items, with their last element, a window (C, H, W), replaced by its logits (K, h, w)."""
    device = next(model.parameters()).device
    while some := list(islice(items, batch_size)):
        for _, group in groupby(some, lambda item: item[-1].shape):  # of small images they may be smaller
            batch = list(group)
            logits = model(torch.stack([window for *_, window in batch]).to(device)).logits
            for item, window_logits in zip(batch, logits, strict=True):
                yield *item[:-1], window_logits


def resized_image(processor, image, scale: float | None = None) -> torch.Tensor:
    """The image (C, H', W') as the processor resizes and normalises it; not padded or cut.

    Args:
        scale: of several that are tested; None if there is only the processor's own.
    """
    options = {}
    if scale is not None:
        edges = zip(("shortest_edge", "longest_edge"), sorted(image_size(image)), strict=True)
        size = dict(processor.size if processor.do_resize else edges)
        if size.get("height"):
            # It is not padded, so the network must be able to take it as it is.
            rule = (processor.size_divisor or 1, processor.minimum_size or 1) if scale != 1 else (1, 1)
            size = {key: scaled_side(edge, scale, *rule) for key, edge in size.items() if edge}
        else:  # mmcv's rule; the margin is for products such as 100 * 0.29, which is 28.999999999999996
            size = {key: max(1, int(edge * scale + 1e-6)) for key, edge in size.items() if edge}
            if processor.small_images == "resize" and processor.window_size is not None:
                shortest = min(size.values())
                size = {"shortest_edge": max(shortest, *window_pair(processor.window_size))}
        options = {"do_resize": True, "size": size}
    inputs = processor(images=[image], window_size=None, do_pad=False, return_tensors="pt", **options)
    return inputs["pixel_values"][0]


def cut_windows(processor, pixel_values: torch.Tensor, target: tuple[int, int]):
    """The windows (C, h, w) of a resized image, and what makes a result of size `target` of their logits."""
    size = tuple(pixel_values.shape[1:])
    if processor.small_images == "enlarge":
        size = enlarged_size(size, processor.window_size)
        pixel_values = enlarged(pixel_values, size)
    network = processor.size_divisor, processor.minimum_size, processor.small_images == "cut"
    window, starts = window_grid(size, processor.window_size, processor.window_stride, *network)
    padded = F.pad(pixel_values, (0, max(window[1] - size[1], 0), 0, max(window[0] - size[0], 0)))
    merged = MergedWindows(size, target, window, starts, processor.align_corners)
    return merged, (padded[:, top : top + window[0], left : left + window[1]] for top, left in product(*starts))


@dataclass
class Segmentation:
    """What `segment` knows of an image of K classes, (H, W) pixels. What was not asked for is None.

    Args:
        label_map: (H, W) int64.
        probabilities: (K, H, W) float32, mean over scales and flips; with one logit (2, H, W), of a sigmoid. With the
            processor's `temperature`, if it has one, as confidence and entropy.
        confidence: (H, W) float32, probability of each pixel's class, in [0, 1].
        entropy: (H, W) float32, of each pixel's probabilities, in nats: 0 if sure, log K if all classes are equal.
        segments: of each class that occurs {"label_id", "label", "area" in pixels, "score": mean confidence}.
    """

    label_map: torch.Tensor
    probabilities: torch.Tensor | None = None
    confidence: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    segments: list[dict] | None = None


@torch.no_grad()
def segment(
    model: nn.Module,
    processor,
    images: Sequence,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    window_batch_size: int = 4,
    return_scores: bool = False,
    return_uncertainty: bool = False,
) -> list[Segmentation]:
    """Multi-scale and flip testing, and how sure the model is. With one scale and no flip, the maps of `predict`.

    Averaged are probabilities (softmax of the logits resized to the image), as in the authors' code of SETR
    (`inference` and `aug_test` of its mmsegmentation) and Segmenter (segm/model/utils.py), or, if the processor's
    `averaging` says so, logits or their exponentials. The logits of all scales are held at the resolution of the head
    (exponentials at that of the input), full-size ones for a block of rows only.

    Args:
        scales: factors of the processor's `size`; the papers take 0.5, 0.75, 1, 1.25, 1.5 and 1.75.
        flip: also predict each scale mirrored left to right; there classes named "left ..." stand for "right ...".
        window_batch_size: windows that go through the model together, if the processor cuts images into windows.
        return_scores: `probabilities`, which take 4 K bytes a pixel.
        return_uncertainty: `confidence`, `entropy` and `segments`.

    Shape:
        images: PIL images, or uint8 tensors or arrays (C, H, W)
    """
    if list(scales) == [1] and not (flip or return_scores or return_uncertainty):
        maps = predict(model, processor, images, window_batch_size=window_batch_size)
        return [Segmentation(label_map) for label_map in maps]
    follow(processor, model)
    results = []
    for image in images:
        blocks = []
        for block in probability_blocks(model, processor, image, scales, flip, window_batch_size):
            probabilities = block.calibrated(getattr(processor, "temperature", None))
            parts = [block.label_map]
            if return_uncertainty:
                parts += [probabilities.amax(0), torch.special.entr(probabilities).sum(0)]
            if return_scores:
                parts.append(probabilities)
            blocks.append(parts)
        label_map, *others = (torch.cat(parts, dim=-2) for parts in zip(*blocks, strict=True))
        result = Segmentation(label_map)
        if return_scores:
            result.probabilities = others.pop()
        if return_uncertainty:
            result.confidence, result.entropy = others
            result.segments = [
                {
                    "label_id": label,
                    "label": model.config.id2label.get(label),
                    "area": int(mask.sum()),
                    "score": float(result.confidence[mask].mean()),
                }
                for label in label_map.unique().tolist()
                for mask in [label_map == label]
            ]
        results.append(result)
    return results


class ProbabilityBlock(NamedTuple):
    """Some rows of an image: what all of its views say together.

    Args:
        probabilities: (K, rows, W) float32.
        logits: (K, rows, W), whose softmax these are; None if they are means over several views.
        label_map: (rows, W), the class of the largest probability.
    """

    probabilities: torch.Tensor
    logits: torch.Tensor | None
    label_map: torch.Tensor

    def log_probabilities(self) -> torch.Tensor:
        """(K, rows, W) up to a sum that all classes of a pixel share; finite where a mean of float32 is 0, too."""
        return self.probabilities.log().clamp_(min=-104) if self.logits is None else self.logits

    def calibrated(self, temperature: float | None) -> torch.Tensor:
        """The probabilities, to the power of 1 / temperature and normalised; the one place where it is applied."""
        if temperature in (None, 1):
            return self.probabilities
        return (self.log_probabilities() / temperature).softmax(0)


def probability_blocks(
    model: nn.Module,
    processor,
    image,
    scales: Sequence[float],
    flip: bool,
    window_batch_size: int = 4,
) -> Iterator[ProbabilityBlock]:
    """An image's rows from the top, in blocks; arguments as those of `segment`, which puts them together."""
    orders = [None, flip_permutation(model.config.id2label)] if flip else [None]  # of the classes, not mirrored and so
    steps = scales if list(scales) != [1] else [None]
    averaging = getattr(processor, "averaging", None)
    height, width = image_size(image)
    if averaging == "exp":
        views = [(_exponentials(model, processor, image, scale, orders), None) for scale in steps]
    elif averaging == "logits" and processor.window_size is None:
        views = [
            (_view_of_input(model, processor, image, scale or 1, mirrored), order)
            for scale in steps
            for mirrored, order in zip((False, True), orders)
        ]
    else:
        views = [
            (_view(model, processor, image, scale, mirrored, window_batch_size), order)
            for scale in steps
            for mirrored, order in zip((False, True), orders)
        ]
    step = max(1, BLOCK_NUMEL // (max(2, model.config.num_labels) * width))
    for begin in range(0, height, step):
        end, logits = min(begin + step, height), None
        if averaging == "exp":
            probabilities = sum(view(begin, end) for view, _ in views)
            probabilities /= probabilities.sum(0)
        elif averaging == "logits" or len(views) == 1:
            logits = sum(_reordered(view(begin, end), order) for view, order in views) / len(views)
            probabilities = logits.softmax(0)
        else:
            shares = (_reordered(view(begin, end), order).softmax(0) for view, order in views)
            probabilities = sum(shares) / len(views)
        yield ProbabilityBlock(probabilities, logits, probabilities.max(0).indices)


def _reordered(logits: torch.Tensor, order: list[int] | None) -> torch.Tensor:
    """Logits (K, rows, W) of classes in that order; one class is a sigmoid: two with logits 0 and x."""
    if len(logits) == 1:
        logits = torch.cat([torch.zeros_like(logits), logits])
    if order is not None:
        logits = logits[order]
    return logits


def _view(
    model: nn.Module, processor, image, scale: float | None, mirrored: bool, window_batch_size: int
) -> Callable[[int, int], torch.Tensor]:
    """The model's view of an image: a function that returns its logits (K, end - begin, W) of rows begin to end."""
    pixel_values = resized_image(processor, image, scale)
    if mirrored:
        pixel_values = pixel_values.flip(-1)
    target, size = image_size(image), tuple(pixel_values.shape[1:])
    if getattr(processor, "window_size", None) is not None:
        merged, windows = cut_windows(processor, pixel_values, target)
        for (logits,) in logits_of_windows(model, ((window,) for window in windows), window_batch_size):
            merged.add(logits)
        return partial(merged.logits, mirrored=mirrored)
    rule = padding_rule(processor.size, processor.do_resize, processor.size_divisor, processor.minimum_size)
    padded = padded_size([size], *rule) if processor.do_pad else size
    pixel_values = F.pad(pixel_values, (0, padded[1] - size[1], 0, padded[0] - size[0]))
    logits = model(pixel_values[None].to(next(model.parameters()).device)).logits
    rows, columns = unpadded_positions(target, size, padded, tuple(logits.shape[2:]), processor.align_corners)
    columns = columns.flip(0) if mirrored else columns
    return lambda begin, end: logits_at(logits, rows[begin:end], columns)[0]


def _view_of_input(
    model: nn.Module, processor, image, scale: float, mirrored: bool
) -> Callable[[int, int], torch.Tensor]:
    """As `_view`, of the padded input, resized as a whole: `ss_test` and `ms_test` of openseg's segmentor/tester.py."""
    inputs = processor(images=[image], return_tensors="pt")["pixel_values"].to(next(model.parameters()).device)
    padded, target, align_corners = tuple(inputs.shape[2:]), image_size(image), processor.align_corners
    own = resized_size(*target, processor.size, processor.stretch_divisor) if processor.do_resize else target
    patch = getattr(model.config, "patch_size", 1)
    size = [max(int(side * scale / patch + 1e-6), 1) * patch for side in padded]
    inputs = inputs.flip(3) if mirrored else inputs
    if scale != 1:
        inputs = F.interpolate(inputs, size, mode="bilinear", align_corners=align_corners)
    logits = model(inputs).logits
    rows, columns = unpadded_positions(target, own, padded, tuple(logits.shape[2:]), align_corners)
    columns = logits.shape[3] - 1 - columns if mirrored else columns
    return lambda begin, end: logits_at(logits, rows[begin:end], columns)[0]


def _exponentials(
    model: nn.Module, processor, image, scale: float | None, orders: list
) -> Callable[[int, int], torch.Tensor]:
    """A function that returns the exponentials of an image's logits (K, end - begin, W) of rows begin to end.

    As `multi_scale_inference` of HRNet-OCR: each window's logits and those of its mirrored self are upsampled to the
    window and averaged; the mean over windows is that of their exponentials, and so is what is resized to the image.

    Args:
        orders: of the classes, not mirrored and, if flips are tested, mirrored.
    """
    pixel_values, device = resized_image(processor, image, scale), next(model.parameters()).device
    size = own = tuple(pixel_values.shape[1:])
    if processor.window_size is None:
        rule = padding_rule(processor.size, processor.do_resize, processor.size_divisor, processor.minimum_size)
        size = padded_size([own], *rule) if processor.do_pad else own
        pixel_values = F.pad(pixel_values, (0, size[1] - own[1], 0, size[0] - own[0]))
        windows, places = [pixel_values], [(0, 0)]
    else:
        merged, windows = cut_windows(processor, pixel_values, image_size(image))
        own, places = merged.own, product(*merged.starts)
    total = count = None
    for pixels, (top, left) in zip(windows, places, strict=True):
        logits = []
        for order in orders:
            shown = pixels.flip(2) if logits else pixels  # the second is the mirrored one
            found = model(shown[None].to(device)).logits
            found = F.interpolate(found, pixels.shape[1:], mode="bilinear", align_corners=processor.align_corners)[0]
            logits.append(_reordered(found.flip(2) if logits else found, order))
        if total is None:
            size = tuple(map(max, own, pixels.shape[1:]))
            total, count = logits[0].new_zeros(len(logits[0]), *size), logits[0].new_zeros(size)
        inside = slice(top, top + pixels.shape[1]), slice(left, left + pixels.shape[2])
        mean = sum(logits) / len(logits)
        total[:, inside[0], inside[1]] += mean.clamp(max=80).exp()  # more is too much for float32
        count[inside] += 1
    merged = (total / count)[None, :, : own[0], : own[1]]
    rows, columns = unpadded_positions(image_size(image), own, own, own, processor.align_corners)
    return lambda begin, end: logits_at(merged, rows[begin:end], columns)[0]


def evaluate(
    model: nn.Module,
    processor,
    dataset: Dataset,
    *,
    batch_size: int = 1,
    num_workers: int = 0,
    progress: bool = True,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    window_batch_size: int = 4,
    extra_metrics: Sequence = (),
) -> dict:
    """Scores a model on a data set at the images' own size.

    Under `torch.distributed` each process takes every n-th image, none twice, and the confusion matrices are summed:
    every process returns the same result, that of one process. Call it in all of them, with the model itself and not
    its DistributedDataParallel wrapper, whose forward waits for the other processes. Uses no global random numbers.

    Args:
        dataset: items {"image": PIL image or uint8 (C, H, W), "label": (H, W) train ids}. Those that cannot be read
            are left out if it was loaded with `on_error="skip"`, else they are an error.
        batch_size: images read at a time in each process; those of equal size go through the model together.
        num_workers: processes that read images, in each process.
        progress: show a progress bar in the first process.
        scales, flip, window_batch_size: as in `segment`.
        extra_metrics: further objects whose `add_batch(predictions=..., references=...)` is given the same label maps,
            and one void pixel for an item that was left out; the caller asks them for their results, and they sum over
            processes themselves.

    Returns:
        what `MeanIoU.compute` returns, plus "images" (number of those that were scored), "skipped" (what was wrong with
        each of the others), "data_fingerprint" (see `DataFingerprint`), "seconds" and "images_per_second" (wall clock).

    Raises:
        ValueError: if an item cannot be read, or none can; if the data set is empty, or has `labels` whose class names
            are not those of the model.
    """
    if isinstance(labels := getattr(dataset, "labels", None), Labels):
        labels.check_names(model.config.id2label, "the model")
    if len(dataset) == 0:
        raise ValueError("the data set is empty, it has 0 images; give at least one")
    rank, processes = (distributed.get_rank(), distributed.get_world_size()) if is_distributed() else (0, 1)
    classes = max(2, model.config.num_labels)  # one logit is a sigmoid: two classes
    ignore_index = getattr(model.config, "semantic_loss_ignore_index", 255)
    metric = MeanIoU(num_labels=classes, ignore_index=ignore_index)
    loader = evaluation_dataloader(
        dataset, batch_size, num_workers=num_workers, process_index=rank, num_processes=processes
    )
    fingerprint, images = DataFingerprint(), 0
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    start = time.perf_counter()
    hidden = not progress or rank > 0
    with tqdm(total=len(dataset), desc="evaluation", unit="image", disable=hidden, leave=False) as bar:
        for batch in loader:
            results = segment(
                model, processor, batch["images"], scales=scales, flip=flip, window_batch_size=window_batch_size
            )
            predictions = [result.label_map for result in results]
            references = [label.to(device) for label in batch["labels"]]
            fingerprint.add_batch(images=batch["images"], references=batch["labels"])
            images += len(predictions)
            for position in batch["missing"]:  # a void pixel, so that scores of single images stay in order
                predictions.insert(position, torch.zeros(1, 1, dtype=torch.long, device=device))
                references.insert(position, torch.full((1, 1), ignore_index, device=device))
            for each in (metric, *extra_metrics):
                each.add_batch(predictions=predictions, references=references)
            bar.update(min(len(predictions) * processes, bar.total - bar.n))
    images = sum(gathered(images))
    skipped = sorted(set(chain(*gathered(getattr(dataset, "skipped", [])))))
    if not images:
        raise ValueError(f"no image of {len(dataset)} can be read; the first: {skipped[0]}")
    results = metric.compute()
    seconds = time.perf_counter() - start
    model.train(was_training)
    return {
        **results,
        "images": images,
        "skipped": skipped,
        "data_fingerprint": fingerprint.compute(),
        "seconds": seconds,
        "images_per_second": images / seconds,
    }


def as_json(results: dict, names: Sequence[str]) -> dict:
    """The scores of `evaluate` in JSON's types: the means, "classes" by name, images and speed.

    Scores lie in [0, 1]; those of a class that does not occur are None. The confusion matrix is left out.
    """

    def number(value) -> float | None:
        return None if value != value else float(value)

    keys = ("mean_iou", "mean_accuracy", "overall_accuracy", "mean_dice", "seconds", "images_per_second")
    classes = {
        name: {key: number(results[f"per_category_{key}"][index]) for key in ("iou", "accuracy", "dice")}
        for index, name in enumerate(names)
    }
    others = {key: results[key] for key in ("images", "skipped", "data_fingerprint")}
    return {**{key: number(results[key]) for key in keys}, **others, "classes": classes}


def protocol(processor, ignore_index: int = 255, *, scales: Sequence[float] = (1.0,), flip: bool = False) -> str:
    """How `evaluate` measures with this processor, in a sentence; stands beside every number."""
    size = dict(processor.size) if processor.do_resize else {}
    size = {key: value for key, value in size.items() if value is not None}
    if not processor.do_resize:
        shown = "shown to the model at their own size"
    elif "height" in size:
        shown = f"squashed to {size['height']}x{size['width']} pixels"
    else:
        longest = f", longest at most {size['longest_edge']}" if "longest_edge" in size else ""
        shown = f"resized with their ratio kept (shortest edge at most {size['shortest_edge']} pixels{longest})"
        if divisor := getattr(processor, "stretch_divisor", None):
            shown += f", stretched up to multiples of {divisor}"
    tested = "single scale" if list(scales) == [1] else f"scales {', '.join(f'{scale:g}' for scale in scales)} of that"
    if getattr(processor, "window_size", None) is None:
        cut = "whole images"
        divisor = getattr(processor, "size_divisor", None)
        if divisor and "height" not in size and processor.do_pad:
            cut += f", padded to multiples of {divisor}"
    else:
        window = window_pair(processor.window_size)
        stride = window_pair(processor.window_stride or window)
        cut = (
            f"windows of {window[0]}x{window[1]} pixels every {stride[0]}x{stride[1]}, the last aligned to the border, "
            "logits averaged where they overlap"
        )
        if processor.small_images == "cut":
            cut += ", no larger than the image"
        elif processor.small_images == "enlarge":
            cut += ", smaller images enlarged"
        elif processor.small_images == "resize" and list(scales) != [1]:
            cut += ", shortest edge at least the window's and the longest free"
    names = {"logits": "logits", "exp": "exponentials of logits"}
    averaged = names.get(getattr(processor, "averaging", None), "softmax probabilities")
    mean = "" if list(scales) == [1] and not flip else f"; {averaged} averaged over scales and flips"
    if getattr(processor, "do_flip_channel_order", False):
        shown += ", in BGR"
    return (
        f"{tested}, {cut}, {'with' if flip else 'no'} flip; images {shown}; logits upsampled bilinearly{mean} and "
        f"scored at the labels' own size; one confusion matrix over all images, pixels of value {ignore_index} left "
        "out; mean over the classes that occur."
    )
