"""Exports a model for ONNX Runtime, OpenVINO or torch.export, and verifies the files beside the checkpoint.

    segtx export outputs/camvid/best --output_dir exported --validation_dir data/camvid/val
    segtx export nvidia/segformer-b0-finetuned-ade-512-512 --format onnx openvino torch --output_dir exported
    segtx export outputs/camvid/best --output_dir browser --outputs label_map --normalise --static 1 512 512
    segtx predict exported photo.jpg          # exported folders and files are models for predict and evaluate
    python exported/segment.py photo.jpg      # without PyTorch

Every file serves any batch, height and width unless `--static` fixes them, and returns the label map at the size of
its input beside the logits. It is run at other sizes and batches than the exporter saw, on pictures of the validation
data (or of embedded scenes), and scored where the data have the model's classes: `export.json` and `README.md` in the
folder say what was found. Exit status: 0, 1 if a file differs by more than `--bound`, 2 if something is wrong.
"""

import sys
from dataclasses import dataclass

from ..data.settings import DataSettings
from ..settings import setting
from .flags import FlagParser
from .model_flags import ModelSettings, load
from .training_flags import named_flags


@dataclass
class ExportSettings:
    """Export."""

    output_dir: str = setting("exported", "Folder of the files.")
    format: list[str] = setting(["onnx"], "Among onnx, openvino and torch.")
    outputs: list[str] = setting(
        ["label_map", "logits"],
        "Among label_map (uint8, or int16 for more than 256 classes), logits (what windows, scales and resizing to the "
        "picture need) and confidence.",
    )
    normalise: bool = setting(False, "Take RGB of 0-255 as uint8; mean and deviation are in the graph.")
    static: list[int] = setting(
        [], "Batch, height and width of a graph for that size alone, which pictures are squashed to.", "[1, inf)", "3"
    )
    opset: int = setting(20, "Of the ONNX standard.", "[18, 30]")
    half: bool = setting(False, "Compute in 16 bits.")
    int8: bool = setting(
        False, "Also write files in 8 bits, calibrated on the pictures of --train_dir (else of --validation_dir)."
    )
    max_drop: float = setting(0.5, "Points of mean IoU that 8 bits may cost.", "[0, 100]")
    bound: float | None = setting(
        None, "Allowed difference of logits in their standard deviations; else 0.001, 0.1 with --half.", "(0, inf)"
    )


DATA_NAMES = (
    "dataset_name dataset_config_name train_dir validation_dir validation_split image_column_name label_column_name "
    "classes_file do_reduce_labels max_eval_samples"
).split()


def run(command_line: list[str]) -> int:
    """The command; returns its exit status."""
    parser = FlagParser("export", __doc__)
    parser.add_argument("model", help="Folder of a saved model, or Hub name.")
    parser.add_dataclass(ExportSettings)
    parser.add_dataclass(DataSettings, DATA_NAMES)
    parser.add_dataclass(ModelSettings)
    arguments = parser.parse_args(command_line)
    with named_flags(ExportSettings, DataSettings, ModelSettings):
        settings = parser.values_of(ExportSettings, arguments)
        data = parser.values_of(DataSettings, arguments)
        record = _export(arguments.model, settings, data, parser.values_of(ModelSettings, arguments))
    for failure in record["failures"]:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if record["failures"] else 0


def _export(source: str, settings: ExportSettings, data: DataSettings, model_settings: ModelSettings) -> dict:
    """Exports and prints the table; returns the record."""
    from ..data import load_data
    from ..export import GraphOptions, export_model
    from ..export.page import table

    model, processor = load(source, model_settings)
    train = dataset = labels = None
    if data.dataset_name or data.train_dir or data.validation_dir:
        train, dataset, labels = load_data(data)
    elif settings.int8:
        raise ValueError("int8 is calibrated on pictures and accepted by mean IoU; give `validation_dir`")
    record = export_model(
        source,
        settings.output_dir,
        settings.format,
        options=GraphOptions(settings.outputs, half=settings.half, static_shape=tuple(settings.static) or None),
        normalize=settings.normalise,
        opset=settings.opset,
        dataset=dataset,
        labels=labels,
        bound=settings.bound,
        calibration=(train or dataset) if settings.int8 else None,
        max_drop=settings.max_drop / 100,
        model_and_processor=(model, processor),
    )
    print(*table(record), f"pictures: {record['verification']['pictures_of']}", f"in {settings.output_dir}", sep="\n")
    return record
