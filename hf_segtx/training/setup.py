"""What a training run is put together from: data, model, trainable parameters, optimizer, loss, loader.

Each function takes the `Arguments` and what it needs besides, and is of use without `TrainingRun`: another loop, and
the plan of a run, are made of the same parts.
"""

import importlib.util
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from torch import nn
from transformers import PreTrainedConfig

from ..architectures import ARCHITECTURES
from ..data import load_data
from ..data.augmentation import TrainingTransform
from ..data.labels import Labels, flip_permutation
from ..data.loaders import TrainingLoader, collate_evaluation, training_dataloader
from ..inference import follow, load_model, predict, size_of_edges
from ..losses import class_weights_from_counts, parse_loss
from .arguments import Arguments, config_overrides, data_settings
from .machine import is_out_of_memory, keep_freed_memory, use_cores
from .optim import make_schedule, parameter_groups


class Steps(NamedTuple):
    """How many optimizer steps a run has, and after how many what happens."""

    images: int  # of one step, over all processes
    total: int
    evaluation: int
    checkpointing: int
    first_evaluation: int | None = None

    def is_evaluation(self, step: int) -> bool:
        """Whether the model is evaluated after this step."""
        return step in (self.total, self.first_evaluation) or step % self.evaluation == 0

    def is_checkpoint(self, step: int) -> bool:
        """Whether a checkpoint is written after this step, if there is no other reason for it."""
        return step in (self.total, self.first_evaluation) or step % self.checkpointing == 0


# ------------------------------------------------------------------------------------------------ steps and accelerator


def split_batch(arguments: Arguments, num_processes: int, on_cpu: bool) -> None:
    """Sets micro-batch and accumulation so that a step has `total_batch_size` images, whatever there are of processes.

    Raises:
        ValueError: if the processes cannot share the images evenly, or cannot synchronise batch norms.
    """
    if arguments.sync_bn and on_cpu and num_processes > 1:
        raise ValueError("sync_bn needs GPUs: torch has no synchronised batch norm for several processes on CPUs")
    if arguments.total_batch_size is None:
        return
    images, rest = divmod(arguments.total_batch_size, num_processes)
    if rest:
        raise ValueError(
            f"total_batch_size {arguments.total_batch_size} cannot be shared by {num_processes} processes; start as "
            "many as divide it"
        )
    largest = min(arguments.per_device_train_batch_size, images)
    micro_batch = next(size for size in range(largest, 0, -1) if images % size == 0)
    arguments.per_device_train_batch_size = micro_batch
    arguments.gradient_accumulation_steps = images // micro_batch


def count_steps(arguments: Arguments, num_images: int, num_processes: int) -> Steps:
    """The steps of a run over so many training images."""
    images = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * num_processes
    steps_per_epoch = math.ceil(num_images / images)
    total = arguments.max_train_steps or math.ceil(arguments.num_train_epochs * steps_per_epoch)
    evaluation = arguments.evaluation_steps or math.ceil(total / 5)
    checkpointing = evaluation
    if every := arguments.checkpointing_steps:
        checkpointing = steps_per_epoch if every == "epoch" else int(every)
    return Steps(images, total, evaluation, checkpointing, arguments.first_evaluation_step)


