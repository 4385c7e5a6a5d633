"""Scores a checkpoint on a data set: tables on the screen; JSON with the protocol and the worst images as files.

    segtx evaluate outputs/segformer_scenes                          # on the embedded scenes
    segtx evaluate outputs/camvid/best --validation_dir data/camvid/val --output_dir scores/camvid
    segtx evaluate outputs/camvid --validation_dir data/camvid/val --scales 0.5 0.75 1 1.25 1.5 1.75 --flip
    segtx evaluate outputs/camvid --from_card       # repeats the number on the card, on the card's data
    torchrun --nproc_per_node 4 -m hf_segtx evaluate nvidia/segformer-b0-finetuned-ade-512-512 \\
        --dataset_name scene_parse_150 --do_reduce_labels

Through image processor, model and post-processing at the images' own sizes, so this is the mIoU of what users of
`pipeline("image-segmentation")` get, unless flags ask for another protocol than the one saved in the checkpoint. The
same with any number of processes and any batch size.

Every number comes with its protocol, and with a fingerprint of images and true label maps, which tells whether two
numbers were measured on the same data. Beside the mean IoU, from the same pass: boundary IoU, IoU of small, medium and
large objects, a 95 % interval of the mean IoU, what is taken for what, and the worst images.

With --output_dir the scores go to `evaluation.json` there, and the worst images beside truth and prediction to
`worst_images.png`. With --html all of it, how far confidences are to be believed, and typical errors are in one page.

    segtx evaluate outputs/camvid/best --validation_dir data/camvid/val --html report.html
    segtx evaluate outputs/camvid/best --validation_dir data/camvid/val --calibrate    # truer confidences, saved there

Exit status: 0, 1 if --from_card measures another number than the card says, 2 if something is wrong.
"""

import argparse
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..data.settings import DataSettings
from ..settings import setting
from .flags import FlagParser, as_flags, check_output_dir
from .model_flags import ModelSettings, load
from .training_flags import named_flags


# The flags of `segtx train` that say which data were scored; with the protocol, all that a measurement depends on.
PLACES = ("dataset_name", "train_dir", "validation_dir")
DATA_ARGUMENTS = f"""
    {" ".join(PLACES)} dataset_config_name revision train_split validation_split train_val_split
    image_column_name label_column_name classes_file do_reduce_labels max_eval_samples allow_lossy_masks
    keep_near_duplicates_together
""".split()
PROTOCOL_ARGUMENTS = """
    mode window_size window_stride image_size resize_mode stretch_divisor small_images averaging scales flip precision
""".split()


@dataclass
class ProtocolSettings:
    """Protocol; what is not given is as saved in the checkpoint's processor."""

    mode: Literal["whole", "slide"] | None = setting(None, "Whole images, or windows that overlap.")
    window_size: list[int] = setting([], "Height and width of a window; one number is a square.", "[1, 100000]", "1-2")
    window_stride: list[int] = setting([], "Rows and columns from a window to the next.", "[1, 100000]", "1-2")
    image_size: list[int] = setting(
        [], "Shortest and longest edge that images are resized to (see resize_mode).", "[1, 100000]", "1-2"
    )
    resize_mode: Literal["keep", "squash", "long"] = setting(
        "keep", "What image_size is: shortest and longest edge, height and width, or the longest edge alone."
    )
    stretch_divisor: int | None = setting(
        None, "Stretch the sides of resized images up to multiples of this many pixels.", "[1, 65536]"
    )
    small_images: Literal["pad", "cut", "enlarge", "resize"] | None = setting(
        None, "Images smaller than a window are padded, or cut it, or are enlarged after resizing, or, at several "
        "scales, resized to it.",
    )  # fmt: skip
    averaging: Literal["probabilities", "logits", "exp"] | None = setting(
        None, "What of several scales and flips is averaged."
    )
    scales: list[float] = setting([1.0], "Factors of the image size; their predictions are averaged.", "[0.01, 100]")
    flip: bool = setting(False, "Average with the mirrored image.")
    precision: Literal["fp32", "bf16", "fp16"] = setting("fp32", "Of the model (autocast).")


