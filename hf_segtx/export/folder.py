"""An exported folder: graphs in one or several formats, what runners need, a verification, and a page about it.

export_model("outputs/run", "exported", ["onnx", "openvino"])

model.onnx, openvino_model.xml and .bin, model.pt2    the graphs, with metadata (`hf_segtx.export.metadata`)
config.json, preprocessor_config.json                 for `hf_segtx.inference`, which takes the folder as a model
segment.py                                            a runner of the ONNX file without PyTorch
export.json, README.md                                options, verification, five lines for each language
"""

import copy
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from ..data.labels import Labels
from ..inference import evaluate, follow, load_model, protocol, size_of_edges
from ..models.sliding_windows import window_pair
from . import verification
from .graph import GraphOptions, exported_program
from .metadata import metadata_of
from .page import write_page
from .runner import RECORD, load_exported, pixel_statistics
from .verification import measured


FILES = {"onnx": "model.onnx", "openvino": "openvino_model.xml", "torch": "model.pt2"}
RUNNER = Path(__file__).parents[1] / "runtime/segment.py"  # not imported: it needs ONNX Runtime
PICTURES = 4  # that files are compared on
CALIBRATION_PICTURES = 300  # NNCF's own default


def export_model(
    source: str,
    output_dir: str | Path,
    formats: Sequence[str] = ("onnx",),
    *,
    options: GraphOptions | None = None,
    normalize: bool = False,
    opset: int = 20,
    dataset: Dataset | None = None,
    labels: Labels | None = None,
    bound: float | None = None,
    calibration: Dataset | None = None,
    max_drop: float = 0.005,
    model_and_processor: tuple | None = None,
) -> dict:
    """Writes and verifies an exported folder; returns what its export.json says.

    With a `static_shape` in the options the exported processor squashes pictures to that size, if it cuts no windows.

    Args:
        source: folder or Hub name of a checkpoint.
        formats: among "onnx", "openvino" and "torch".
        normalize: the graph takes RGB of 0-255 as uint8, and does the processor's rescaling and normalisation itself.
        opset: of the ONNX standard.
        dataset, labels: pictures to verify on, and to score where the classes are those of the model.
        bound: allowed difference of logits in standard deviations; None for 0.001, or 0.1 with 16 bits.
        calibration: training pictures (some hundred are plenty) for files in 8 bits beside those of ONNX and OpenVINO;
            None for no such files.
        max_drop: of the mean IoU, in [0, 1], that 8 bits may cost.
        model_and_processor: if they are loaded already.

    Returns:
        "failures": sentences about files that differ by more than the bound; and "files", "checkpoint", ...

    Raises:
        ValueError: for options that do not go together, or a folder that holds something else.
    """
    if wrong := set(formats) - set(FILES):
        raise ValueError(f"formats has {sorted(wrong)[0]!r}; choose among {', '.join(FILES)}")
    output_dir = Path(output_dir)
    if (output_dir / "config.json").exists() and not (output_dir / RECORD).exists():
        raise ValueError(f"{output_dir} holds a model that is not an export; choose another folder")
    model, processor = model_and_processor or load_model(source)
    model, options = model.cpu().float().eval(), options or GraphOptions()
    processor = copy.deepcopy(processor)
    follow(processor, model)
    if options.static_shape is not None:
        fit_to_size(processor, options.static_shape[1:])
    options.temperature = getattr(processor, "temperature", None) or 1.0
    if normalize:
        fields = "image_mean image_std do_normalize do_rescale rescale_factor".split()
        options.mean, options.std = pixel_statistics({name: getattr(processor, name) for name in fields})
    align_corners = bool(processor.align_corners)
    metadata = metadata_of(model, processor, options, source)

    output_dir.mkdir(parents=True, exist_ok=True)
    remove_earlier(output_dir)
    written = dict.fromkeys(formats)
    for format in written:
        write_graph(model, options, align_corners, format, output_dir / FILES[format], metadata, opset)
    model.config.save_pretrained(output_dir)  # which tells that the folder is in use; so only now
    processor.save_pretrained(output_dir)
    if "onnx" in formats:
        shutil.copy(RUNNER, output_dir)
    record = {
        "metadata": metadata,
        "options": {**asdict(options), "opset": opset},
        "versions": versions(formats),
        "files": [
            {"file": FILES[format], "format": format, "precision": "float16" if options.half else "float32"}
            for format in written
        ],
        "failures": [],
    }
    write_record(output_dir, record)  # which the runner reads
    verify(record, model, processor, source, output_dir, options, dataset, labels, bound)
    if calibration is not None:
        write_int8(record, processor, output_dir, options, calibration, dataset, max_drop)
    write_record(output_dir, record)
    write_page(output_dir, record)
    return record