def build_accelerator(arguments: Arguments, on_cpu: bool, **settings) -> Accelerator:
    """Accelerator of the arguments' precision and accumulation; settles what the process gets of the machine."""
    steps = arguments.gradient_accumulation_steps
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=arguments.mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=steps, sync_with_dataloader=False),
        **settings,
    )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:  # it would read these off a loader, and clips itself
        config = accelerator.deepspeed_plugin.deepspeed_config
        config["gradient_clipping"] = arguments.max_grad_norm or 0.0
        config["train_micro_batch_size_per_gpu"] = arguments.per_device_train_batch_size
    use_cores(accelerator, arguments.num_threads)
    keep_freed_memory(accelerator.device)
    if arguments.tf32:
        torch.set_float32_matmul_precision("high")
    return accelerator


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether each process has a part of the weights only."""
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


# ----------------------------------------------------------------------------------------------------------------- data


def read_data(arguments: Arguments, check: bool):
    """Training data, validation data and labels; the weights of the classes must fit to them.

    Raises:
        ValueError, OSError: as `load_data`, and if there is nothing to train on.
    """
    token = arguments.token or arguments.hub_token
    num_channels = arguments.num_channels or config_overrides(arguments).get("num_channels")
    if start := arguments.config_name or arguments.model_name_or_path:
        config, _ = PreTrainedConfig.get_config_dict(start, cache_dir=arguments.cache_dir, token=token)
        check_start(start, config)
        num_channels = config.get("num_channels") if num_channels is None else num_channels
    settings = data_settings(arguments, token=token, num_channels=3 if num_channels is None else num_channels)
    train_dataset, validation_dataset, labels = load_data(settings, check=check)
    if arguments.class_weights not in ([], ["auto"]) and len(arguments.class_weights) != labels.num_ids:
        raise ValueError(
            f"class_weights has {len(arguments.class_weights)} for {labels.num_ids} classes; give one each"
        )
    return train_dataset, validation_dataset, labels


def check_start(start: str, config: dict) -> None:
    """Raises ValueError if the configuration, as read from its file, is one that cannot be trained here.

    What is none of ours may come with code of its own, that of an architecture made after these.
    """
    model_type = config.get("model_type")
    if model_type and not (model_type.startswith("segtx_") or model_type in ARCHITECTURES or "auto_map" in config):
        raise ValueError(
            f"{start} is a {model_type} of another library, which computes its loss itself, whatever is set here; "
            "start from a model of this package, put one of its heads on the backbone (`backbone`), or train it with "
            "transformers' Trainer (examples/own_code/transformers_trainer.py)"
        )


def build_loader(
    arguments: Arguments, accelerator: Accelerator, dataset, processor, labels: Labels, start_step: int
) -> TrainingLoader:
    """The endless batches of a process, from optimizer step `start_step` on."""
    transform = TrainingTransform(
        processor,
        (arguments.crop_size[0], arguments.crop_size[-1]),
        scale_range=(*arguments.scale_range, *[arguments.scale_step] * (arguments.scale_step is not None)),
        aspect_range=tuple(arguments.aspect_range) or None,
        base_size=base_size(arguments, processor),
        max_share=arguments.max_class_share,
        flip_probability=arguments.flip_probability,
        photometric=arguments.photometric,
        photometric_strength=arguments.photometric_strength,
        padding=arguments.crop_padding,
        ignore_index=labels.ignore_index,
        flip_permutation=flip_permutation(labels.id2label),
    )
    try:
        return training_dataloader(
            dataset,
            transform,
            arguments.per_device_train_batch_size,
            seed=arguments.seed,
            start_step=start_step * arguments.gradient_accumulation_steps,
            num_workers=num_workers(arguments, accelerator),
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
            device=accelerator.device,
            cache_bytes=int(arguments.cache_gigabytes * 2**30),
        )
    except OSError as error:  # of `mmap`
        raise OSError(f"cache_gigabytes {arguments.cache_gigabytes} cannot be had ({error}); lower it") from error


def num_workers(arguments: Arguments, accelerator: Accelerator) -> int:
    """Processes that read images, for each process that trains."""
    if arguments.dataloader_num_workers is not None:
        return arguments.dataloader_num_workers
    return 0 if accelerator.device.type == "cpu" else min(8, os.cpu_count() // accelerator.num_processes)


def base_size(arguments: Arguments, processor) -> dict[str, int | None] | None:
    """What scale 1 of the augmentation means, as in `TrainingTransform`."""
    if arguments.base_size:
        return dict(size_of_edges(arguments.base_size))
    if not processor.do_resize:
        return None
    size = dict(processor.size)
    edges = size.get("height"), size.get("width")
    if None in edges or arguments.resize_mode == "squash":
        return size
    return {"shortest_edge": min(edges), "longest_edge": max(edges)}  # of a model's processor: the ratio is kept


# ---------------------------------------------------------------------------------------------------------------- model


def build_model(arguments: Arguments, labels: Labels):
    """The model to train and its image processor: from a checkpoint, or an architecture with random weights.

    Raises:
        ValueError, OSError: if names, folders, sizes or numbers of classes are wrong.
    """
    hub = {"cache_dir": arguments.cache_dir, "token": arguments.token or arguments.hub_token}
    settings = config_overrides(arguments)
    settings |= {"id2label": labels.id2label, "label2id": labels.label2id, "is_binary": labels.num_labels == 1}
    settings["semantic_loss_ignore_index"] = labels.ignore_index
    if arguments.num_channels is not None:
        settings["num_channels"] = arguments.num_channels
    if len(arguments.auxiliary_loss_weight) == 1:
        settings["auxiliary_loss_weight"] = arguments.auxiliary_loss_weight[0]
    if arguments.model_name_or_path:
        model, processor = load_model(
            arguments.model_name_or_path,
            processor_name_or_path=arguments.image_processor_name,
            allow_new_weights=True,  # a head for other classes
            trust_remote_code=arguments.trust_remote_code,
            config=settings,
            revision=arguments.model_revision,
            **hub,
        )
    else:
        model, processor = _new_model(arguments, settings, hub)
    _check_fields(arguments, model.config)
    model.config.palette = [list(color) for color in labels.colors]  # for pictures, as in `segtx predict`
    follow(processor, model)
    set_protocol(arguments, model, processor)
    if arguments.backbone_weights:
        from ..weights import load_backbone

        load_backbone(model, arguments.backbone_weights)
    return model, processor


def _new_model(arguments: Arguments, settings: dict, hub: dict):
    """A model of an architecture, its backbone random or another library's, and its image processor."""
    row = ARCHITECTURES[arguments.architecture or "segformer"]
    if arguments.backbone:
        model, processor = row.model.from_backbone(arguments.backbone, arguments.size, **hub, **settings)
        processor.do_resize = False  # images at their own size, unless told otherwise later
    else:
        if arguments.config_name:
            if Path(arguments.config_name).is_dir() and not (Path(arguments.config_name) / "config.json").is_file():
                raise ValueError(f"config_name {arguments.config_name} is a folder without a config.json")
            config = row.config.from_pretrained(arguments.config_name, **hub, **settings)
        else:
            config = row.config.from_size(arguments.size, **settings) if arguments.size else row.config(**settings)
        model, processor = row.model(config), row.processor(do_resize=False)
    if arguments.image_processor_name:
        processor = row.processor.from_pretrained(arguments.image_processor_name, **hub)
    return model, processor