@dataclass
class EvaluationSettings:
    """Work and results."""

    output_dir: str | None = setting(None, "Folder for evaluation.json and worst_images.png; else only the screen.")
    html: str | None = setting(None, "HTML file for a report on the model; takes more passes over the data.")
    calibrate: bool = setting(
        False,
        "Fit the temperature of confidences to these data, which should not be those of the training, and save it with "
        "the model; label maps stay as they are. One more pass.",
    )
    worst: int = setting(5, "How many of the worst images to name and to draw.", "[0, inf)")
    classes_only: bool = setting(False, "The class table only: a little faster.")
    batch_size: int = setting(1, "Images that a process reads at a time.", "[1, inf)")
    window_batch_size: int = setting(4, "Windows that go through the model together.", "[1, inf)")
    num_workers: int = setting(0, "Processes that read images, for each process.", "[0, 1024]")


def parse_arguments(command_line: list[str]) -> tuple[FlagParser, argparse.Namespace]:
    """The parser and the arguments; with --from_card those of the card's measurement come first, and `card` is that
    measurement."""
    parser = FlagParser("evaluate", __doc__)
    parser.add_argument("model", help="Folder of a saved model (an output folder, its best or last), or Hub name.")
    parser.add_argument(
        "--from_card",
        nargs="?",
        const="",
        metavar="JSON",
        help="Repeat the measurement of the model's card (or of a file that an evaluation wrote) and compare: exit "
        "status 1 if it is not the same. Its data are used unless flags say where they are now.",
    )
    parser.add_dataclass(DataSettings, {*DATA_ARGUMENTS, "on_error"} - {"train_split"})
    parser.add_argument(
        "--train_split", type=str, help="Split of which training held out a part, if none is for validation."
    )
    for dataclass_ in (ProtocolSettings, EvaluationSettings, ModelSettings):
        parser.add_dataclass(dataclass_)
    arguments = parser.parse_args(command_line)
    card = None
    if arguments.from_card is not None:
        from ..evaluation import read_card

        try:
            card = read_card(arguments.model, arguments.from_card, cache_dir=arguments.cache_dir, token=arguments.token)
        except ValueError as error:
            raise ValueError(as_flags(str(error), ["from_card"])) from error
        given = any(getattr(arguments, name) for name in PLACES)
        of_card = parser.parse_args([arguments.model, *words_of_card(card, without_places=given)])
        arguments = parser.parse_args(command_line, of_card)  # whose values are kept where the command line has none
    arguments.card = card
    return parser, arguments


def words_of_card(card: dict, without_places: bool = False) -> list[str]:
    """The flags that say on which data and with which protocol the card's number was measured."""
    words = []
    # a training saved its protocol in the processor, whatever its flags of the same names mean; we write "flags"
    known = [*DATA_ARGUMENTS, *PROTOCOL_ARGUMENTS] if "flags" in card else DATA_ARGUMENTS
    for line in card.get("flags", card.get("arguments", [])):
        flag, *values = shlex.split(line)
        name = flag.removeprefix("--")
        if name in known and not (without_places and name in PLACES):
            words += [flag, *values]
    if "--dataset_name" in words and "--train_split" not in words:
        words += ["--train_split", "train"]  # the default of training
    return words


def flags_of(arguments: argparse.Namespace) -> list[str]:
    """The flags that repeat the measurement, one a text, as a training writes them into all_results.json."""
    lines = []
    for name in (*DATA_ARGUMENTS, *PROTOCOL_ARGUMENTS):
        value = getattr(arguments, name)
        if value not in (None, False, []):
            lines.append(shlex.join([f"--{name}", *map(str, value if isinstance(value, list) else [value])]))
    return lines


def data_settings(parser: FlagParser, arguments: argparse.Namespace, num_channels: int) -> DataSettings:
    """What to read: validation data alone, or training data too, of which a part was held out."""
    settings = parser.values_of(DataSettings, arguments)
    settings.num_channels = num_channels
    if settings.validation_dir:
        settings.train_dir = None  # no part of it was held out
    elif settings.train_dir and not settings.train_split:
        settings.train_split = "train"
    return settings


