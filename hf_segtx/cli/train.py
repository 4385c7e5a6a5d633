"""Trains a semantic segmentation model, on one CPU or many GPUs.

    accelerate launch examples/train.py                    # no arguments: a small SegFormer on embedded scenes
    python examples/train.py --train_dir data/train --validation_dir data/val --architecture segformer --size b0
    accelerate launch examples/train.py --recipe examples/recipes/segformer_b0_ade20k_512.args --learning_rate 3e-5
    python examples/train.py --recipe outputs/run/train.args --resume_from_checkpoint latest
    python examples/train.py --help

What comes out, in `--output_dir`:

    config.json model.safetensors preprocessor_config.json    the final model, for `from_pretrained` and `pipeline`
    README.md all_results.json predictions.png curves.png     its card, scores with their protocol, and pictures
    train.args                                                the arguments of the run, a recipe of its own
    step_N/                                                   checkpoints: a loadable model and `training_state/`
    last -> step_N  best -> step_M                            links to the newest and to the best checkpoint

The final model has the weights of the last step, as papers report (averaged ones with `--ema_decay`);
`--load_best_model_at_end` takes those of the best evaluation instead.

A checkpoint is written under another name and renamed when it is whole, so `step_N` is never torn. A run that was
killed and resumed takes the same steps as one that was not: weights, optimizer, schedule, scaler, averages and the
states of all random generators are restored, the position in the data follows from the step, and what happens to an
image from (seed, epoch, index). On the CPU the weights come out bit-identical. SIGTERM, with which clusters announce
that a machine is taken away, lets the step (and an evaluation that is due) end, saves, prints the command that goes
on, and ends with exit status 143. Resuming with arguments that would make another run is refused.

Steps, epochs and batches: a step is one update of the weights with `total_batch_size` images, or
`per_device_train_batch_size * gradient_accumulation_steps * processes`. The loss of a step is the mean over all valid
pixels of these images, so neither accumulation nor the number of processes changes it (but for ohem, dice and lovasz,
and batch norms, which see a micro-batch of a process; `--sync_bn`: of all processes). The images are an endless
stream, a new permutation an epoch; a batch that reaches the end of an epoch goes on with the next one. A step whose
loss or gradient is not finite is left out and counted.

Several GPUs and machines: `accelerate launch --config_file examples/accelerate/FILE examples/train.py ...`.
"""

import copy
import importlib.util
import json
import math
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import (
    DistributedType,
    GradientAccumulationPlugin,
    broadcast,
    broadcast_object_list,
    gather_object,
    set_seed,
)
from tqdm.auto import tqdm
from transformers import PreTrainedConfig
from transformers.image_utils import SizeDict

import hf_segtx

from ..architectures import ARCHITECTURES
from ..data import load_data
from ..data.augmentation import TrainingTransform
from ..data.labels import flip_permutation
from ..data.loaders import training_dataloader
from ..hub import check_token, push, write_card
from ..inference import as_json, evaluate, load_model, predict, protocol
from ..losses import class_weights_from_counts, parse_loss
from ..metrics import class_table
from ..training.arguments import (
    DEFAULT_OUTPUT_DIR,
    FREE_ARGUMENTS,
    MEANS,
    Arguments,
    check_arguments,
)
from ..training.checkpoints import (
    checkpoint_to_resume,
    delete_partial,
    delete_run,
    point,
    read_state,
    save_checkpoint,
    save_final,
)
from ..training.machine import is_launched, keep_freed_memory, machine, peak_memory, use_all_cores
from ..training.optim import EMA, make_schedule, parameter_groups
from ..training.recipes import as_recipe
from ..visualization import comparison, training_curves
from .training_flags import parse_training as parse_arguments


MODEL_CARDS = Path(__file__).resolve().parents[2] / "model_cards"


class UserError(Exception):
    """What whoever started the run can cure: shown as a message, without a traceback."""


class Stopped(Exception):
    """Ends a run that got SIGTERM, after its checkpoint was written."""


stop_requested = threading.Event()  # set by SIGTERM, looked at after each step


