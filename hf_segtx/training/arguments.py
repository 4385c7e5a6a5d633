"""Everything that can be set about a training run, and what is wrong with it by itself.

    arguments = Arguments(train_dir="data/train", validation_dir="data/val", architecture="segformer", size="b0")
    check_arguments(arguments)  # ValueError: names the parameter, its value, its bound and the cure

Needs nothing but Python itself: the command line answers before anything else is imported.
"""

import json
import math
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from ..data.settings import DataSettings
from ..settings import check_settings, setting


MEANS = ("mean_iou", "mean_accuracy", "overall_accuracy", "mean_dice")  # of an evaluation
# Of `optim.make_schedule`; the last four are transformers', which have no further settings here.
SCHEDULES = ("polynomial", "cosine", "constant", "wsd")
SCHEDULES += ("linear", "cosine_with_restarts", "constant_with_warmup", "inverse_sqrt")
# The names in `hf_segtx.architectures.ARCHITECTURES`, without importing the models; a test holds them together.
ARCHITECTURE_NAMES = tuple(
    sorted(file.stem.removeprefix("modeling_") for file in Path(__file__).parents[1].glob("models/modeling_*.py"))
)


@dataclass
class ModelSettings:
    """Model."""

    model_name_or_path: str | None = setting(None, "Folder or Hub name of a model to start from; else random weights.")
    model_revision: str = setting("main", "Branch, tag or commit of model_name_or_path.")
    architecture: Literal[ARCHITECTURE_NAMES] | None = setting(None, "Architecture; segformer if nothing is said.")
    size: str | None = setting(None, "Published size of the architecture, such as b0.")
    backbone: str | None = setting(
        None, "Folder or Hub name of a pre-trained backbone of transformers or timm (DINOv3, Swin, ...) for its heads."
    )
    decode_head: str | None = setting(None, "Head, where the architecture has several, such as mask or pup.")
    backbone_weights: str | None = setting(None, "Folder, file or Hub name of pre-trained weights for the backbone.")
    config_overrides: str | None = setting(None, "Fields of the configuration, as JSON: '{\"drop_path_rate\": 0.0}'.")
    config_name: str | None = setting(None, "Folder or Hub name of a configuration, if not that of the model.")
    image_processor_name: str | None = setting(None, "Folder or Hub name of an image processor, if not the model's.")
    trust_remote_code: bool = setting(False, "Run the code that comes with a model on the Hub.")
    num_channels: int | None = setting(None, "Channels of the images; else those of the configuration.", "[1, 65536]")
    seed: int = setting(0, "Seed of weights, order of the images, augmentation and dropout.", "[0, 2147483647]")


@dataclass
class ImageSettings:
    """Images: sizes, normalization, augmentation, reading."""

    image_size: list[int] = setting(
        [], "Shortest and longest edge (pixels; see resize_mode) that images are resized to, in training (before "
        "scale_range), evaluation and in the saved processor. If not given: the model's processor, else own size.",
        "[1, 100000]", "1-2",
    )  # fmt: skip
    resize_mode: Literal["keep", "squash", "long"] = setting(
        "keep", "What image_size is: shortest and longest edge, height and width, or the longest edge alone; squash "
        "does not keep the ratio.",
    )  # fmt: skip
    base_size: list[int] = setting(
        [], "Shortest and longest edge of training images at factor 1 of scale_range, if not image_size.",
        "[1, 100000]", "1-2",
    )  # fmt: skip
    stretch_divisor: int | None = setting(
        None, "In evaluation stretch the sides of resized images up to multiples of this many pixels.", "[1, 65536]"
    )
    size_divisor: int | None = setting(
        None, "In evaluation pad images that are not squashed or cut into windows to multiples of this many pixels; "
        "else what the architecture needs.", "[1, 65536]",
    )  # fmt: skip
    channel_order: Literal["rgb", "bgr"] = setting("rgb", "Order of colours that the model sees.")
    image_mean: list[float] = setting(
        [], "Mean of each channel, of 0-1, for the processor; else the architecture's.", "[0, 1]"
    )
    image_std: list[float] = setting([], "Standard deviation of each channel, likewise.", "(0, 1]")
    crop_size: list[int] = setting(
        [512], "Height and width of training crops in pixels; one number is a square.", "[1, 100000]", "1-2"
    )
    scale_range: list[float] = setting([0.5, 2.0], "Range of the random resizing before the crop.", "(0, 100]", "2")
    scale_step: float | None = setting(
        None, "Draw the factor of scale_range from those this far apart; else any number.", "(0, 100]"
    )
    aspect_range: list[float] = setting(
        [], "Range of a random factor of the ratio of width to height, the area kept; else 1.", "[0.1, 10]", "2"
    )
    max_class_share: float = setting(
        0.75, "Draw a crop anew, up to ten times, if a class has more than this share of its pixels; 1: never.",
        "(0, 1]",
    )  # fmt: skip
    flip_probability: float = setting(
        0.5,
        "Share of training images that are mirrored; classes of the left and the right change places.",
        "[0, 1]",
    )
    photometric: Literal["none", "brightness", "full"] = setting(
        "full", "Changes of training images: none, a shift by 10 levels of 255, or brightness, contrast and colours."
    )
    photometric_strength: float = setting(1.0, "Factor of the changes of photometric.", "(0, 2]")
    crop_padding: Literal["mean", "black"] = setting("mean", "What crops of small images are filled up with.")
    dataloader_num_workers: int | None = setting(
        None, "Processes that read images; else 0 on a CPU, up to 8 on a GPU.", "[0, 1024]"
    )
    cache_gigabytes: float = setting(
        1.0, "Memory of a process for decoded images and masks, each then decoded once.", "[0, 100000]"
    )