def fit_to_size(processor, size: Sequence[int]) -> None:
    """Lets a processor prepare all pictures for a graph of one size (H, W).

    Raises:
        ValueError: if it cuts windows of another size.
    """
    if processor.window_size is None:
        processor.do_resize, processor.stretch_divisor = True, None
        processor.size = size_of_edges(size, "squash")
    elif window_pair(processor.window_size) != tuple(size):
        raise ValueError(
            f"static_shape has {size[0]}x{size[1]} pixels, but the model's processor cuts windows of "
            f"{'x'.join(map(str, window_pair(processor.window_size)))}; give their size"
        )


def write_graph(
    model: PreTrainedModel,
    options: GraphOptions,
    align_corners: bool,
    format: str,
    path: Path,
    metadata: dict[str, str],
    opset: int,
) -> None:
    """Writes one file; what writes a format is imported where it is needed.

    Raises:
        ValueError: if the packages of the format are not installed.
    """
    try:
        if format == "onnx":
            from .to_onnx import write_onnx as write
        elif format == "openvino":
            from .to_openvino import write_openvino as write
    except ImportError as error:
        raise ValueError(f"format {format}: {error}; `pip install hf_segtx[{format}]`") from error
    program = exported_program(model, options, align_corners, format)
    if format == "onnx":
        write(program, path, options.outputs, metadata, opset)
    elif format == "openvino":
        write(program, path, options.outputs, metadata, options.half)
    else:
        torch.export.save(program, path, extra_files={"metadata.json": json.dumps(metadata)})


def remove_earlier(output_dir: Path) -> None:
    """Removes the graphs of an earlier export into the folder, which may be of another model."""
    record = output_dir / RECORD
    for entry in json.loads(record.read_text())["files"] if record.exists() else []:
        for file in (output_dir / entry["file"], (output_dir / entry["file"]).with_suffix(".bin")):
            file.unlink(missing_ok=True)


def write_record(output_dir: Path, record: dict) -> None:
    (output_dir / RECORD).write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")


def versions(formats: Sequence[str]) -> dict[str, str]:
    """Of the packages that wrote the files."""
    from importlib.metadata import version

    names = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",), "torch": ()}
    return {name: version(name) for name in ["torch", "transformers", *sum((names[f] for f in formats), ())]}


def verify(
    record: dict,
    model: PreTrainedModel,
    processor,
    source: str,
    output_dir: Path,
    options: GraphOptions,
    dataset: Dataset | None,
    labels: Labels | None,
    bound: float | None,
) -> None:
    """Compares, scores and times every file beside the checkpoint; puts all of it into the record."""
    pictures_of = "the dataset that was given"
    if dataset is None:
        pictures_of = "scenes drawn at 360x480 pixels, which tell files apart but are no score of the model"
        from ..data.scenes import SceneDataset

        dataset = SceneDataset(PICTURES, seed=1, size=(360, 480))
        labels = dataset.labels
    bound = bound or (verification.HALF_BOUND if options.half else verification.FLOAT_BOUND)
    images = [dataset[index]["image"] for index in range(min(PICTURES, len(dataset)))]
    pictures = verification.prepared_pictures(processor, images)
    size = tuple(options.static_shape[1:]) if options.static_shape else tuple(pictures.shape[2:])
    shapes = verification.verification_shapes(size, options.static_shape, max(processor.minimum_size or 1, 64))
    byte_statistics = (options.mean, options.std) if options.mean is not None else None
    shape = (options.static_shape[0] if options.static_shape else 1, pictures.shape[1], *size)
    names_fit = labels is not None and list(labels.id2label.values()) == list(model.config.id2label.values())
    record["verification"] = {
        "bound": bound,
        "shapes": [list(shape) for shape in shapes],
        "pictures": len(images),
        "timed_shape": list(shape),
        "scored_images": len(dataset) if names_fit else 0,
        "pictures_of": pictures_of,
        "protocol": protocol(processor, labels.ignore_index) if names_fit else "classes of data and model differ",
    }
    record["checkpoint"] = measured(source, shape) if Path(source).is_dir() else {}
    if names_fit:
        record["checkpoint"]["mean_iou"] = score(model, processor, dataset)
    for entry in record["files"]:
        file = output_dir / entry["file"]
        compared = verification.compare(
            model, file, options.outputs, pictures, shapes, bool(processor.align_corners), bound, byte_statistics
        )
        entry |= asdict(compared) | {"bytes": size_of(file)}
        entry |= measured(file, shape, takes_bytes=byte_statistics is not None)
        if names_fit and "logits" in options.outputs:
            entry["mean_iou"] = score(*load_exported(file), dataset)
        record["failures"] += failures_of(entry, bound)


