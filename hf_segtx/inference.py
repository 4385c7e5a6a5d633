"""Prediction and evaluation: image processor -> model -> post-processing, exactly what users of the pipeline get.

`load_model` reads a checkpoint, `predict` serves a list of images, `evaluate` a whole data set. `examples/train.py` and
`examples/evaluate.py` both measure with `evaluate`: the number printed while training is that of the saved checkpoint.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import distributed, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation

from . import ARCHITECTURES
from .data import evaluation_dataloader
from .metrics import MeanIoU


def load_model(
    name_or_path: str | Path,
    *,
    processor_name_or_path: str | None = None,
    allow_new_weights: bool = False,
    trust_remote_code: bool = False,
    config: dict | None = None,
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
        hub: `revision`, `cache_dir`, `token` of the download.

    Raises:
        ValueError: if a folder holds no model, or weights are missing and `allow_new_weights` is not set.
        OSError: as transformers, if there is no such model.
    """
    if Path(name_or_path).is_dir() and not (Path(name_or_path) / "config.json").is_file():
        raise ValueError(f"{name_or_path} is not the folder of a model: it has no config.json")
    remote = {**hub, "trust_remote_code": trust_remote_code}
    model_type = AutoConfig.from_pretrained(name_or_path, **remote).model_type
    own = {row[0].model_type: row for row in ARCHITECTURES}.get(f"segtx_{model_type.removeprefix('segtx_')}")
    load, load_processor, options = AutoModelForSemanticSegmentation, AutoImageProcessor, remote
    if own is not None:
        _, _, load, load_processor, _ = own
        options = hub
    model, report = load.from_pretrained(
        name_or_path, output_loading_info=True, ignore_mismatched_sizes=allow_new_weights, **options, **(config or {})
    )
    if report["missing_keys"] and not allow_new_weights:
        missing = sorted(report["missing_keys"])
        raise ValueError(f"{name_or_path} lacks {len(missing)} weights, such as {missing[0]}; train it first")
    return model, load_processor.from_pretrained(processor_name_or_path or name_or_path, **options)


def image_size(image) -> tuple[int, int]:
    """(height, width) in pixels of a PIL image, or of a (C, H, W) tensor or array."""
    return tuple(image.shape[-2:]) if hasattr(image, "shape") else (image.height, image.width)


@torch.no_grad()
def predict(model: nn.Module, processor, images: Sequence) -> list[torch.Tensor]:
    """Label maps of images of any sizes, each at its image's own size.

    Images of equal size go through the model together, so hand over no more than fit into memory. The model should be
    in evaluation mode.

    Shape:
        images: PIL images, or uint8 tensors or arrays (C, H, W)
        returns: a map (H, W) int64 an image, in the images' order, on the model's device
    """
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


def evaluate(
    model: nn.Module,
    processor,
    dataset: Dataset,
    *,
    batch_size: int = 1,
    num_workers: int = 0,
    progress: bool = True,
    extra_metrics: Sequence = (),
) -> dict:
    """Scores a model on a data set at the images' own size.

    Under `torch.distributed` each process takes every n-th image, none twice, and the confusion matrices are summed:
    every process returns the same result, that of one process. Call it in all of them, with the model itself and not
    its DistributedDataParallel wrapper, whose forward waits for the other processes. Uses no global random numbers.

    Args:
        dataset: items {"image": PIL image or uint8 (C, H, W), "label": (H, W) train ids}.
        batch_size: images read at a time in each process; those of equal size go through the model together.
        num_workers: processes that read images, in each process.
        progress: show a progress bar in the first process.
        extra_metrics: further objects whose `add_batch(predictions=..., references=...)` is given the same label maps;
            the caller asks them for their results, and they sum over processes themselves.

    Returns:
        what `MeanIoU.compute` returns, plus "images" (number of them), "seconds" and "images_per_second" (wall clock).
    """
    is_parallel = distributed.is_available() and distributed.is_initialized()
    rank, processes = (distributed.get_rank(), distributed.get_world_size()) if is_parallel else (0, 1)
    classes = max(2, model.config.num_labels)  # one logit is a sigmoid: two classes
    metric = MeanIoU(num_labels=classes, ignore_index=getattr(model.config, "semantic_loss_ignore_index", 255))
    loader = evaluation_dataloader(
        dataset, batch_size, num_workers=num_workers, process_index=rank, num_processes=processes
    )
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    start = time.perf_counter()
    hidden = not progress or rank > 0
    with tqdm(total=len(dataset), desc="evaluation", unit="image", disable=hidden, leave=False) as bar:
        for batch in loader:
            predictions = predict(model, processor, batch["images"])
            references = [label.to(device) for label in batch["labels"]]
            for each in (metric, *extra_metrics):
                each.add_batch(predictions=predictions, references=references)
            bar.update(min(len(predictions) * processes, bar.total - bar.n))
    results = metric.compute()
    seconds = time.perf_counter() - start
    model.train(was_training)
    return {**results, "images": len(dataset), "seconds": seconds, "images_per_second": len(dataset) / seconds}


def as_json(results: dict, names: Sequence[str]) -> dict:
    """The scores of `evaluate` in JSON's types: the means, "classes" by name, number of images and speed.

    Scores lie in [0, 1]; those of a class that does not occur are None. The confusion matrix is left out.
    """

    def number(value) -> float | None:
        return None if value != value else float(value)

    keys = ("mean_iou", "mean_accuracy", "overall_accuracy", "mean_dice", "seconds", "images_per_second")
    classes = {
        name: {key: number(results[f"per_category_{key}"][index]) for key in ("iou", "accuracy", "dice")}
        for index, name in enumerate(names)
    }
    return {**{key: number(results[key]) for key in keys}, "images": results["images"], "classes": classes}


def protocol(processor, ignore_index: int = 255) -> str:
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
    return (
        f"single scale, whole images, no flip; images {shown}; logits upsampled bilinearly and scored at the labels' "
        f"own size; one confusion matrix over all images, pixels of value {ignore_index} left out; mean over the "
        "classes that occur."
    )
