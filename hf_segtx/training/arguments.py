"""The flags of examples/train.py: their defaults, recipes of them in files, and what is wrong with them by themselves.

    arguments = parse_arguments(["--recipe", "examples/recipes/setr_pup_ade20k_512.args", "--learning_rate", "3e-4"])
    Path("again.args").write_text(as_recipe(arguments))
"""

import argparse
import json
import os
import shlex
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from accelerate.tracking import get_available_trackers
from transformers import HfArgumentParser

from ..architectures import ARCHITECTURES


DEFAULT_OUTPUT_DIR = "outputs/segformer_scenes"
MEANS = ("mean_iou", "mean_accuracy", "overall_accuracy", "mean_dice")  # of an evaluation


def flag(default, help: str):
    """A dataclass field with a help text for the command line."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """The flags by which the scripts that only read data say how these are to be read; as `Arguments` has them."""
    parser.add_argument("--dataset_config_name", help="configuration of a data set")
    parser.add_argument("--revision", help="branch, tag or commit of a data set")
    parser.add_argument("--image_column_name", help="column of the images, if it cannot be guessed")
    parser.add_argument("--label_column_name", help="column of the masks, if it cannot be guessed")
    parser.add_argument("--classes_file", help="classes.json, id2label.json or name of a class table, e.g. cityscapes")
    parser.add_argument("--do_reduce_labels", action="store_true", help="mask value 0 is void, k is class k - 1")
    parser.add_argument("--num_channels", type=int, default=3, help="of the images")
    parser.add_argument("--num_workers", type=int, default=os.cpu_count(), help="processes that read")
    parser.add_argument("--cache_dir", help="where downloads are kept")
    parser.add_argument("--token", help="Hub token")


@dataclass
class Arguments:
    """Everything that can be set; `--recipe FILE` reads flags from a file first, and the command line overrides it."""

    # Model
    model_name_or_path: str | None = flag(None, "Folder or Hub name of a model to start from; else random weights.")
    model_revision: str = flag("main", "Branch, tag or commit of --model_name_or_path.")
    architecture: Literal[tuple(ARCHITECTURES)] | None = flag(None, "Architecture; default segformer.")
    size: str | None = flag(None, "Published size of the architecture, such as b0.")
    backbone_weights: str | None = flag(None, "Folder, file or Hub name of pre-trained weights for the backbone only.")
    config_overrides: str | None = flag(None, "Fields of the configuration, as JSON: '{\"drop_path_rate\": 0.0}'.")
    config_name: str | None = flag(None, "Folder or Hub name of a configuration, if not that of the model.")
    image_processor_name: str | None = flag(None, "Folder or Hub name of an image processor, if not the model's.")
    cache_dir: str | None = flag(None, "Where downloads are kept.")
    token: str | None = flag(None, "Hub token for downloads and uploads; default: that of `hf auth login`.")
    trust_remote_code: bool = flag(False, "Run the code that comes with a model on the Hub.")

    # Data; without any of these the embedded scenes are used
    dataset_name: str | None = flag(None, "Data set on the Hub, or a folder that `datasets` can load.")
    dataset_config_name: str | None = flag(None, "Configuration of that data set.")
    train_dir: str | None = flag(None, "Folder with images/, masks/ and classes.json (here or one folder up).")
    validation_dir: str | None = flag(None, "The same for validation.")
    train_split: str = flag("train", "Split of --dataset_name to train on.")
    validation_split: str | None = flag(None, "Split to validate on; default: validation, val or valid if there.")
    train_val_split: float = flag(0.15, "Share of the training images that validate if there is no validation set.")
    image_column_name: str | None = flag(None, "Column of the images, if it cannot be guessed.")
    label_column_name: str | None = flag(None, "Column of the masks, if it cannot be guessed.")
    classes_file: str | None = flag(None, "classes.json or id2label.json, if not beside the data.")
    do_reduce_labels: bool = flag(False, "Mask value 0 is void and k is class k - 1 (ADE20K as distributed).")
    max_train_samples: int | None = flag(None, "Use only so many training images, evenly spread.")
    max_eval_samples: int | None = flag(None, "Use only so many validation images, evenly spread.")
    image_size: list[int] = flag(
        [], "Shortest and longest edge (pixels) that images are resized to, ratio kept, in training (before "
        "--scale_range), evaluation and in the saved processor. Default: the model's processor, else own size.",
    )  # fmt: skip
    image_mean: list[float] = flag([], "Mean of a channel, of 0-1, for the processor; default: the architecture's.")
    image_std: list[float] = flag([], "Standard deviation of a channel, likewise.")
    crop_size: list[int] = flag([512], "Height and width of training crops in pixels; one number is a square.")
    scale_range: list[float] = flag([0.5, 2.0], "Range of the random resizing before the crop.")
    streaming: bool = flag(False, "Read --dataset_name as it is needed, instead of downloading it first.")
    on_error: Literal["raise", "skip"] = flag("raise", "What a picture that cannot be read does.")
    dataloader_num_workers: int | None = flag(None, "Processes that read images; default 0 on a CPU, up to 8 on a GPU.")
    cache_gigabytes: float = flag(1.0, "Memory of a process for decoded images and masks, each then decoded once.")

    # Optimization
    total_batch_size: int | None = flag(None, "Images a step over all processes; sets --gradient_accumulation_steps.")
    per_device_train_batch_size: int = flag(8, "Images in a micro-batch of a process; at most, with a total.")
    per_device_eval_batch_size: int = flag(8, "Images that a process reads at a time in evaluation.")
    gradient_accumulation_steps: int = flag(1, "Micro-batches a step.")
    num_train_epochs: float = flag(1.0, "Passes over the data, if --max_train_steps is not given.")
    max_train_steps: int | None = flag(None, "Optimizer steps.")
    optimizer: Literal["adamw", "sgd"] = flag("adamw", "Optimizer.")
    learning_rate: float = flag(6e-5, "Learning rate of the backbone.")
    head_lr_multiplier: float = flag(1.0, "The heads' learning rate over the backbone's (papers: 10).")
    layer_decay: float = flag(1.0, "Factor of the learning rate from a layer of the backbone to the one before it.")
    ema_decay: float | None = flag(None, "Evaluate and save a moving average of the weights, e.g. 0.999.")
    weight_decay: float = flag(0.01, "Weight decay; norms and position tables have none.")
    adam_beta1: float = flag(0.9, "AdamW's beta 1.")
    adam_beta2: float = flag(0.999, "AdamW's beta 2.")
    adam_epsilon: float = flag(1e-8, "AdamW's epsilon.")
    momentum: float = flag(0.9, "SGD's momentum.")
    nesterov: bool = flag(False, "SGD's momentum as Nesterov's.")
    fused: bool = flag(False, "The optimizer's update in one kernel.")
    max_grad_norm: float | None = flag(None, "Clip the gradient to this norm.")
    lr_scheduler_type: str = flag("polynomial", "polynomial, cosine, constant, wsd, or a name that transformers knows.")
    lr_decay_share: float = flag(0.1, "Share of the steps in which the rate of wsd (warm-up, stable, decay) falls.")
    poly_power: float = flag(1.0, "Power of the polynomial decay.")
    min_learning_rate: float = flag(0.0, "Where the decay ends.")
    num_warmup_steps: int = flag(0, "Steps of linear warm-up.")
    warmup_start_factor: float = flag(1e-6, "Share of the learning rate at the first step of the warm-up.")
    loss: str = flag("ce", "Sum of ce, ohem, focal, boundary, dice and lovasz, such as 'focal(gamma=3) + 0.5*lovasz'.")
    class_weights: list[str] = flag([], "A weight a class in the mean of the loss, or 'auto': from the masks.")
    auxiliary_loss_weight: list[float] = flag([], "Of all auxiliary heads, or of each; default: the configuration's.")
    label_smoothing: float = flag(0.0, "Share of the target that is spread over all classes.")
    seed: int = flag(0, "Seed of weights, order of the images, augmentation and dropout.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = flag(None, "Default: what accelerate launch says.")
    gradient_checkpointing: bool = flag(False, "Recompute activations in the backward pass, to save memory.")
    tune: Literal["full", "linear", "lora"] = flag(
        "full", "Train everything, only the heads, or the heads and low-rank adapters (LoRA) of the backbone."
    )
    lora_rank: int = flag(8, "Rank of the adapters.")
    freeze: list[str] = flag([], "Modules that stay as they are, such as backbone.patch_embed.")
    sync_bn: bool = flag(False, "Batch norm statistics over all processes (of GPUs; one process has no need of it).")
    channels_last: bool = flag(True, "Weights of convolutions in the order they are used in: a tenth faster.")
    compile: bool = flag(False, "Compile the training step with torch.compile.")
    tf32: bool = flag(False, "Matrix products of float32 in TF32, on GPUs that have it.")
    max_skipped_steps: int = flag(10, "Stop after so many steps in a row whose loss or gradient was not finite.")

    # Evaluation, checkpoints, output
    eval_mode: Literal["whole", "slide"] | None = flag(
        None, "Show the model whole images or windows of them, also in the saved processor; default: the processor's."
    )
    window_size: list[int] = flag([], "Height and width of windows in pixels, or one number; default: --crop_size.")
    window_stride: list[int] = flag([], "Pixels from a window to the next; default: --window_size.")
    output_dir: str | None = flag(None, f"Where everything goes; default {DEFAULT_OUTPUT_DIR}, numbered if taken.")
    overwrite_output_dir: bool = flag(False, "Delete the earlier run in --output_dir.")
    evaluation_steps: int | None = flag(None, "Evaluate every so many steps; default: five times in the run.")
    checkpointing_steps: str | None = flag(None, "Save every so many steps, or 'epoch'; default: --evaluation_steps.")
    save_total_limit: int = flag(1, "Checkpoints to keep, besides the best one.")
    resume_from_checkpoint: str | None = flag(None, "A checkpoint folder, or 'latest' for the newest in --output_dir.")
    load_best_model_at_end: bool = flag(False, "The final model is the best evaluation's, not the last step's.")
    metric_for_best_model: Literal[MEANS] = flag(
        "mean_iou", "Which score makes an evaluation the best."
    )
    early_stopping_patience: int | None = flag(None, "Stop after so many evaluations in a row that are not the best.")
    logging_steps: int = flag(10, "Steps between updates of the progress bar and entries of the trackers.")
    with_tracking: bool = flag(False, "Report to trackers.")
    report_to: str = flag("all", "tensorboard, trackio, wandb, ..., or all that are installed.")
    push_to_hub: bool = flag(False, "Upload the final model.")
    hub_model_id: str | None = flag(None, "Repository to upload to; default: the name of --output_dir.")
    hub_token: str | None = flag(None, "The same as --token.")
    license: str | None = flag(None, "For the card, such as apache-2.0; default: that of the weights started from.")


# What changes neither weights nor scores, or only says where things are: a resumed run may have it otherwise.
FREE_ARGUMENTS = """
    cache_dir token hub_token trust_remote_code train_dir validation_dir classes_file dataloader_num_workers
    output_dir overwrite_output_dir checkpointing_steps save_total_limit resume_from_checkpoint cache_gigabytes
    load_best_model_at_end logging_steps with_tracking report_to push_to_hub hub_model_id license max_skipped_steps
    per_device_eval_batch_size num_train_epochs total_batch_size