def _check_fields(arguments: Arguments, config: PreTrainedConfig) -> None:
    """Raises ValueError for fields that the configuration does not have: set, they would do nothing."""
    known = {option.name for option in fields(config)} if is_dataclass(config) else set(vars(config))
    known |= set(config.attribute_map)
    if arguments.decode_head and "decode_head" not in known:
        raise ValueError(f"decode_head {arguments.decode_head}: {type(config).__name__} has one head only; omit it")
    for name in config_overrides(arguments):
        if name not in known:
            close = get_close_matches(name, known, n=1)
            cure = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"config_overrides has {name}, which {type(config).__name__} does not know{cure}")
    if arguments.auxiliary_loss_weight and "auxiliary_loss_weight" not in known:
        raise ValueError(f"auxiliary_loss_weight: {type(config).__name__} has no auxiliary heads; omit it")


def set_protocol(arguments: Arguments, model: nn.Module, processor) -> None:
    """Puts into the processor, which is saved with the model, how images are resized, normalized and shown to it.

    Raises:
        ValueError: if there are not as many means as channels.
    """
    if arguments.image_size:
        processor.do_resize = True
        processor.size = size_of_edges(arguments.image_size, arguments.resize_mode)
        processor.stretch_divisor = arguments.stretch_divisor
    if arguments.size_divisor:
        if arguments.size_divisor % (patch_size := getattr(model.config, "patch_size", 1)):
            raise ValueError(
                f"size_divisor {arguments.size_divisor} is no multiple of the model's patch_size {patch_size}; give one"
            )
        processor.size_divisor = arguments.size_divisor
    if arguments.channel_order == "bgr":
        processor.do_flip_channel_order = True
    if arguments.averaging != "probabilities":
        processor.averaging = arguments.averaging
    channels = getattr(model.config, "num_channels", 3)
    for name in ("image_mean", "image_std"):
        if values := getattr(arguments, name):
            setattr(processor, name, values)
        if len(values := getattr(processor, name)) != channels:
            raise ValueError(f"{name} has {len(values)} values, {list(values)}, for {channels} channels; give one each")
    processor.do_reduce_labels = False  # the data set's label contract has done it
    processor.temperature = None  # of the weights before
    if arguments.eval_mode == "slide":
        window = arguments.window_size or arguments.crop_size
        stride = arguments.window_stride or window
        processor.window_size, processor.window_stride = [window[0], window[-1]], [stride[0], stride[-1]]
        processor.small_images = arguments.small_images
    elif arguments.eval_mode == "whole":
        processor.window_size = processor.window_stride = None


