"""Scores a checkpoint on a data set: tables on the screen, JSON with the protocol in a file, worst images as a picture.

    python examples/evaluate.py outputs/segformer_scenes                          # on the embedded scenes
    python examples/evaluate.py outputs/camvid/best --validation_dir data/camvid/val --json camvid.json
    python examples/evaluate.py outputs/camvid --validation_dir data/camvid/val --scales 0.5 0.75 1 1.25 1.5 1.75 --flip
    python examples/evaluate.py outputs/camvid --from_card       # repeats the number on the card, on the card's data
    torchrun --nproc_per_node 4 examples/evaluate.py nvidia/segformer-b0-finetuned-ade-512-512 \\
        --dataset_name scene_parse_150 --do_reduce_labels

Through image processor, model and post-processing at the images' own sizes, so this is the mIoU of what users of
`pipeline("image-segmentation")` get, unless flags ask for another protocol than the one saved in the checkpoint. The
same with any number of processes and any batch size.

Every number comes with its protocol, and with a fingerprint of images and true label maps, which tells whether two
numbers were measured on the same data. Beside the mean IoU, from the same pass: boundary IoU, IoU of small, medium and
large objects, a 95 % interval of the mean IoU, what is taken for what, and the worst images (see
`hf_segtx.error_analysis`).

Exit status: 0, 1 if --from_card measures another number than the card says, 2 if something is wrong.
"""

import argparse
import json
import math
import shlex
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from PIL import Image, ImageDraw, ImageFont
from transformers.image_utils import SizeDict

from ..data import load_data
from ..data.labels import Labels
from ..error_analysis import BoundaryIoU, ImageScores, SizeIoU, confusion_pairs, detail_table
from ..inference import as_json, evaluate, load_model, protocol, segment
from ..metrics import class_table, per_cent
from ..visualization import comparison


# Those of train.py that say which data were scored; and with the protocol, all that a measurement depends on.
DATA_ARGUMENTS = """
    dataset_name dataset_config_name train_dir validation_dir train_split validation_split train_val_split
    image_column_name label_column_name classes_file do_reduce_labels max_eval_samples
""".split()
REPEATED_ARGUMENTS = [*DATA_ARGUMENTS, *"mode window_size window_stride image_size scales flip precision".split()]
# Two measurements of one model on other machines differ by rounding in the few pixels where two classes are about
# equally likely; half of a tenth of a per cent is far more than that and less than anybody would report as a change.
TOLERANCE = 0.0005


