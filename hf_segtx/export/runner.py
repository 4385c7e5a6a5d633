"""Exported files in the place of a model: `segment`, `predict` and `evaluate` take them as they take a checkpoint.

    model, processor = load_exported("exported")                       # or exported/openvino_model.xml
    segment(model, processor, [image], scales=(0.75, 1, 1.25), flip=True)

ONNX Runtime, OpenVINO or PyTorch computes the logits; windows, scales and upsampling to the image's own size are those
of `hf_segtx.inference`, so the label maps are those of the checkpoint.
"""

import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoImageProcessor

from ..models.segmentation_base import SegmentationOutput


RECORD = "export.json"  # of an exported folder
SUFFIXES = (".onnx", ".xml", ".pt2")
Session = Callable[[np.ndarray], dict[str, np.ndarray]]


def is_exported(path: str | Path) -> bool:
    """Whether this is an exported folder, or a file in one."""
    path = Path(path)
    return (path / RECORD).is_file() or (path.suffix in SUFFIXES and (path.parent / RECORD).is_file())


def outputs_of(file: Path) -> list[str]:
    """Names of the outputs, in their order, of a file in an exported folder."""
    return json.loads(json.loads((file.parent / RECORD).read_text())["metadata"]["outputs"])


def open_onnx(file: Path, outputs: list[str], provider: str | None, threads: int | None) -> Session:
    """A session of ONNX Runtime, which computes no more than what the outputs need."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(f"{file} is run by ONNX Runtime; `pip install hf_segtx[onnx]`") from error
    available = onnxruntime.get_available_providers()
    provider = provider or "CPUExecutionProvider"
    if provider not in available:
        raise ValueError(f"provider {provider!r} is not in this ONNX Runtime; it has {', '.join(available)}")
    options, run_options = onnxruntime.SessionOptions(), onnxruntime.RunOptions()
    options.intra_op_num_threads = threads or 0
    run_options.only_execute_path_to_fetches = True
    session = onnxruntime.InferenceSession(file, options, providers=[provider])

    def run(pixel_values: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(outputs, session.run(outputs, {"pixel_values": pixel_values}, run_options)))

    return run


def open_openvino(file: Path, outputs: list[str], provider: str | None, threads: int | None) -> Session:
    """A model compiled by OpenVINO for a device, "CPU" by default, without the outputs that nobody wants."""
    try:
        import openvino
    except ImportError as error:
        raise ValueError(f"{file} is run by OpenVINO; `pip install hf_segtx[openvino]`") from error
    core = openvino.Core()
    device = provider or "CPU"
    if device not in core.available_devices:
        raise ValueError(f"provider {device!r} is no device here; OpenVINO has {', '.join(core.available_devices)}")
    model = core.read_model(file)
    for result in model.get_results():
        if not result.get_output_tensor(0).get_names() & set(outputs):
            model.remove_result(result)
    # Without the hint processors with 16-bit arithmetic would round to it.
    settings = {"INFERENCE_PRECISION_HINT": "f32", **({"INFERENCE_NUM_THREADS": threads} if threads else {})}
    compiled = core.compile_model(model, device, settings if device == "CPU" else {})

    def run(pixel_values: np.ndarray) -> dict[str, np.ndarray]:
        results = compiled(pixel_values)
        return {name: np.array(results[name]) for name in outputs}

    return run


def open_torch(file: Path, outputs: list[str], provider: str | None, threads: int | None) -> Session:
    """A program of torch.export on the CPU; threads are those of the process."""
    if provider or threads:
        raise ValueError(f"{file} is run by PyTorch on the CPU; provider and threads are for .onnx and .xml files")
    module, names = torch.export.load(file).module(), outputs_of(file)

    def run(pixel_values: np.ndarray) -> dict[str, np.ndarray]:
        try:
            with torch.no_grad():
                results = module(torch.from_numpy(pixel_values))
        except AssertionError as error:  # a guard of torch.export
            raise ValueError(
                f"{file} takes no input of shape {pixel_values.shape} ({error}): torch.export lets no map inside the "
                "model be one value high or wide; give a larger image, or use the .onnx or .xml file"
            ) from error
        return {name: result.numpy() for name, result in zip(names, results, strict=True) if name in outputs}

    return run


def open_file(file: Path, outputs: list[str], provider: str | None = None, threads: int | None = None) -> Session:
    """A function from pixel values, as an array, to the named outputs."""
    openers = dict(zip(SUFFIXES, (open_onnx, open_openvino, open_torch), strict=True))
    try:
        return openers[file.suffix](file, outputs, provider, threads)
    except (ValueError, OSError):
        raise
    except Exception as error:  # each runtime has its own for a damaged file
        first = str(error).strip().splitlines()[0][:200]
        raise ValueError(f"{file} cannot be loaded ({first}); copy it again, or export the model again") from error


class ExportedModel(nn.Module):
    """What `hf_segtx.inference` needs of a model: logits, a configuration, a device.

    Args:
        file: .onnx, .xml or .pt2 of an exported folder.
        provider: of ONNX Runtime, such as "CUDAExecutionProvider", or device of OpenVINO, such as "GPU".
        threads: on the CPU; None for the runtime's own choice.

    Shape:
        pixel_values: (B, C, H, W) as the image processor makes them
        returns: [`SegmentationOutput`] with logits (B, K, h, w)
    """

    def __init__(self, file: Path, provider: str | None = None, threads: int | None = None):
        super().__init__()
        record = json.loads((file.parent / RECORD).read_text())
        if "logits" not in outputs_of(file):
            raise ValueError(
                f"{file} has no output `logits`, which windows, scales and resizing to the image need; export with "
                "outputs label_map and logits, or use segment.py beside it"
            )
        self.file, self.static_shape = file, record["options"]["static_shape"]
        self.config = AutoConfig.from_pretrained(file.parent)
        self.device_holder = nn.Parameter(torch.empty(0), requires_grad=False)
        preprocessing = json.loads(record["metadata"]["preprocessing"])
        self.takes_bytes = record["metadata"]["input"].startswith("uint8")
        self.mean, self.std = pixel_statistics(preprocessing)
        self.run = open_file(file, ["logits"], provider, threads)
        self.eval()

    def forward(self, pixel_values: torch.Tensor, windows: torch.Tensor | None = None) -> SegmentationOutput:
        if self.takes_bytes:  # back to what they were before normalisation
            mean, std = (pixel_values.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
            pixel_values = (pixel_values * std + mean).round().clamp(0, 255).to(torch.uint8)
        logits = self.logits_of(np.ascontiguousarray(pixel_values.cpu().numpy()))
        return SegmentationOutput(logits=torch.from_numpy(logits).to(pixel_values.device), windows=windows)

    def logits_of(self, pixel_values: np.ndarray) -> np.ndarray:
        """(B, C, H, W) -> (B, K, h, w); a file of one batch size is fed such batches, the last one filled up."""
        if self.static_shape is None:
            return self.run(pixel_values)["logits"]
        batch, *size = self.static_shape
        if list(pixel_values.shape[2:]) != size:
            raise ValueError(
                f"{self.file} was exported for pictures of {size[0]}x{size[1]} pixels alone and is shown one of "
                f"{pixel_values.shape[2]}x{pixel_values.shape[3]}; export without static_shape for other sizes"
            )
        filled = np.concatenate([pixel_values, pixel_values[-1:].repeat(-len(pixel_values) % batch, axis=0)])
        parts = [self.run(part)["logits"] for part in np.split(filled, len(filled) // batch)]
        return np.concatenate(parts)[: len(pixel_values)]

    @cached_property
    def weights_sha256(self) -> str:
        """Of the file that is run and the weights beside it: 8 bits give other label maps than the checkpoint."""
        digest = hashlib.sha256(self.file.read_bytes())
        if (weights := self.file.with_suffix(".bin")).is_file():
            digest.update(weights.read_bytes())
        return digest.hexdigest()

    @property
    def precision(self) -> str:
        """What the file computes in, as the record says: "float32", "float16" or "int8"."""
        files = json.loads((self.file.parent / RECORD).read_text())["files"]
        return next(entry["precision"] for entry in files if entry["file"] == self.file.name)


def pixel_statistics(preprocessing: dict) -> tuple[list[float], list[float]]:
    """Mean and standard deviation, in units of 0-255, of an image processor's rescaling and normalisation together."""
    factor = preprocessing["rescale_factor"] if preprocessing["do_rescale"] else 1.0
    mean, std = preprocessing["image_mean"], preprocessing["image_std"]
    if not preprocessing["do_normalize"]:
        mean, std = [0.0] * len(mean), [1.0] * len(std)
    return [value / factor for value in mean], [value / factor for value in std]


def load_exported(path: str | Path, provider: str | None = None, threads: int | None = None):
    """Model and image processor of an exported folder (the first of its files), or of one of its files.

    Raises:
        ValueError: if the runtime, the provider or the logits are missing.
    """
    file = Path(path)
    if file.is_dir():
        record = json.loads((file / RECORD).read_text())
        file = file / record["files"][0]["file"]
    return ExportedModel(file, provider, threads), AutoImageProcessor.from_pretrained(file.parent)