def claim_output_dir(arguments: Arguments) -> Path:
    """Decides where the output goes and makes sure that it can be written and holds no other run.

    Raises:
        ValueError, OSError: if the folder is not empty or cannot be written.
    """
    resume = arguments.resume_from_checkpoint
    if arguments.output_dir:
        folder = Path(arguments.output_dir)
    elif resume not in (None, "latest"):
        folder = Path(resume).resolve().parent
    else:
        folder = Path(DEFAULT_OUTPUT_DIR)
        numbered = [folder] + [Path(f"{folder}_{number}") for number in range(2, 1000)]
        taken = [path for path in numbered if path.is_dir() and any(path.iterdir())]
        if resume is None:
            folder = next(path for path in numbered if path not in taken)
        elif taken:
            folder = max(taken, key=lambda path: path.stat().st_mtime)
    if folder.is_dir() and any(folder.iterdir()) and resume is None:
        if not arguments.overwrite_output_dir:
            raise ValueError(
                f"output_dir {folder} is not empty. To go on with the run in it, add --resume_from_checkpoint latest; "
                "to delete that run, add --overwrite_output_dir; or choose another --output_dir"
            )
        delete_run(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".partial-test").write_text("")
        (folder / ".partial-test").unlink()
    except OSError as error:
        raise ValueError(f"cannot write to output_dir {folder} ({error}); choose another --output_dir") from error
    delete_partial(folder)
    return folder


# ------------------------------------------------------------------------------------------------------------- model


def build_model(arguments: Arguments, labels):
    """The model to train and its image processor: from a checkpoint, or an architecture with random weights.

    Raises:
        ValueError, OSError: if names, folders, sizes or numbers of classes are wrong.
    """
    hub = {"cache_dir": arguments.cache_dir, "token": arguments.token or arguments.hub_token}
    settings = json.loads(arguments.config_overrides or "{}")
    settings |= {"id2label": labels.id2label, "label2id": labels.label2id, "is_binary": labels.num_labels == 1}
    settings["semantic_loss_ignore_index"] = labels.ignore_index
    if len(arguments.auxiliary_loss_weight) == 1:
        settings["auxiliary_loss_weight"] = arguments.auxiliary_loss_weight[0]
    if arguments.model_name_or_path:
        if arguments.size or arguments.architecture:
            raise ValueError("--model_name_or_path comes with an architecture and a size; leave the other two away")
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
        row = ARCHITECTURES[arguments.architecture or "segformer"]
        if arguments.config_name:
            config = row.config.from_pretrained(arguments.config_name, **hub, **settings)
        else:
            config = row.config.from_size(arguments.size, **settings) if arguments.size else row.config(**settings)
        model = row.model(config)
        if arguments.image_processor_name:
            processor = row.processor.from_pretrained(arguments.image_processor_name, **hub)
        else:
            processor = row.processor(do_resize=False)  # images at their own size, unless told otherwise below
    model.config.palette = [list(color) for color in labels.colors]  # for pictures, as in `examples/predict.py`
    if arguments.image_size:
        if len(arguments.image_size) > 2:
            raise ValueError(f"--image_size takes the shortest and the longest edge, not {arguments.image_size}")
        processor.do_resize = True
        processor.size = SizeDict(**dict(zip(("shortest_edge", "longest_edge"), arguments.image_size)))
    for name in ("image_mean", "image_std"):
        if values := getattr(arguments, name):
            channels = getattr(model.config, "num_channels", 3)
            if len(values) != channels:
                raise ValueError(f"{len(values)} values for --{name}; give one a channel: {channels}")
            if not all(0 <= value <= 1 for value in values):
                raise ValueError(f"--{name} {values}: values are of 0-1; divide those of 0-255 by 255")
            setattr(processor, name, values)
    processor.do_reduce_labels = False  # the data set's label contract has done it
    if arguments.eval_mode == "slide":
        window = arguments.window_size or arguments.crop_size
        stride = arguments.window_stride or window
        processor.window_size, processor.window_stride = [window[0], window[-1]], [stride[0], stride[-1]]
    elif arguments.eval_mode == "whole":
        processor.window_size = processor.window_stride = None
    if arguments.backbone_weights:
        from ..weights import load_backbone

        load_backbone(model, arguments.backbone_weights)
    return model, processor


def choose_parameters(arguments: Arguments, model) -> list:
    """Leaves only those parameters trainable that `--tune` and `--freeze` say; returns the frozen modules.

    Raises:
        ValueError: if there is no such module, or no peft.
    """
    if arguments.tune == "lora":
        if importlib.util.find_spec("peft") is None:
            raise ValueError("--tune lora needs peft; `pip install peft`")
        from ..training import lora

        lora.add_adapters(model, arguments.lora_rank)
    frozen = []
    for name in [*arguments.freeze, *["backbone"] * (arguments.tune == "linear")]:
        try:
            frozen.append(model.get_submodule(name).requires_grad_(False))
        except AttributeError as error:
            known = ", ".join(name for name, _ in model.backbone.named_children())
            raise ValueError(f"--freeze {name}: there is no such module; the backbone has {known}") from error
    return frozen