@torch.no_grad()
def try_sizes(arguments: Arguments, model: nn.Module, processor, dataset) -> None:
    """Shows the model one image as an evaluation will, and an empty one of the crop's size.

    So what is wrong with sizes or windows is said before the first step.

    Raises:
        ValueError: as processor and model; and if the network cannot take crops of this size.
    """
    read = getattr(dataset, "__getitems__", lambda indices: [dataset[index] for index in indices])
    batches = (collate_evaluation(read([index]))["images"] for index in range(len(dataset)))
    images = next(filter(None, batches), None)  # those that cannot be read are left out
    if images is None:
        raise ValueError("not one validation image can be read")
    predict(model.eval(), processor, images)
    height, width = arguments.crop_size[0], arguments.crop_size[-1]
    try:
        model(pixel_values=torch.zeros(1, images[0].shape[0], height, width, device=model.device))
    except (RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(f"crop_size {arguments.crop_size} does not suit the network: {error}") from error


def frozen_modules(arguments: Arguments, model: nn.Module) -> list[str]:
    """Names of the modules that stay as they are.

    The neck of a backbone, which no pre-trained weights have, trains with the heads.

    Raises:
        ValueError: if `tune` is linear, and a head has no classifier.
    """
    if arguments.tune == "linear":
        kept = model.classifiers()
        parents = {name[:end] for name in kept for end in range(len(name)) if name[end] == "."}
        names = [name for name, _ in model.named_modules() if name and name not in parents]
        others = [name for name in names if not any(f"{name}.".startswith(f"{layer}.") for layer in kept)]
        return [*arguments.freeze, *(name for name in others if name.rpartition(".")[0] not in others)]
    if arguments.tune == "frozen":
        parts = [f"backbone.{name}" for name, _ in model.backbone.named_children() if name != "neck"]
        return [*arguments.freeze, *(["backbone"] if getattr(model.backbone, "neck", None) is None else parts)]
    return arguments.freeze


def choose_parameters(arguments: Arguments, model: nn.Module) -> None:
    """Leaves only those parameters trainable that `tune` and `freeze` say.

    Raises:
        ValueError: if there is no such module, no peft, or nothing is left.
    """
    if arguments.tune == "lora":
        if importlib.util.find_spec("peft") is None:
            raise ValueError("`tune` lora needs peft; `pip install peft`")
        from . import lora

        lora.add_adapters(model, arguments.lora_rank)
    if names := frozen_modules(arguments, model):
        model.freeze(*names)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("`freeze` leaves nothing to train; name less")


# -------------------------------------------------------------------------------------------- loss, optimizer, schedule


def count_class_weights(arguments: Arguments, train_dataset, labels: Labels) -> list[float] | None:
    """The `class_weights` as numbers; 'auto' counts the classes in up to 2000 training masks, evenly spread."""
    if arguments.class_weights != ["auto"]:
        return [float(weight) for weight in arguments.class_weights] or None
    rows = range(0, len(train_dataset), math.ceil(len(train_dataset) / 2000))
    counts = torch.zeros(labels.num_ids, dtype=torch.int64)
    with ThreadPoolExecutor() as pool:
        for label in pool.map(lambda row: train_dataset[row]["label"], rows):
            label = torch.as_tensor(label).long()
            counts += torch.bincount(label[label != labels.ignore_index], minlength=labels.num_ids)
    return class_weights_from_counts(counts).tolist()


def build_loss(arguments: Arguments, class_weights: list[float] | None, accelerator: Accelerator):
    """The weights of the classes on the device, and the loss of the arguments, for `model.loss_function`.

    Raises:
        ValueError: as `parse_loss`.
    """
    if class_weights is not None:
        class_weights = torch.tensor(class_weights, device=accelerator.device)
    return class_weights, parse_loss(
        arguments.loss,
        class_weights=class_weights,
        label_smoothing=arguments.label_smoothing,
        auxiliary_weights=arguments.auxiliary_loss_weight if len(arguments.auxiliary_loss_weight) > 1 else None,
        mean_over=arguments.loss_mean,
    )


def build_optimizer(arguments: Arguments, model: nn.Module, total_steps: int):
    """Optimizer and schedule of its learning rates.

    Raises:
        ValueError: if the schedule does not fit, or its name is unknown.
    """
    groups = parameter_groups(
        model,
        arguments.learning_rate,
        arguments.weight_decay,
        arguments.head_lr_multiplier,
        arguments.layer_decay,
        arguments.norm_decay,
    )
    if arguments.optimizer == "sgd":
        momentum = {"momentum": arguments.momentum, "nesterov": arguments.nesterov}
        optimizer = torch.optim.SGD(groups, lr=arguments.learning_rate, **momentum, fused=arguments.fused)
    else:
        betas = (arguments.adam_beta1, arguments.adam_beta2)
        optimizer = torch.optim.AdamW(
            groups, lr=arguments.learning_rate, betas=betas, eps=arguments.adam_epsilon, fused=arguments.fused
        )
    return optimizer, build_schedule(arguments, optimizer, total_steps)


def build_schedule(arguments: Arguments, optimizer: torch.optim.Optimizer, total_steps: int):
    """The schedule of the learning rates.

    Raises:
        ValueError: if it does not fit into the steps, or its name is unknown.
    """
    return make_schedule(
        arguments.lr_scheduler_type,
        optimizer,
        arguments.num_warmup_steps,
        total_steps,
        power=arguments.poly_power,
        min_learning_rate=arguments.min_learning_rate,
        warmup_start_factor=arguments.warmup_start_factor,
        decay_share=arguments.lr_decay_share,
    )


def prepare(arguments: Arguments, accelerator: Accelerator, model: nn.Module, total_steps: int):
    """The model as it trains, its optimizer and its schedule.

    Raises:
        ValueError: as `build_optimizer`.
    """
    if arguments.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if arguments.sync_bn and accelerator.num_processes > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if arguments.channels_last and not is_sharded(accelerator):  # shards are cut from weights in the usual order
        model = model.to(memory_format=torch.channels_last)
    optimizer, schedule = build_optimizer(arguments, model, total_steps)
    if arguments.compile:
        model.compile()
    return *accelerator.prepare(model, optimizer), schedule  # which would step the schedule once a process