def write_int8(
    record: dict,
    processor,
    output_dir: Path,
    options: GraphOptions,
    calibration: Dataset,
    dataset: Dataset | None,
    max_drop: float,
) -> None:
    """Adds files in 8 bits to the record; to its failures one that cannot be quantised or whose mean IoU falls too far.

    Raises:
        ValueError: without labelled pictures of the model's classes, whose mean IoU decides, or without nncf, or for
            a graph that cannot be scored.
    """
    try:
        from .quantization import calibration_inputs, quantize
    except ImportError as error:
        raise ValueError(f"8 bits: {error}; `pip install hf_segtx[int8,onnx]`") from error
    if dataset is None or not record["verification"]["scored_images"]:
        raise ValueError("8 bits are accepted by mean IoU; give labelled pictures of the model's classes as dataset")
    if "logits" not in options.outputs:
        raise ValueError("8 bits are accepted by mean IoU; it needs the output logits")
    if options.static_shape is not None and options.static_shape[0] != 1:
        raise ValueError(
            f"8 bits are calibrated picture by picture, not by {options.static_shape[0]}; export a batch of 1"
        )
    takes_bytes = options.mean is not None
    images = [calibration[index]["image"] for index in range(min(CALIBRATION_PICTURES, len(calibration)))]
    inputs = calibration_inputs(processor, images, takes_bytes, options.mean, options.std)
    shape = tuple(record["verification"]["timed_shape"])
    for entry in [entry for entry in record["files"] if entry["format"] in ("onnx", "openvino")]:
        try:
            file, mean_iou = quantize(
                output_dir / entry["file"], processor, inputs, dataset, entry["mean_iou"], max_drop
            )
        except ValueError as error:
            record["failures"].append(str(error))
            continue
        record["files"].append(
            {
                "file": file.name,
                "format": entry["format"],
                "precision": "int8",
                "mean_iou": round(mean_iou, 6),
                "bytes": size_of(file),
                **measured(file, shape, takes_bytes=takes_bytes),
            }
        )


def size_of(file: Path) -> int:
    """Bytes of a file and of the weights beside it."""
    weights = file.with_suffix(".bin")
    return file.stat().st_size + (weights.stat().st_size if weights.is_file() else 0)


def score(model, processor, dataset: Dataset) -> float:
    return round(float(evaluate(model, processor, dataset, progress=False)["mean_iou"]), 6)


def failures_of(entry: dict, bound: float) -> list[str]:
    """What is wrong with a file, a sentence each."""
    failures, where = [], "x".join(map(str, entry["where"]))
    difference = entry["largest_difference"]
    if difference is not None and difference > bound:
        failures.append(
            f"{entry['file']}: logits differ by {difference:.2g} standard deviations at an input of {where}; "
            f"at most {bound:g} is allowed"
        )
    if entry["unequal_decided"]:
        failures.append(
            f"{entry['file']}: {entry['unequal_decided']} pixels that are no ties have another label, most of them at "
            f"an input of {where}"
        )
    return failures
