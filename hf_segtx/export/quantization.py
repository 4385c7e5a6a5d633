"""Files in 8 bits, by NNCF: calibrated on pictures, accepted by mean IoU; where it falls, layers are kept as they were.

The file has a quarter to a third of the size. It is faster where the processor multiplies 8 bits (AVX-512 VNNI, AMX,
Arm with dot products); elsewhere OpenVINO takes about the same, and ONNX Runtime, which has no kernels for it, more.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import nncf
import numpy as np
import onnx
import onnxruntime
import openvino
from torch.utils.data import Dataset, Subset

from ..inference import evaluate
from .runner import ExportedModel, Session


RANKING_PICTURES = 30  # by whose mean IoU layers are ranked, each of which costs a pass over them


def calibration_inputs(processor, images: Sequence, takes_bytes: bool, mean: list, std: list) -> list[np.ndarray]:
    """What the graph is fed for these pictures: a list of (1, C, H, W)."""
    inputs = []
    for image in images:
        pixel_values = processor(images=[image], return_tensors="np")["pixel_values"]
        if takes_bytes:
            scale, shift = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (std, mean))
            pixel_values = (pixel_values * scale + shift).round().clip(0, 255).astype(np.uint8)
        inputs += [np.ascontiguousarray(window[None]) for window in pixel_values]
    return inputs


def quantize(
    file: Path, processor, calibration: list[np.ndarray], dataset: Dataset, before: float, max_drop: float
) -> tuple[Path, float]:
    """Writes the file in 8 bits beside it; returns its path and mean IoU.

    If the mean IoU falls by more than `max_drop`, NNCF searches the layers to keep.

    Args:
        file: .onnx or .xml with the output "logits".
        calibration: inputs of the graph, training pictures as `calibration_inputs` prepares them.
        dataset: labelled pictures, scored after quantisation.
        before: mean IoU of the file.

    Raises:
        ValueError: if the mean IoU falls by more, or NNCF cannot quantise the graph; nothing is left behind.
    """
    target = file.with_stem(f"{file.stem}_int8")
    is_onnx = file.suffix == ".onnx"
    read = onnx.load if is_onnx else openvino.Core().read_model
    wrapper = ExportedModel(file)
    is_transformer = hasattr(wrapper.config, "num_attention_heads")
    settings = {"model_type": nncf.ModelType.TRANSFORMER if is_transformer else None, "subset_size": len(calibration)}
    data = nncf.Dataset(calibration, lambda inputs: {"pixel_values": inputs} if is_onnx else inputs)

    def save(quantized) -> float:
        if is_onnx:
            onnx.save(quantized, target)
        else:
            openvino.save_model(quantized, target, compress_to_fp16=False)
        return float(evaluate(ExportedModel(target), processor, dataset, progress=False)["mean_iou"])

    def quantized(function: Callable, *validation, **options):
        try:
            return function(read(file), data, *validation, **settings, **options)
        except Exception as error:  # of any type: NNCF stumbles over graphs that it does not know; other files are fine
            raise ValueError(
                f"{file.name} cannot be written in 8 bits: NNCF {nncf.__version__} fails with "
                f"{type(error).__name__}: {error}"
            ) from error

    score = save(quantized(nncf.quantize))
    if before - score > max_drop:
        validated = None

        def validate(candidate, indices) -> tuple[float, None]:
            nonlocal validated
            if candidate is not validated:
                wrapper.run, validated = session_of(candidate), candidate
            part = Subset(dataset, list(indices))
            return float(evaluate(wrapper, processor, part, progress=False)["mean_iou"]), None

        limits = nncf.AdvancedAccuracyRestorerParameters(ranking_subset_size=RANKING_PICTURES)
        pictures = nncf.Dataset(list(range(len(dataset))))
        options = {"max_drop": max_drop, "advanced_accuracy_restorer_parameters": limits}
        score = save(quantized(nncf.quantize_with_accuracy_control, pictures, validate, **options))
    if before - score > max_drop:
        for part in (target, target.with_suffix(".bin")):
            part.unlink(missing_ok=True)
        raise ValueError(
            f"{file.name} in 8 bits has a mean IoU of {100 * score:.2f} % instead of {100 * before:.2f} %, a fall of "
            f"more than max_drop, {100 * max_drop:g} points"
        )
    return target, score


def session_of(model) -> Session:
    """A function to the logits, of a model that NNCF asks the mean IoU of: compiled by OpenVINO, or an ONNX graph."""
    if not isinstance(model, onnx.ModelProto):
        return lambda pixel_values: {"logits": np.array(model(pixel_values)["logits"])}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda pixel_values: {"logits": session.run(["logits"], {"pixel_values": pixel_values})[0]}
