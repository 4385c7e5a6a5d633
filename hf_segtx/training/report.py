"""What a training run tells: results, card, pictures, trackers."""

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

import hf_segtx

from ..architectures import ARCHITECTURES
from ..hub import write_card
from ..inference import predict
from ..markdown import code_block
from ..resources import resource_folder
from ..visualization import comparison
from .arguments import Arguments
from .recipes import as_recipe


def check_trackers(arguments: Arguments) -> None:
    """Raises ValueError if a tracker is asked for that is not installed."""
    if not arguments.with_tracking:
        return
    installed = sorted(str(tracker) for tracker in get_available_trackers())
    if not installed or arguments.report_to not in ("all", *installed):
        raise ValueError(
            f"report_to {arguments.report_to} is not installed (installed: {', '.join(installed) or 'none'}); "
            f"`pip install {'tensorboard' if arguments.report_to == 'all' else arguments.report_to}`"
        )


def start_trackers(arguments: Arguments, accelerator: Accelerator) -> None:
    """Opens a run in each tracker, named after the output folder; the tokens go to none of them."""
    config = {key: str(value) for key, value in vars(arguments).items() if "token" not in key}
    for secret in filter(None, (arguments.token, arguments.hub_token)):  # wandb records the command line
        sys.argv = [word.replace(secret, "...") for word in sys.argv]
    name = Path(arguments.output_dir).resolve().name
    of_trackers = {"wandb": {"name": name}, "trackio": {"name": name}, "mlflow": {"run_name": name}}
    accelerator.init_trackers("hf_segtx", config, of_trackers)


def repository_name(arguments: Arguments, user: str | None) -> str:
    """Of the model, as the Hub will call it if it is uploaded by this user.

    Raises:
        ValueError: if it is no name for a repository.
    """
    name = arguments.hub_model_id or Path(arguments.output_dir).resolve().name
    if user is not None:
        name = name if "/" in name else f"{user}/{name}"
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise ValueError(f"hub_model_id {name} is no name for a repository: {error}") from error
    return name


def log_picture(accelerator: Accelerator, picture, step: int) -> None:
    """Shows a PIL image in those trackers that take pictures, each in its own way."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({"predictions": np.asarray(picture)[None]}, step, dataformats="NHWC")
        elif tracker.name == "trackio":
            tracker.log({"predictions": importlib.import_module("trackio").Image(np.asarray(picture))}, step)
        elif tracker.name == "mlflow":
            importlib.import_module("mlflow").log_image(picture, key="predictions", step=step)
        elif hasattr(tracker, "log_images"):  # wandb and others
            tracker.log_images({"predictions": [picture]}, step)


def draw_predictions(model, processor, dataset, labels):
    """Four images, evenly spread (neighbours may be frames of one video), with truths and predictions."""
    count = min(4, len(dataset))
    shown = []
    for index in range(count):
        try:
            shown.append(dataset[index * len(dataset) // count])
        except ValueError:  # of a sample that `on_error` "skip" left out of the evaluation, too
            continue
    images, truths = [item["image"] for item in shown], [item["label"] for item in shown]
    label_maps = [label_map.cpu().numpy() for label_map in predict(model.eval(), processor, images)]
    return comparison(images, truths, label_maps, list(labels.id2label.values()), labels.colors, labels.ignore_index)


def files_of_images(loader, first: int, stop: int) -> list[str]:
    """Names of the samples number `first` to `stop` of the endless stream."""
    batches, dataset = getattr(loader.batches, "batches", loader.batches), loader.dataset.dataset
    length = len(dataset)
    rows = {int(batches.order(position // length)[position % length]) for position in range(first, stop)}
    return sorted(dataset[row]["name"] for row in rows)


def provenance(arguments: Arguments) -> dict:
    """What all_results.json says of versions and arguments."""
    return {
        "versions": {module.__name__: module.__version__ for module in (hf_segtx, torch, transformers)},
        "arguments": as_recipe(arguments).splitlines(),
    }


def describe(
    arguments: Arguments,
    results: dict,
    model_type: str,
    name: str,
    images_per_step: int,
    reasons: Mapping[str, str] | None = None,
) -> None:
    """Writes the model card, if the architecture is known: those of other libraries have no template.

    Args:
        reasons: of what was decided about the arguments; see `as_recipe`.
    """
    row = ARCHITECTURES.get(model_type.removeprefix("segtx_"))
    data = arguments.dataset_name or arguments.train_dir or "the scenes that hf_segtx draws"
    if arguments.train_dir and arguments.validation_dir not in (None, arguments.train_dir):
        data = f"{arguments.train_dir}, scored on {arguments.validation_dir}"
    if row is not None:
        write_card(
            Path(arguments.output_dir),
            resource_folder("model_cards") / row.card,
            results,
            name=name,
            data=data,
            dataset_name=arguments.dataset_name,
            start=arguments.model_name_or_path or arguments.backbone or arguments.backbone_weights,
            license=arguments.license,
            training=f"{results['step']} steps of {images_per_step} images on {results['machine']}; the arguments of "
            f"`segtx train`:\n\n{code_block(as_recipe(arguments, reasons))}",
        )