def parse_arguments(command_line: list[str]) -> argparse.Namespace:
    """The arguments; with --from_card those of the card's measurement come first, and `card` is that measurement."""
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", help="folder of a saved model (an output folder, its best or last), or Hub name")
    parser.add_argument(
        "--from_card",
        nargs="?",
        const="",
        metavar="JSON",
        help="repeat the measurement of the model's card (or of a file that --json wrote) and compare: exit status 1 "
        "if it is not the same; its data are used unless flags say where they are now",
    )

    data = parser.add_argument_group("data; without any the embedded scenes")
    data.add_argument("--validation_dir", help="folder with images/, masks/ and classes.json (here or one folder up)")
    data.add_argument("--train_dir", help="such a folder, of which train.py held out a part: that part is scored")
    data.add_argument("--dataset_name", help="data set on the Hub, or a folder that `datasets` can load")
    data.add_argument("--dataset_config_name", help="configuration of that data set")
    data.add_argument("--validation_split", help="split of that data set; default: validation, val or valid")
    data.add_argument("--train_split", help="split of which train.py held out a part, if there is no validation split")
    data.add_argument("--train_val_split", type=float, default=0.15, help="share that was held out")
    data.add_argument("--image_column_name", help="column of the images, if it cannot be guessed")
    data.add_argument("--label_column_name", help="column of the masks, if it cannot be guessed")
    data.add_argument("--classes_file", help="classes.json or id2label.json, if not beside the data")
    data.add_argument("--do_reduce_labels", action="store_true", help="mask value 0 is void, k is class k - 1")
    data.add_argument("--max_eval_samples", type=int, help="score only so many images, evenly spread")
    data.add_argument(
        "--on_error", choices=["raise", "skip"], default="raise", help="what to do with images that cannot be read"
    )

    how = parser.add_argument_group("protocol; what is not given is as saved in the checkpoint's processor")
    how.add_argument("--mode", choices=["whole", "slide"], help="whole images, or windows that overlap")
    how.add_argument("--window_size", type=int, nargs="+", help="height and width of a window; one number is a square")
    how.add_argument("--window_stride", type=int, nargs="+", help="rows and columns from a window to the next")
    how.add_argument("--image_size", type=int, nargs="+", help="shortest and longest edge images are resized to")
    how.add_argument("--scales", type=float, nargs="+", default=[1.0], help="factors; their scores are averaged")
    how.add_argument("--flip", action="store_true", help="average with the mirrored image")
    how.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32", help="of the model (autocast)")

    parser.add_argument("--cache_dir", help="where downloads are kept")
    parser.add_argument("--token", help="Hub token for downloads")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code that comes with a model")
    parser.add_argument("--batch_size", type=int, default=1, help="images that a process reads at a time")
    parser.add_argument("--window_batch_size", type=int, default=4, help="windows that go through the model together")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that read images")
    parser.add_argument("--json", help="file for all scores")
    parser.add_argument("--worst", type=int, default=5, help="how many of the worst images to name and to draw")
    parser.add_argument("--worst_picture", help="file for these images beside truth and prediction, e.g. worst.png")
    parser.add_argument("--classes_only", action="store_true", help="the class table only: a little faster")
    arguments = parser.parse_args(command_line)
    card = None
    if arguments.from_card is not None:
        card = read_card(arguments)
        of_card = parser.parse_args([arguments.model, *words_of_card(card)])
        arguments = parser.parse_args(command_line, of_card)  # whose values are kept where the command line has none
    arguments.card = card
    return arguments


# ------------------------------------------------------------------------------------------------- what the card says


def read_card(arguments: argparse.Namespace) -> dict:
    """The measurement to repeat: at least "mean_iou"; from all_results.json it has "classes", "arguments", ..., too.

    Raises:
        ValueError: if there is none.
    """
    if arguments.from_card:
        return json.loads(Path(arguments.from_card).read_text())
    model = arguments.model
    try:
        if Path(model).is_dir():
            file = Path(model) / "all_results.json"
        else:
            hub = {"cache_dir": arguments.cache_dir, "token": arguments.token}
            file = Path(hf_hub_download(model, "all_results.json", **hub))
        if file.is_file():
            return json.loads(file.read_text())
    except EntryNotFoundError:
        pass  # not a model of train.py
    except (HfHubHTTPError, HFValidationError) as error:
        raise ValueError(f"{model} is neither a folder nor a model that the Hub gives out: {error}") from error
    card = Path(model) / "README.md" if Path(model).is_dir() else model
    if isinstance(card, str) or card.is_file():
        for result in ModelCard.load(card, token=arguments.token, ignore_metadata_errors=True).data.eval_results or []:
            if result.metric_type == "mean_iou":
                return {"mean_iou": result.metric_value, **(result.metric_args or {})}
    raise ValueError(
        f"the card of {model} gives no mean IoU: no all_results.json, and no README.md with a model-index that has the "
        "metric mean_iou; evaluate without --from_card"
    )


def words_of_card(card: dict) -> list[str]:
    """The flags that say on which data and with which protocol the card's number was measured."""
    words = []
    # train.py saved its protocol in the processor, whatever its flags of the same names mean; --json wrote "flags"
    known = REPEATED_ARGUMENTS if "flags" in card else DATA_ARGUMENTS
    for line in card.get("flags", card.get("arguments", [])):
        name, *values = shlex.split(line)
        if name.removeprefix("--") in known:
            words += [name] if values == ["True"] else [name, *values]
    if "--dataset_name" in words and "--train_split" not in words:
        words += ["--train_split", "train"]  # train.py's default
    return words