@dataclass
class OptimizationSettings:
    """Optimization."""

    total_batch_size: int | None = setting(
        None, "Images a step over all processes; sets gradient_accumulation_steps.", "[1, inf)"
    )
    per_device_train_batch_size: int = setting(
        8, "Images in a micro-batch of a process; at most, with a total.", "[1, inf)"
    )
    gradient_accumulation_steps: int = setting(1, "Micro-batches a step.", "[1, inf)")
    num_train_epochs: float = setting(1.0, "Passes over the data, if max_train_steps is not given.", "(0, 1e9]")
    max_train_steps: int | None = setting(None, "Optimizer steps.", "[1, 1e12]")
    optimizer: Literal["adamw", "sgd"] = setting("adamw", "Optimizer.")
    learning_rate: float = setting(6e-5, "Learning rate of the backbone.", "[0, 1000]")
    head_lr_multiplier: float = setting(
        1.0, "The heads' learning rate over the backbone's (papers: 10).", "[0, 1000000]"
    )
    layer_decay: float = setting(
        1.0, "Factor of the learning rate from a layer of the backbone to the one before it.", "(0, 1]"
    )
    ema_decay: float | None = setting(
        None, "Evaluate and save a moving average of the weights, with this decay, e.g. 0.999.", "[0, 1)"
    )
    weight_decay: float = setting(0.01, "Weight decay; for norms and position tables see norm_decay.", "[0, 1000]")
    norm_decay: Literal["none", "heads", "all"] = setting(
        "none", "Which norms and position tables have weight decay, too: none, those of the heads, or all."
    )
    adam_beta1: float = setting(0.9, "AdamW's beta 1.", "[0, 1)")
    adam_beta2: float = setting(0.999, "AdamW's beta 2.", "[0, 1)")
    adam_epsilon: float = setting(1e-8, "AdamW's epsilon.", "(0, 1]")
    momentum: float = setting(0.9, "SGD's momentum.", "[0, 1)")
    nesterov: bool = setting(False, "SGD's momentum as Nesterov's.")
    fused: bool = setting(False, "The optimizer's update in one kernel.")
    max_grad_norm: float | None = setting(None, "Clip the gradient to this norm; 0 does not.", "[0, inf)")
    lr_scheduler_type: Literal[SCHEDULES] = setting("polynomial", "How the learning rate changes.")
    lr_decay_share: float = setting(
        0.1, "Share of the steps in which the rate of wsd (warm-up, stable, decay) falls.", "(0, 1]"
    )
    poly_power: float = setting(1.0, "Power of the polynomial decay.", "[0, 100]")
    min_learning_rate: float = setting(0.0, "Where the decay ends.", "[0, 1000]")
    num_warmup_steps: int = setting(0, "Steps of linear warm-up.", "[0, 1e12]")
    warmup_start_factor: float = setting(1e-6, "Share of the learning rate at the first step of the warm-up.", "[0, 1]")
    loss: str = setting(
        "ce", "Sum of ce, ohem, focal, boundary, dice, lovasz and rmi, such as 'focal(gamma=3) + 0.5*lovasz'."
    )
    loss_mean: Literal["valid", "all"] = setting(
        "valid", "Mean of ce over the pixels that have a label, or over all, the others as 0 (mmsegmentation)."
    )
    class_weights: list[str] = setting([], "Weight of each class in the mean of the loss, or 'auto': from the masks.")
    auxiliary_loss_weight: list[float] = setting(
        [], "Weight of all auxiliary heads, or of each; else the configuration's.", "[0, 1000]"
    )
    label_smoothing: float = setting(0.0, "Share of the target that is spread over all classes.", "[0, 1]")
    num_threads: int | None = setting(
        None, "Threads of a process on a CPU; else OMP_NUM_THREADS, else an equal share of the cores.", "[1, 4096]"
    )
    mixed_precision: Literal["no", "fp16", "bf16"] | None = setting(
        None, "Precision of the forward pass; else what accelerate launch says."
    )
    gradient_checkpointing: bool = setting(
        False,
        "Recompute activations in the backward pass, to save memory; running statistics of BatchNorm then move twice.",
    )
    tune: Literal["full", "frozen", "linear", "lora"] = setting(
        "full",
        "Train everything; the heads on a backbone that stays as it is; only their classifiers; or the heads and "
        "low-rank adapters (LoRA) of the backbone.",
    )
    lora_rank: int = setting(8, "Rank of the adapters.", "[1, 10000]")
    freeze: list[str] = setting([], "Further modules that stay as they are, such as backbone.patch_embed.")
    cache_features: str | None = setting(
        None, "Folder for the feature maps of a frozen backbone, written once and read in each step instead of images."
    )
    feature_views: int | None = setting(None, "Augmented views of each image in cache_features; else 4.", "[1, 100000]")
    sync_bn: bool = setting(False, "Batch norm statistics over all processes (of GPUs; one process has no need of it).")
    channels_last: bool = setting(True, "Weights of convolutions in the order they are used in: a tenth faster.")
    compile: bool = setting(False, "Compile the training step with torch.compile.")
    tf32: bool = setting(False, "Matrix products of float32 in TF32, on GPUs that have it.")
    max_skipped_steps: int = setting(
        10, "Stop after so many steps in a row whose loss or gradient was not finite.", "[1, inf)"
    )