def evaluate(parser: FlagParser, arguments: argparse.Namespace) -> dict:
    """Evaluates and reports; returns what goes into the JSON file, with "is_as_on_card" if there is a card.

    Raises:
        ValueError, OSError: for what is wrong with checkpoint or data, e.g. class names that differ.
    """
    settings = parser.values_of(EvaluationSettings, arguments)
    protocol = vars(parser.values_of(ProtocolSettings, arguments))
    check_output_dir(settings.output_dir)
    check_calibration(settings, protocol, arguments.model)
    model_settings, card = parser.values_of(ModelSettings, arguments), arguments.card
    parser.values_of(DataSettings, arguments)  # checked before the model is loaded
    import torch
    from accelerate import PartialState

    from ..calibration import calibrate, save_temperature
    from ..data import load_data
    from ..evaluation import autocast, check_data_of_card, comparison_with_card, score, set_protocol, worst_picture
    from ..model_report import write_report

    if settings.output_dir:
        Path(settings.output_dir).mkdir(parents=True, exist_ok=True)
    process = PartialState(cpu=model_settings.device == "cpu" or not torch.accelerator.is_available())
    if process.num_processes > 1:
        model_settings.device = str(process.device)
    model, processor = load(arguments.model, model_settings, optimize=protocol["precision"] == "fp32")
    views = {name: protocol.pop(name) for name in ("scales", "flip")}
    precision = protocol.pop("precision")
    set_protocol(processor, **protocol)
    try:
        data = data_settings(parser, arguments, getattr(model.config, "num_channels", 3))
        _, dataset, labels = load_data(data, check=process.is_main_process)
    except ValueError as error:
        if card is None:
            raise
        raise ValueError(f"{error} (data of the card; give validation_dir or dataset_name)") from error
    try:
        labels.check_names(model.config.id2label, str(arguments.model))
    except ValueError as error:
        if any(getattr(data, name) for name in PLACES):
            raise
        raise ValueError(f"{error}, or give validation_dir or dataset_name: these are the drawn scenes") from error
    if card is not None and arguments.on_error == "raise":  # before the work
        check_data_of_card(card, images=len(dataset))
    batches = {name: getattr(settings, name) for name in ("batch_size", "window_batch_size", "num_workers", "worst")}
    options = {"precision": precision, "details": not settings.classes_only, **batches}
    scores = score(model, processor, dataset, labels, **views, **options)
    where = next((getattr(data, name) for name in PLACES if getattr(data, name)), "the scenes of hf_segtx")
    results = {"model": arguments.model, "data": where, "flags": flags_of(arguments), **scores.results}
    if card is not None:
        check_data_of_card(card, images=results["images"], data_fingerprint=results["data_fingerprint"])
        results["is_as_on_card"], text = comparison_with_card(card, results)
        scores.tables.append(text)
    calibration = None
    if settings.html or settings.calibrate:
        with autocast(model, precision):
            calibration = calibrate(model, processor, dataset, num_workers=settings.num_workers, **views)
        results["calibration"] = calibration.as_json()
        scores.tables.append(str(calibration))
    if process.is_main_process:
        print(*scores.tables, sep="\n\n")
        if settings.output_dir:
            text = json.dumps(results, indent=2, allow_nan=False) + "\n"
            Path(settings.output_dir, "evaluation.json").write_text(text, encoding="utf-8")
            if scores.worst:
                picture = worst_picture(model, processor, dataset, labels, scores, **views)
                picture.save(Path(settings.output_dir, "worst_images.png"))
        if settings.calibrate:
            save_temperature(arguments.model, calibration.temperature)
        if settings.html:
            write_report(settings.html, model, processor, dataset, labels, results, scores.worst, calibration, **views)
    return results


def check_calibration(settings: EvaluationSettings, protocol: dict, model: str) -> None:
    """Raises ValueError if there would be no place for the temperature, or a report without its parts."""
    if settings.calibrate and not Path(model, "config.json").is_file():
        raise ValueError(f"--calibrate saves into the folder of a model, and {model} is none; download it first")
    if settings.calibrate and Path(model, "export.json").is_file():
        raise ValueError(
            f"--calibrate: {model} is exported, its graph stays as it is; calibrate the model, then export"
        )
    if settings.calibrate and (protocol["flip"] or protocol["scales"] != [1]):
        raise ValueError(
            "--calibrate: the temperature is kept for predictions of one scale without flips, and averages of several "
            "need another one; omit --scales and --flip (--html says how far their confidences are right)"
        )
    if settings.html and settings.classes_only:
        raise ValueError("--html shows what --classes_only omits; omit one of them")
    if settings.html and Path(settings.html).is_dir():
        raise ValueError(f"--html {settings.html} is a folder; give the name of a file in it")
    if settings.html:
        Path(settings.html).absolute().parent.mkdir(parents=True, exist_ok=True)


def run(command_line: list[str]) -> int:
    """The command; returns its exit status."""
    parser, arguments = parse_arguments(command_line)
    with named_flags(ProtocolSettings, EvaluationSettings, ModelSettings):
        results = evaluate(parser, arguments)
    return 0 if results.get("is_as_on_card", True) else 1