def base_size(processor) -> tuple[int, int] | None:
    """What scale 1 of the augmentation means: (shortest, longest) edge in pixels; None is each image's own size."""
    if not processor.do_resize:
        return None
    size = dict(processor.size)
    edges = [size.get("height"), size.get("width")]
    if None in edges:
        edges = [size["shortest_edge"], size.get("longest_edge") or sys.maxsize]
    return min(edges), max(edges)


def build_optimizer(arguments: Arguments, model, total_steps: int):
    """Optimizer and schedule of its learning rates.

    Raises:
        ValueError: if the schedule does not fit, or its name is unknown.
    """
    groups = parameter_groups(
        model, arguments.learning_rate, arguments.weight_decay, arguments.head_lr_multiplier, arguments.layer_decay
    )
    if arguments.optimizer == "sgd":
        momentum = {"momentum": arguments.momentum, "nesterov": arguments.nesterov}
        optimizer = torch.optim.SGD(groups, lr=arguments.learning_rate, **momentum, fused=arguments.fused)
    else:
        betas = (arguments.adam_beta1, arguments.adam_beta2)
        optimizer = torch.optim.AdamW(
            groups, lr=arguments.learning_rate, betas=betas, eps=arguments.adam_epsilon, fused=arguments.fused
        )
    return optimizer, make_schedule(
        arguments.lr_scheduler_type,
        optimizer,
        arguments.num_warmup_steps,
        total_steps,
        power=arguments.poly_power,
        min_learning_rate=arguments.min_learning_rate,
        warmup_start_factor=arguments.warmup_start_factor,
        decay_share=arguments.lr_decay_share,
    )


def prepare(arguments: Arguments, accelerator: Accelerator, model, total_steps: int):
    """The model as it trains, its optimizer and its schedule.

    Raises:
        ValueError: as `build_optimizer`.
    """
    if arguments.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if arguments.sync_bn and accelerator.num_processes > 1:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if arguments.channels_last and not is_sharded(accelerator):  # shards are cut from weights in the usual order
        model = model.to(memory_format=torch.channels_last)
    optimizer, schedule = build_optimizer(arguments, model, total_steps)
    if arguments.compile:
        model.compile()
    return *accelerator.prepare(model, optimizer), schedule  # which would step the schedule once a process


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether each process has a part of the weights only."""
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


# --------------------------------------------------------------------------------------------------------- training


def read_data(arguments: Arguments, check: bool):
    """Training data, validation data and labels; the weights of the classes must fit to them.

    Raises:
        ValueError, OSError: as `load_data`, and if there is nothing to train on.
    """
    if arguments.validation_dir and not arguments.train_dir:
        raise ValueError(f"--validation_dir {arguments.validation_dir} without --train_dir; give both")
    names = (
        "dataset_name dataset_config_name train_dir validation_dir train_split validation_split train_val_split seed "
        "image_column_name label_column_name classes_file do_reduce_labels max_train_samples max_eval_samples "
        "cache_dir streaming on_error"
    )
    settings = {name: getattr(arguments, name) for name in names.split()}
    token = arguments.token or arguments.hub_token
    settings["num_channels"] = json.loads(arguments.config_overrides or "{}").get("num_channels", 3)
    start = arguments.config_name or arguments.model_name_or_path
    if start and "num_channels" not in (arguments.config_overrides or ""):
        config, _ = PreTrainedConfig.get_config_dict(start, cache_dir=arguments.cache_dir, token=token)
        settings["num_channels"] = config.get("num_channels", 3)
    train_dataset, validation_dataset, labels = load_data(**settings, token=token, check=check)
    if arguments.class_weights not in ([], ["auto"]) and len(arguments.class_weights) != labels.num_ids:
        raise ValueError(f"{len(arguments.class_weights)} --class_weights for {labels.num_ids} classes; give one each")
    return train_dataset, validation_dataset, labels


def weights_of_classes(arguments: Arguments, train_dataset, labels) -> list[float] | None:
    """The `--class_weights` as numbers; 'auto' counts the classes in up to 2000 training masks, evenly spread."""
    if arguments.class_weights != ["auto"]:
        return [float(weight) for weight in arguments.class_weights] or None
    rows = range(0, len(train_dataset), math.ceil(len(train_dataset) / 2000))
    counts = torch.zeros(labels.num_ids, dtype=torch.int64)
    with ThreadPoolExecutor() as pool:
        for label in pool.map(lambda row: train_dataset[row]["label"], rows):
            label = torch.as_tensor(label).long()
            counts += torch.bincount(label[label != labels.ignore_index], minlength=labels.num_ids)
    return class_weights_from_counts(counts).tolist()


def build_loss(arguments: Arguments, class_weights, accelerator: Accelerator):
    """The loss of the arguments, for `model.loss_function`.

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
    )