@dataclass
class OutputSettings:
    """Evaluation, checkpoints, output."""

    per_device_eval_batch_size: int = setting(8, "Images that a process reads at a time in evaluation.", "[1, inf)")
    eval_mode: Literal["whole", "slide"] | None = setting(
        None, "Show the model whole images or windows of them, also in the saved processor; else as the processor says."
    )
    window_size: list[int] = setting(
        [], "Height and width of windows in pixels, or one number; else crop_size.", "[1, 100000]", "1-2"
    )
    window_stride: list[int] = setting([], "Pixels from a window to the next; else window_size.", "[1, 100000]", "1-2")
    small_images: Literal["pad", "cut", "enlarge", "resize"] = setting(
        "pad", "Images smaller than a window are padded, or cut it, or are enlarged after resizing, or, at several "
        "scales, resized to it.",
    )  # fmt: skip
    averaging: Literal["probabilities", "logits", "exp"] = setting(
        "probabilities", "What of several scales and flips is averaged when the saved model is evaluated with them."
    )
    output_dir: str | None = setting(None, "Where everything goes; else outputs/ARCHITECTURE_DATA, numbered if taken.")
    overwrite_output_dir: bool = setting(False, "Delete the earlier run in output_dir.")
    evaluation_steps: int | None = setting(
        None, "Evaluate every so many steps; else five times in the run.", "[1, inf)"
    )
    first_evaluation_step: int | None = setting(
        None, "Evaluate and save at this step, too: early, so that a hopeless run is seen.", "[1, inf)"
    )
    checkpointing_steps: str | None = setting(
        None, "Save every so many steps, or 'epoch'; else as often as evaluation_steps."
    )
    save_total_limit: int = setting(1, "Checkpoints to keep, besides the best one.", "[1, inf)")
    resume_from_checkpoint: str | None = setting(None, "A checkpoint folder, or 'latest' for the newest in output_dir.")
    load_best_model_at_end: bool = setting(False, "The final model is the best evaluation's, not the last step's.")
    metric_for_best_model: Literal[MEANS] = setting("mean_iou", "Which score makes an evaluation the best.")
    early_stopping_patience: int | None = setting(
        None, "Stop after so many evaluations in a row that are not the best.", "[1, inf)"
    )
    logging_steps: int = setting(10, "Steps between entries of curves and trackers.", "[1, inf)")
    with_tracking: bool = setting(False, "Report to trackers.")
    report_to: str = setting("all", "tensorboard, trackio, wandb, ..., or all that are installed.")
    push_to_hub: bool = setting(False, "Upload the final model.")
    hub_model_id: str | None = setting(None, "Repository to upload to; else the name of output_dir.")
    hub_token: str | None = setting(None, "The same as token.")
    license: str | None = setting(None, "For the card, such as apache-2.0; else that of the weights started from.")