def check_data_of_card(card: dict, **measured) -> None:
    """Raises ValueError if the card says that it was measured on other data ("images", "data_fingerprint")."""
    for key, value in measured.items():
        if card.get(key, value) != value:
            raise ValueError(
                f"other data than the card's: {key} is {value} here and {card[key]} on the card; give the same data, "
                "with --validation_dir or --dataset_name, --max_eval_samples, ..."
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


# --------------------------------------------------------------------------------------------------------- evaluation


def set_protocol(processor, arguments: argparse.Namespace) -> None:
    """Changes in the processor what the flags ask for.

    Raises:
        ValueError: for flags that do not go together.
    """
    if wrong := [scale for scale in arguments.scales if scale <= 0]:
        raise ValueError(f"--scales has {wrong[0]:g}; factors are above 0, such as 0.5 0.75 1 1.25 1.5 1.75")
    if arguments.image_size:
        if len(arguments.image_size) > 2:
            raise ValueError(f"--image_size {arguments.image_size} has too many numbers; give shortest, longest edge")
        processor.do_resize = True
        processor.size = SizeDict(**dict(zip(("shortest_edge", "longest_edge"), arguments.image_size)))
    windows = {}
    for name in ("window_size", "window_stride"):
        if values := getattr(arguments, name):
            if len(values) > 2:
                raise ValueError(f"--{name} {values} has {len(values)} numbers; give height and width, or one of both")
            windows[name] = values[0] if len(values) == 1 else values
    if arguments.mode == "whole":
        if windows:
            raise ValueError(f"--mode whole has no windows; leave --{' and --'.join(windows)} away")
        windows = {"window_size": None}
    elif "window_size" in windows:
        windows.setdefault("window_stride", None)  # not that of other windows
    elif (arguments.mode == "slide" or windows) and getattr(processor, "window_size", None) is None:
        raise ValueError(
            f"no window size: the processor of {arguments.model} has none; give --window_size, best that of the crops "
            "that the model was trained with, and --window_stride, such as two thirds of it"
        )
    for name, value in windows.items():
        setattr(processor, name, value)


def check_outputs(arguments: argparse.Namespace) -> None:
    """Makes the folders of the files to write; raises ValueError or OSError now, not at the end, if one cannot be."""
    for file in filter(None, (arguments.json, arguments.worst_picture)):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    kinds = Image.registered_extensions()
    if arguments.worst_picture and Path(arguments.worst_picture).suffix.lower() not in kinds:
        raise ValueError(f"--worst_picture {arguments.worst_picture} names no picture; end it in .png")


def main(arguments: argparse.Namespace) -> dict:
    """Evaluates; returns what goes into the JSON file, with "is_as_on_card" if there is a card.

    Raises:
        ValueError, OSError: for what is wrong with checkpoint or data, e.g. class names that differ.
    """
    card = arguments.card
    check_outputs(arguments)
    process = PartialState(cpu=not torch.accelerator.is_available())
    model, processor = load_model(
        arguments.model,
        cache_dir=arguments.cache_dir,
        token=arguments.token,
        trust_remote_code=arguments.trust_remote_code,
    )
    set_protocol(processor, arguments)
    settings = {name: getattr(arguments, name) for name in DATA_ARGUMENTS}
    if arguments.validation_dir:
        settings["train_dir"] = None  # whose part was not held out
    elif arguments.train_dir and not arguments.train_split:
        settings["train_split"] = "train"
    settings |= {"cache_dir": arguments.cache_dir, "token": arguments.token, "on_error": arguments.on_error}
    settings["num_channels"] = getattr(model.config, "num_channels", 3)
    try:
        _, dataset, labels = load_data(**settings, check=process.is_main_process)
    except ValueError as error:
        if card is None:
            raise
        raise ValueError(f"{error} (data of the card; give --validation_dir or --dataset_name)") from error
    labels.check_names(model.config.id2label, str(arguments.model))
    if card is not None and arguments.on_error == "raise":  # before the work
        check_data_of_card(card, images=len(dataset))
    model.to(process.device)
    classes = list(labels.id2label.values())
    detailed = []
    if not arguments.classes_only:
        detailed = [score(len(classes), labels.ignore_index) for score in (BoundaryIoU, SizeIoU, ImageScores)]
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[arguments.precision]
    autocast = torch.autocast(process.device.type, dtype=dtype, enabled=dtype is not None)
    views = {"scales": arguments.scales, "flip": arguments.flip}
    with autocast:
        scores = evaluate(
            model,
            processor,
            dataset,
            batch_size=arguments.batch_size,
            num_workers=arguments.num_workers,
            window_batch_size=arguments.window_batch_size,
            extra_metrics=detailed,
            **views,
        )
    results = {
        "model": str(arguments.model),
        "data": arguments.dataset_name or arguments.validation_dir or arguments.train_dir or "the scenes of hf_segtx",
        "protocol": protocol(processor, labels.ignore_index, **views),
        "precision": arguments.precision,
        "flags": as_words(arguments),
        **as_json(scores, classes),
    }
    if card is not None:
        check_data_of_card(card, images=results["images"], data_fingerprint=results["data_fingerprint"])
        results["is_as_on_card"], card_text = comparison_with_card(card, results)
    texts = [class_table(scores, classes)]
    if detailed:
        boundary, sizes, images = (metric.compute() for metric in detailed)
        texts.append(detail_table(boundary, sizes, classes))
        add_details(results, boundary, sizes, images, confusion_pairs(scores["confusion_matrix"], classes))
    if process.is_main_process:
        if detailed:
            worst = [i for i in np.argsort(images["image_iou"])[: arguments.worst] if images["image_iou"][i] >= 0]
            items = [dataset[int(i)] for i in worst]
            results["worst_images"] = [
                {"name": str(item["name"]), "mean_iou": float(images["image_iou"][i])}
                for i, item in zip(worst, items, strict=True)
            ]
        texts.append(summary(results))
        if card is not None:
            texts.append(card_text)
        print(*texts, sep="\n\n")
        try:
            if arguments.json:
                Path(arguments.json).write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")
            if detailed and arguments.worst_picture and items:
                with autocast:
                    maps = [segment(model, processor, [item["image"]], **views)[0].label_map for item in items]
                worst_picture(items, maps, results["worst_images"], labels).save(arguments.worst_picture)
        except OSError as error:
            files = " or ".join(filter(None, (arguments.json, arguments.worst_picture)))
            raise OSError(f"{files} cannot be written ({error})") from error
    process.destroy_process_group()
    return results


def as_words(arguments: argparse.Namespace) -> list[str]:
    """The flags that repeat the measurement, one a text, as train.py writes them into all_results.json."""
    lines = []
    for name in REPEATED_ARGUMENTS:
        value = getattr(arguments, name)
        if value not in (None, False):
            lines.append(shlex.join([f"--{name}", *map(str, value if isinstance(value, list) else [value])]))
    return lines


def add_details(results: dict, boundary: dict, sizes: dict, images: dict, pairs: list[dict]) -> None:
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
    results["confusions"] = pairs


def worst_picture(items: list[dict], label_maps: list, scores: list[dict], labels: Labels) -> Image.Image:
    """Images, truths and predictions, with rank and mean IoU in the corner of each image."""
    images = []
    for rank, (item, score) in enumerate(zip(items, scores, strict=True), 1):
        image = item["image"]
        if isinstance(image, torch.Tensor):  # of more channels than PIL knows: the first three, or one
            image = Image.fromarray(np.moveaxis(image[: 3 if len(image) > 2 else 1].expand(3, -1, -1).numpy(), 0, 2))
        image = image.convert("RGB")
        size = max(8, image.width // 16)  # the panel is drawn some 300 pixels wide
        font, text = ImageFont.load_default(size), f"{rank}: {100 * score['mean_iou']:.1f} %"
        draw = ImageDraw.Draw(image)
        draw.rectangle(draw.textbbox((size / 3, size / 3), text, font=font), fill="white")
        draw.text((size / 3, size / 3), text, fill="black", font=font)
        images.append(image)
    truths = [item["label"] for item in items]
    return comparison(images, truths, label_maps, list(labels.id2label.values()), labels.colors, labels.ignore_index)


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


def run(command_line: list[str]) -> int:
    """The command; returns its exit status."""
    results = main(parse_arguments(command_line))
    return 0 if results.get("is_as_on_card", True) else 1