def split_batch(arguments: Arguments, num_processes: int, on_cpu: bool) -> None:
    """Sets micro-batch and accumulation so that a step has `total_batch_size` images, whatever there are of processes.

    Raises:
        ValueError: if the processes cannot share the images evenly, or cannot synchronise batch norms.
    """
    if arguments.sync_bn and on_cpu and num_processes > 1:
        raise ValueError("--sync_bn needs GPUs: torch has no synchronised batch norm for several processes on CPUs")
    if arguments.total_batch_size is None:
        return
    images, rest = divmod(arguments.total_batch_size, num_processes)
    if rest:
        raise ValueError(
            f"--total_batch_size {arguments.total_batch_size} cannot be shared by {num_processes} processes; start as "
            "many as divide it"
        )
    largest = min(arguments.per_device_train_batch_size, images)
    micro_batch = next(size for size in range(largest, 0, -1) if images % size == 0)
    arguments.per_device_train_batch_size = micro_batch
    arguments.gradient_accumulation_steps = images // micro_batch


def means(accelerator: Accelerator, *numbers) -> list[float]:
    """The mean of each number over all processes."""
    numbers = [number.full_tensor() if hasattr(number, "full_tensor") else number for number in numbers]  # FSDP's
    tensors = [torch.as_tensor(number, dtype=torch.float32, device=accelerator.device) for number in numbers]
    return accelerator.reduce(torch.stack(tensors), "mean").tolist()


def loss_shares(micro_batches: list[dict], ignore_index: int, class_weights, accelerator: Accelerator) -> torch.Tensor:
    """Factors by which micro-batches' mean losses add up to the mean over all valid pixels of a step.

    A micro-batch with few valid pixels must not count as much as a full one. Pixels count with their class weights, as
    in the mean of the weighted loss. The number of processes is there because gradients are averaged over them.
    """
    valid = [batch["labels"][batch["labels"] != ignore_index] for batch in micro_batches]
    if class_weights is None:
        pixels = torch.tensor([float(ids.numel()) for ids in valid], device=accelerator.device)
    else:
        pixels = torch.stack([class_weights[ids].sum() for ids in valid])
    total = accelerator.reduce(pixels.sum(), "sum")
    return pixels * accelerator.num_processes / total.clamp(min=torch.finfo(total.dtype).tiny)