@dataclass
class AutomaticSettings:
    """Decisions of what is not given, from data, machine and time."""

    automatic: bool | None = setting(
        None,
        "Decide everything that is not given. If not said: for data of your own, without a recipe and without a number "
        "of steps or epochs, and wherever there is a time budget.",
    )
    time_budget: str | None = setting(
        None, "Time from start to end, such as 90s, 30m or 1h30m; else as long as the data deserve."
    )
    dry_run: bool = setting(False, "Print the decisions and stop.")


@dataclass
class Arguments(ModelSettings, DataSettings, ImageSettings, OptimizationSettings, OutputSettings, AutomaticSettings):
    """Everything that can be set about a training run; `check_arguments` says what is wrong with it."""

    def __post_init__(self):
        """Paths become texts. `DataSettings` alone checks its values as soon as they are there."""
        for name, value in vars(self).items():
            if isinstance(value, os.PathLike):
                setattr(self, name, os.fspath(value))


def data_settings(arguments: Arguments, **others) -> DataSettings:
    """What of the arguments is about data, and other values in place of some.

    Raises:
        ValueError: as `DataSettings`.
    """
    values = {option.name: getattr(arguments, option.name) for option in fields(DataSettings)}
    return DataSettings(**{**values, "num_channels": arguments.num_channels or 3, **others})


# What changes neither weights nor scores, or only says where things are: a resumed run may have it otherwise.
FREE_ARGUMENTS = """
    cache_dir token hub_token trust_remote_code train_dir validation_dir classes_file dataloader_num_workers
    output_dir overwrite_output_dir checkpointing_steps save_total_limit resume_from_checkpoint cache_gigabytes
    load_best_model_at_end logging_steps with_tracking report_to push_to_hub hub_model_id license max_skipped_steps
    per_device_eval_batch_size cache_features num_train_epochs total_batch_size automatic time_budget dry_run
""".split()


# Of configurations; what is set here would be replaced, or would not fit.
DECIDED_FIELDS = """
    id2label label2id num_labels is_binary semantic_loss_ignore_index model_type architectures auto_map palette dtype
    torch_dtype
""".split()


def config_overrides(arguments: Arguments) -> dict:
    """The fields of the configuration that `config_overrides` changes.

    Raises:
        ValueError: if it is no JSON object.
    """
    try:
        overrides = json.loads(arguments.config_overrides or "{}")
    except ValueError as error:
        raise ValueError(f"config_overrides {arguments.config_overrides} is not JSON ({error})") from error
    if not isinstance(overrides, dict):
        raise ValueError(
            f"config_overrides {arguments.config_overrides} is no JSON object; give names and values, such as "
            "'{\"drop_path_rate\": 0.0}'"
        )
    if getattr(arguments, "decode_head", None) is not None:  # a setting of training, not of conversion
        overrides["decode_head"] = arguments.decode_head
    if decided := [name for name in overrides if name in DECIDED_FIELDS]:
        raise ValueError(f"config_overrides has {decided[0]}, which data and architecture decide; omit it")
    return overrides