""".split()

# What the command line starts from when it says nothing about data and model; a recipe like those in recipes/.
SCENES_RECIPE = """
--size b0 --config_overrides '{"drop_path_rate": 0.0}' --max_train_samples 8800 --crop_size 128 --scale_range 0.9 1.2
--max_train_steps 1100 --evaluation_steps 275 --learning_rate 2e-3 --num_warmup_steps 50 --max_grad_norm 1
"""


def parse_arguments(command_line: list[str]) -> Arguments:
    """Arguments from `--recipe` files (flags, quoted as in a shell, # comments), then from the command line itself.

    Raises:
        ValueError: if there is no such recipe, or a flag is not known.
    """
    settings = {"prog": "train.py", "usage": "train.py [--recipe FILE] [--flag value ...]", "allow_abbrev": False}
    parser = argparse.ArgumentParser(**settings, add_help=False)
    parser.add_argument("--recipe", action="append", default=[])
    known, words = parser.parse_known_args(command_line)
    of_recipes = []
    for file in known.recipe:
        if not Path(file).is_file():
            raise ValueError(f"there is no recipe {file}; see examples/recipes")
        of_recipes += shlex.split(Path(file).read_text(), comments=True)
    starts = ("--train_dir", "--dataset_name", "--model_name_or_path")
    if not known.recipe and not any(word.startswith(starts) for word in words):
        of_recipes = shlex.split(SCENES_RECIPE)
    parser = HfArgumentParser(Arguments, **settings)
    arguments, unknown = parser.parse_args_into_dataclasses(of_recipes + words, return_remaining_strings=True)
    if unknown:
        flags = [f"--{option.name}" for option in fields(Arguments)]
        close = get_close_matches(unknown[0].split("=")[0], flags, n=1)
        cure = f"did you mean {close[0]}?" if close else "--help lists the flags"
        raise ValueError(f"{shlex.join(unknown)}: not a flag of train.py, or not a value of the flag before it; {cure}")
    return arguments


def as_recipe(arguments: Arguments) -> str:
    """The arguments that differ from their defaults, a flag a line; `parse_arguments` reads them back. No tokens."""
    lines = []
    for option in fields(arguments):
        value = getattr(arguments, option.name)
        default = option.default_factory() if option.default is MISSING else option.default
        if value == default or option.name in ("token", "hub_token", "overwrite_output_dir", "resume_from_checkpoint"):
            continue
        values = value if isinstance(value, list) else [value]
        lines.append(shlex.join([f"--{option.name}", *map(str, values)]))
    return "\n".join(lines) + "\n"


def check_arguments(arguments: Arguments) -> None:
    """Raises ValueError for what is wrong with the arguments by themselves."""
    counts = "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps logging_steps"
    counts += " total_batch_size max_train_steps evaluation_steps max_skipped_steps early_stopping_patience"
    for name in counts.split():
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise ValueError(f"--{name} is {getattr(arguments, name)}; it must be at least 1")
    try:
        json.loads(arguments.config_overrides or "{}")
    except ValueError as error:
        raise ValueError(f"--config_overrides {arguments.config_overrides} is not JSON ({error})") from error
    if arguments.num_train_epochs <= 0:
        raise ValueError(f"--num_train_epochs is {arguments.num_train_epochs}; it must be above 0")
    every = arguments.checkpointing_steps
    if every is not None and every != "epoch" and not (every.isdigit() and int(every) > 0):
        raise ValueError(f"--checkpointing_steps is {every!r}; give a number of steps, or 'epoch'")
    if len(arguments.crop_size) > 2 or min(arguments.crop_size) < 1:
        raise ValueError(f"--crop_size is {arguments.crop_size}; give height and width in pixels, or one number")
    if len(arguments.scale_range) != 2 or not 0 < arguments.scale_range[0] <= arguments.scale_range[1]:
        raise ValueError(f"--scale_range is {arguments.scale_range}; give smallest and largest factor, e.g. 0.5 2")
    if arguments.overwrite_output_dir and arguments.resume_from_checkpoint:
        raise ValueError("--overwrite_output_dir would delete what --resume_from_checkpoint needs; give one of them")
    if arguments.with_tracking:
        installed = sorted(str(tracker) for tracker in get_available_trackers())
        if not installed or arguments.report_to not in ("all", *installed):
            raise ValueError(
                f"--report_to {arguments.report_to} is not installed (installed: {', '.join(installed) or 'none'}); "
                f"`pip install {'tensorboard' if arguments.report_to == 'all' else arguments.report_to}`"
            )