def files_of_images(loader, first: int, stop: int) -> list[str]:
    """Names of the samples number `first` to `stop` of the endless stream."""
    batches, dataset = getattr(loader.batches, "batches", loader.batches), loader.dataset.dataset
    length = len(dataset)
    rows = {int(batches.order(position // length)[position % length]) for position in range(first, stop)}
    return sorted(dataset[row]["name"] for row in rows)


def losses(state: dict) -> list[dict]:
    """What was logged of the steps that were taken."""
    return [entry for entry in state["history"] if entry["loss"] is not None]


def draw_predictions(model, processor, dataset, labels):
    """Four images, evenly spread (neighbours may be frames of one video), with truths and predictions."""
    count = min(4, len(dataset))
    shown = []
    for index in range(count):
        try:
            shown.append(dataset[index * len(dataset) // count])
        except ValueError:  # of a sample that --on_error skip left out of the evaluation, too
            continue
    images, truths = [item["image"] for item in shown], [item["label"] for item in shown]
    label_maps = [label_map.cpu().numpy() for label_map in predict(model.eval(), processor, images)]
    return comparison(images, truths, label_maps, list(labels.id2label.values()), labels.colors, labels.ignore_index)


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


def describe(arguments: Arguments, results: dict, model_type: str, name: str, images_per_step: int) -> None:
    """Writes the model card, if the architecture has a template: those of other libraries have none."""
    template = MODEL_CARDS / f"{model_type.removeprefix('segtx_')}.md"
    if template.is_file():
        write_card(
            Path(arguments.output_dir),
            template,
            results,
            name=name,
            data=arguments.dataset_name or arguments.train_dir or "the scenes that hf_segtx draws",
            dataset_name=arguments.dataset_name,
            start=arguments.model_name_or_path or arguments.backbone_weights,
            license=arguments.license,
            training=f"{results['step']} steps of {images_per_step} images on {results['machine']}; the arguments of "
            f"`examples/train.py`:\n\n```\n{as_recipe(arguments)}```",
        )


def main(arguments: Arguments, build_model=build_model) -> dict:
    """Trains, evaluates and saves; returns what `all_results.json` holds.

    Args:
        build_model: (arguments, labels) -> (model, image processor); another one trains another model in this loop.

    Raises:
        UserError: before training, for what is wrong with arguments, folders or data; in it, if the loss is not finite.
    """
    on_cpu = not torch.accelerator.is_available()  # said aloud, else processes of torchrun do not find each other
    process = PartialState(cpu=on_cpu)

    def everywhere(function, *inputs, only_main: bool = False):
        """The function's result; what goes wrong in the main process is a UserError in all of them, so none waits."""
        result = error = None
        if process.is_main_process or not only_main:
            try:
                result = function(*inputs)
            except (ValueError, OSError) as caught:
                error = caught
        box = [str(error) if error else None, result if only_main else None]
        broadcast_object_list(box)
        if box[0] or error:
            raise UserError(box[0] or str(error)) from error
        return box[1] if only_main else result

    in_main_process = partial(everywhere, only_main=True)

    # ---- checks that need neither data nor model, then the data, then the model
    everywhere(check_arguments, arguments)
    token = arguments.hub_token or arguments.token
    user = in_main_process(check_token, token) if arguments.push_to_hub else None
    everywhere(split_batch, arguments, process.num_processes, on_cpu)
    accumulation_steps = arguments.gradient_accumulation_steps
    accumulation = GradientAccumulationPlugin(num_steps=accumulation_steps, sync_with_dataloader=False)
    output_dir = in_main_process(claim_output_dir, arguments)
    arguments.output_dir = str(output_dir)
    checkpoint = in_main_process(checkpoint_to_resume, arguments.resume_from_checkpoint, output_dir)
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=arguments.mixed_precision,
        gradient_accumulation_plugin=accumulation,
        log_with=arguments.report_to if arguments.with_tracking else None,
        project_dir=output_dir,
    )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:  # it would read these off a loader, and clips itself
        accelerator.deepspeed_plugin.deepspeed_config["gradient_clipping"] = arguments.max_grad_norm or 0.0
        accelerator.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = (
            arguments.per_device_train_batch_size
        )
    use_all_cores(accelerator)
    keep_freed_memory(accelerator)
    if arguments.tf32:
        torch.set_float32_matmul_precision("high")
    num_workers = arguments.dataloader_num_workers
    if num_workers is None:
        num_workers = 0 if accelerator.device.type == "cpu" else min(8, os.cpu_count() // accelerator.num_processes)
    train_dataset, validation_dataset, labels = everywhere(read_data, arguments, process.is_main_process)
    set_seed(arguments.seed)
    model, processor = everywhere(build_model, arguments, labels)
    transformers.utils.logging.disable_progress_bar()  # of the files that every checkpoint writes
    names = list(labels.id2label.values())

    # ---- model, optimizer, schedule
    images_per_step = arguments.per_device_train_batch_size * accumulation_steps * accelerator.num_processes
    steps_per_epoch = math.ceil(len(train_dataset) / images_per_step)
    total_steps = arguments.max_train_steps or math.ceil(arguments.num_train_epochs * steps_per_epoch)
    evaluation_steps = arguments.evaluation_steps or math.ceil(total_steps / 5)
    checkpointing_steps = evaluation_steps
    if arguments.checkpointing_steps:
        every = arguments.checkpointing_steps
        checkpointing_steps = steps_per_epoch if every == "epoch" else int(every)
    class_weights = in_main_process(weights_of_classes, arguments, train_dataset, labels)
    class_weights, model.loss_function = everywhere(build_loss, arguments, class_weights, accelerator)
    # Where the weights that train are not the ones to evaluate and save, a copy of the model takes those.
    needs_copy = is_sharded(accelerator) or arguments.tune == "lora"
    copied = copy.deepcopy(model).to(accelerator.device) if needs_copy else None
    saves_weights = copied is not None or arguments.ema_decay is not None
    if checkpoint is not None and not saves_weights:
        model.load_state_dict(type(model).from_pretrained(checkpoint).state_dict())
    frozen = everywhere(choose_parameters, arguments, model)
    model, optimizer, schedule = everywhere(prepare, arguments, accelerator, model, total_steps)
    bare_model = accelerator.unwrap_model(model)
    ema = EMA(bare_model, arguments.ema_decay) if arguments.ema_decay is not None else None
    if ema:
        accelerator.register_for_checkpointing(ema)
    if not saves_weights:  # `save_pretrained` writes them: once is enough
        accelerator.register_save_state_pre_hook(lambda models, weights, folder: weights.clear())
        accelerator.register_load_state_pre_hook(lambda models, folder: models.clear())

    @contextmanager
    def exported():
        """The model as it is evaluated and saved: averaged, gathered from its shards, without adapters."""
        with ema.swapped() if ema else nullcontext():
            plain = bare_model
            if copied is not None:
                plain, weights = copied, accelerator.get_state_dict(model)
                if accelerator.is_main_process:
                    if arguments.tune == "lora":
                        from ..training import lora

                        weights = lora.merge_adapters(weights)
                    plain.load_state_dict(weights)
            # All parameters of a copy; else each process has batch norm statistics of its own.
            for tensor in plain.buffers() if copied is None else plain.state_dict().values():
                broadcast(tensor)
            yield plain

    set_seed(arguments.seed, device_specific=True)  # dropout differs between processes, the initial weights do not

    # ---- where to start
    state = {
        "step": 0,
        "seconds": 0.0,  # of training, without evaluations and checkpoints
        "history": [],  # what was logged, an entry each --logging_steps
        "evaluations": [],
        "best_step": None,
        "best_mean_iou": None,
        "sums": [0, 0.0, 0.0],  # since the last log: steps, their losses, their gradients' norms
        "skipped_steps": 0,
        "skipped_in_a_row": 0,
        "plan": {  # what a resumed run must have in common with this one
            "images_per_step": images_per_step,
            "train_images": len(train_dataset),
            "total_steps": total_steps,
            "processes": accelerator.num_processes,
            **{name: value for name, value in vars(arguments).items() if name not in FREE_ARGUMENTS},
        },
    }
    if checkpoint is not None:
        state = everywhere(read_state, checkpoint, state["plan"])
        schedule.load_state_dict(state.pop("schedule"))
    loader = training_dataloader(
        train_dataset,
        TrainingTransform(
            processor,
            (arguments.crop_size[0], arguments.crop_size[-1]),
            scale_range=tuple(arguments.scale_range),
            base_size=base_size(processor),
            ignore_index=labels.ignore_index,
            flip_permutation=flip_permutation(labels.id2label),
        ),
        arguments.per_device_train_batch_size,
        seed=arguments.seed,
        start_step=state["step"] * accumulation_steps,
        num_workers=num_workers,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
        device=accelerator.device,
        cache_bytes=int(arguments.cache_gigabytes * 2**30),
    )
    batches = iter(loader)
    if arguments.with_tracking:
        config = {key: str(value) for key, value in vars(arguments).items() if "token" not in key}
        for secret in filter(None, (arguments.token, arguments.hub_token)):  # wandb records the command line
            sys.argv = [word.replace(secret, "...") for word in sys.argv]
        name = output_dir.resolve().name
        of_trackers = {"wandb": {"name": name}, "trackio": {"name": name}, "mlflow": {"run_name": name}}
        accelerator.init_trackers("hf_segtx", config, of_trackers)
    if checkpoint is not None:
        accelerator.load_state(checkpoint / "training_state")  # random generators too: nothing may draw from here on
        best = output_dir / f"step_{state['best_step']}"
        if accelerator.is_main_process and best.is_dir():  # a kill may have come before the link
            point(output_dir / "best", best)
    if accelerator.is_main_process:
        (output_dir / "train.args").write_text(as_recipe(arguments))
        print(
            f"{type(bare_model).__name__}, {sum(p.numel() for p in bare_model.parameters()) / 1e6:.2f} M parameters; "
            f"{len(train_dataset)} training and {len(validation_dataset)} validation images, {len(names)} classes\n"
            f"steps {state['step']} to {total_steps} of {images_per_step} images on {accelerator.num_processes} x "
            f"{accelerator.device.type}, precision {accelerator.mixed_precision}; output in {output_dir}"
        )

    # ---- the loop
    def score(plain) -> dict:
        """Evaluates in all processes; the main process prints the table and draws."""
        # A compiled model would be compiled anew for every image size.
        with torch.compiler.set_stance("force_eager") if arguments.compile else nullcontext():
            settings = {"batch_size": arguments.per_device_eval_batch_size, "num_workers": num_workers}
            scores = evaluate(plain, processor, validation_dataset, **settings)
        if accelerator.is_main_process:
            bar.write(f"\nstep {state['step']} of {total_steps}\n{class_table(scores, names)}")
            picture = draw_predictions(plain, processor, validation_dataset, labels)
            picture.save(output_dir / "predictions.png")
            log_picture(accelerator, picture, state["step"])
        return scores

    def train_mode() -> None:
        model.train()
        for module in frozen:
            module.eval()

    def ended() -> bool:
        """After the last step, or when as many evaluations as the patience allows came after the best one."""
        later = [entry for entry in state["evaluations"] if entry["step"] > (state["best_step"] or 0)]
        return state["step"] == total_steps or len(later) >= (arguments.early_stopping_patience or math.inf)

    bar = tqdm(
        total=total_steps,
        initial=state["step"],
        unit="step",
        disable=not accelerator.is_main_process,
        mininterval=0.1 if sys.stderr.isatty() else 10,  # a log file gets a line every ten seconds
    )
    train_mode()
    interval_steps, waited, interval_start = 0, 0.0, time.perf_counter()
    scores = None
    while not ended():
        # ---- one training step ----------------------------------------------------------------------------------
        wait_start = time.perf_counter()
        micro_batches = [next(batches) for _ in range(accumulation_steps)]
        waited += time.perf_counter() - wait_start
        shares = loss_shares(micro_batches, labels.ignore_index, class_weights, accelerator)
        kept_buffers = [buffer.clone() for buffer in model.buffers()]
        step_loss = torch.zeros((), device=accelerator.device)
        for batch, share in zip(micro_batches, shares, strict=True):
            with accelerator.accumulate(model):  # processes exchange gradients in the last micro-batch only
                loss = model(**batch).loss * share
                accelerator.backward(loss * accumulation_steps)  # which divides by their number
            step_loss += loss.detach()
        gradient_norm = accelerator.clip_grad_norm_(model.parameters(), arguments.max_grad_norm or math.inf)
        # Means over the processes, so that all of them decide alike.
        step_loss, gradient_norm, stop = means(accelerator, step_loss, gradient_norm, stop_requested.is_set())
        is_finite = math.isfinite(step_loss) and math.isfinite(gradient_norm)
        if is_finite or accelerator.scaler is not None:  # the scaler of fp16 sees it too, and scales less from then on
            optimizer.step()
        if is_finite and ema:
            ema.update()
        learning_rate = schedule.get_last_lr()[0]
        schedule.step()
        optimizer.zero_grad()
        # ---------------------------------------------------------------------------------------------------------
        state["step"] += 1
        interval_steps += 1
        is_end = state["step"] == total_steps
        if is_finite:
            state["skipped_in_a_row"] = 0
            state["sums"] = [sum(pair) for pair in zip(state["sums"], (1, step_loss, gradient_norm), strict=True)]
        else:
            for buffer, kept in zip(model.buffers(), kept_buffers, strict=True):  # batch norm statistics
                buffer.copy_(kept)
            state["skipped_steps"] += 1
            state["skipped_in_a_row"] += 1
            bar.write(f"step {state['step']} left out: loss {step_loss}, norm of the gradient {gradient_norm}")
            if state["skipped_in_a_row"] >= arguments.max_skipped_steps:
                first = state["step"] - arguments.max_skipped_steps
                files = files_of_images(loader, first * images_per_step, state["step"] * images_per_step)
                raise UserError(
                    f"the loss is {step_loss} and the norm of its gradient {gradient_norm}, not finite in "
                    f"{arguments.max_skipped_steps} steps in a row; lower --learning_rate, lengthen "
                    "--num_warmup_steps, clip with --max_grad_norm 1, use bf16 instead of fp16, or look at the files "
                    f"of these steps: {', '.join(files)}"
                )

        if state["step"] % arguments.logging_steps == 0 or is_end:
            seconds = time.perf_counter() - interval_start
            taken, loss_sum, norm_sum = state.pop("sums")
            values = {
                "loss": loss_sum / taken if taken else None,
                "learning_rate": learning_rate,
                "gradient_norm": norm_sum / taken if taken else None,
                "images_per_second": interval_steps * images_per_step / seconds,
                "data_wait_share": waited / seconds,
                "memory_gb": peak_memory(),
                "skipped_steps": state["skipped_steps"],
            }
            shown = {"loss": "loss", "rate": "learning_rate", "images/s": "images_per_second"}
            shown = {short: values[name] or math.nan for short, name in shown.items()}
            bar.set_postfix({short: f"{value:.3g}" for short, value in shown.items()}, refresh=False)
            accelerator.log({name: value for name, value in values.items() if value is not None}, step=state["step"])
            state["history"].append({"step": state["step"], **values})
            state["seconds"] += seconds
            state["sums"] = [0, 0.0, 0.0]
            interval_steps, waited, interval_start = 0, 0.0, time.perf_counter()
        bar.update()

        is_best = False
        if state["step"] % evaluation_steps == 0 or is_end:
            pause = time.perf_counter()
            with exported() as plain:
                scores = score(plain)
            train_mode()
            entry = {"step": state["step"], **{key: float(scores[key]) for key in MEANS}}
            state["evaluations"].append(entry)
            accelerator.log({key: entry[key] for key in MEANS}, step=state["step"])
            best = max(state["evaluations"], key=lambda other: other[arguments.metric_for_best_model])  # the first
            is_best = best is entry
            state["best_step"], state["best_mean_iou"] = best["step"], best["mean_iou"]
            if accelerator.is_main_process:
                training_curves(state["evaluations"], losses(state)).save(output_dir / "curves.png")
            interval_start += time.perf_counter() - pause
        if is_best or is_end or stop or state["step"] % checkpointing_steps == 0:
            pause = time.perf_counter()
            saved = {**state, "schedule": schedule.state_dict()}
            save_checkpoint(accelerator, exported, processor, saved, output_dir, is_best, arguments.save_total_limit)
            interval_start += time.perf_counter() - pause
        if stop and not is_end:
            raise Stopped
    bar.close()

    # ---- the final model, its scores, card and picture
    final_step = state["step"]
    if arguments.load_best_model_at_end and state["best_step"] != final_step:
        final_step, scores = state["best_step"], None
    with exported() as plain:
        if final_step != state["step"]:
            plain.load_state_dict(type(plain).from_pretrained(output_dir / "best").state_dict())
        scores = scores or score(plain)
        if accelerator.is_main_process:
            save_final(plain, processor, output_dir)
    skipped = [error for dataset in (train_dataset, validation_dataset) for error in getattr(dataset, "skipped", [])]
    skipped = sorted(set(gather_object(skipped)))
    results = {
        **as_json(scores, names),
        "protocol": protocol(processor, labels.ignore_index),
        "step": final_step,
        "best_mean_iou": state["best_mean_iou"],
        "best_step": state["best_step"],
        "evaluations": state["evaluations"],
        "losses": losses(state),
        "skipped_steps": state["skipped_steps"],
        "skipped_samples": skipped,
        "training_seconds": round(state["seconds"], 1),
        "training_images_per_second": round(state["step"] * images_per_step / state["seconds"], 2),
        "machine": machine(accelerator),
        "versions": {module.__name__: module.__version__ for module in (hf_segtx, torch, transformers)},
        "arguments": as_recipe(arguments).splitlines(),
    }
    if accelerator.is_main_process:
        (output_dir / "all_results.json").write_text(json.dumps(results, indent=2) + "\n")
        name = arguments.hub_model_id or output_dir.resolve().name
        if user and "/" not in name:  # as the Hub will call it
            name = f"{user}/{name}"
        describe(arguments, results, plain.config.model_type, name, images_per_step)
        print(
            f"mean IoU {100 * results['mean_iou']:.2f} % after step {final_step} "
            f"({results['training_seconds']:.0f} s of training)\n"
            f"model and scores: {output_dir}\npicture (image, truth, prediction): {output_dir / 'predictions.png'}"
        )
        if skipped:
            print("\n".join([f"left out, {len(skipped)} in all:", *skipped]))
        if arguments.push_to_hub:
            try:
                print(f"uploaded to {push(output_dir, name, token)}")
            except ValueError as error:
                raise UserError(str(error)) from error
    accelerator.end_training()
    return results


def run(command_line: list[str]) -> int:
    """The command line: messages instead of tracebacks for what the user can cure; returns the exit status."""
    arguments = None
    stop_requested.clear()
    signal.signal(signal.SIGTERM, lambda *_: stop_requested.set())
    try:
        try:
            arguments = parse_arguments(command_line)
        except (ValueError, OSError) as error:
            raise UserError(str(error)) from error
        main(arguments)
    except UserError as error:
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"\nerror: {error}", file=sys.stderr)  # below the progress bar
        return 2
    except OSError as error:  # a full disk, and the like
        print(f"\nerror: {error} (the run writes to {arguments.output_dir})", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Stopped) as stop:
        recipe = Path((arguments and arguments.output_dir) or "") / "train.args"
        if int(os.environ.get("RANK", 0)) == 0 and recipe.is_file():
            launcher = "accelerate launch" if is_launched() else "python"
            command = f"{launcher} {sys.argv[0]} --recipe {recipe} --resume_from_checkpoint latest"
            print(f"\nstopped; to go on from the last checkpoint:\n{command}", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stop, Stopped) else signal.SIGINT)
    return 0