def check_arguments(arguments: Arguments) -> None:
    """Raises ValueError for what is wrong with the arguments by themselves."""
    check_settings(arguments)
    data_settings(arguments)
    config_overrides(arguments)
    every = arguments.checkpointing_steps
    if every is not None and every != "epoch" and not (every.isdecimal() and int(every) > 0):
        raise ValueError(f"checkpointing_steps is {every!r}; give a number of steps, or 'epoch'")
    if arguments.resize_mode != "keep" and not arguments.image_size:
        raise ValueError(f"resize_mode {arguments.resize_mode} is for image_size; add it, or omit resize_mode")
    if arguments.resize_mode == "long" and len(arguments.image_size) != 1:
        raise ValueError(f"image_size is {arguments.image_size}; with resize_mode long, give the longest edge alone")
    if arguments.resize_mode == "keep" and arguments.image_size != sorted(arguments.image_size):
        raise ValueError(f"image_size is {arguments.image_size}; give the shortest edge, then the longest")
    if arguments.base_size != sorted(arguments.base_size):
        raise ValueError(f"base_size is {arguments.base_size}; give the shortest edge, then the longest")
    if arguments.base_size and arguments.resize_mode != "keep":
        raise ValueError(f"base_size is for images that keep their ratio, resize_mode is {arguments.resize_mode}")
    if arguments.stretch_divisor and not (arguments.image_size and arguments.resize_mode != "squash"):
        raise ValueError("stretch_divisor is for images that image_size resizes, their ratio kept; add it, or omit it")
    if arguments.small_images != "pad" and arguments.eval_mode != "slide":
        raise ValueError(f"small_images {arguments.small_images} is for eval_mode slide; add it, or omit small_images")
    if (arguments.window_size or arguments.window_stride) and arguments.eval_mode != "slide":
        raise ValueError("window_size and window_stride are for eval_mode slide; add it, or omit them")
    smallest, largest = arguments.scale_range
    if smallest > largest:
        raise ValueError(f"scale_range is {arguments.scale_range}; give smallest and largest factor, e.g. 0.5 2")
    if arguments.scale_step is not None and arguments.scale_step > largest - smallest:
        raise ValueError(
            f"scale_step {arguments.scale_step} leaves one factor of scale_range {arguments.scale_range}; lower it, or "
            "omit it"
        )
    if arguments.aspect_range != sorted(arguments.aspect_range):
        raise ValueError(f"aspect_range is {arguments.aspect_range}; give smallest and largest factor, e.g. 0.9 1.1")
    if arguments.photometric == "none" and arguments.photometric_strength != 1:
        raise ValueError("photometric_strength is for photometric brightness or full; omit it")
    if arguments.nesterov and arguments.momentum == 0:
        raise ValueError("nesterov needs a momentum above 0; momentum is 0")
    if arguments.class_weights != ["auto"]:
        _check_class_weights(arguments.class_weights)
    if arguments.validation_dir and not arguments.train_dir:
        raise ValueError(f"validation_dir {arguments.validation_dir} without train_dir; give both")
    if "backbone" in arguments.freeze:
        raise ValueError("`freeze` backbone is what `tune` frozen says; use that")
    if arguments.cache_features and arguments.tune not in ("frozen", "linear"):
        raise ValueError(
            f"cache_features is for a backbone that stays as it is; `tune` is {arguments.tune}, use frozen or linear"
        )
    if arguments.feature_views and not arguments.cache_features:
        raise ValueError(f"feature_views {arguments.feature_views} is for cache_features; add it, or omit this")
    if arguments.model_name_or_path and (arguments.size or arguments.architecture):
        raise ValueError("`model_name_or_path` comes with an architecture and a size; omit the other two")
    for name in ("model_name_or_path", "config_name", "backbone_weights"):
        if arguments.backbone and getattr(arguments, name):
            raise ValueError(f"`backbone` {arguments.backbone} makes a new model with its weights; omit {name}")
    if arguments.model_revision != "main" and not arguments.model_name_or_path:
        raise ValueError(f"model_revision {arguments.model_revision} is for model_name_or_path; add it, or omit it")
    if arguments.overwrite_output_dir and arguments.resume_from_checkpoint:
        raise ValueError("overwrite_output_dir would delete what resume_from_checkpoint needs; give one of them")


def _check_class_weights(weights: list[str]) -> None:
    for text in weights:
        try:
            weight = float(text)
        except ValueError as error:
            raise ValueError(f"class_weights has {text!r}; give a number for each class, or 'auto' alone") from error
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"class_weights has {text}; a weight must lie in [0, inf)")
    if weights and not any(map(float, weights)):
        raise ValueError("class_weights are all 0, so there is nothing to learn; give one that is above 0")
