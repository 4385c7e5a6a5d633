"""Files in 8 bits, by NNCF: calibrated on pictures, accepted by mean IoU; where it falls, layers are kept as they were.

The file has a quarter to a third of the size. It is faster where the processor multiplies 8 bits (AVX-512 VNNI, AMX,
Arm with dot products); elsewhere OpenVINO takes about the same, and ONNX Runtime, which has no kernels for it, more.
"""

from collections.abc import Sequence
from pathlib import Path

import nncf
import numpy as np
import onnx
import openvino
from onnx.reference import ReferenceEvaluator
from torch.utils.data import Dataset, Subset

from ..inference import evaluate
from .runner import ExportedModel


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


def compute_weights(model: onnx.ModelProto) -> None:
    """Carries out what the graph does to weights alone, as OCRNet's heads split kernels: NNCF asks for initializers."""
    graph = model.graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in list(graph.node):
        if node.input and all(name in constants for name in node.input):
            arrays = ReferenceEvaluator(node).run(None, {name: constants[name] for name in node.input})
            constants |= zip(node.output, arrays)
            graph.initializer.extend(map(onnx.numpy_helper.from_array, map(np.asarray, arrays), node.output))
            graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def quantize(
    file: Path, processor, calibration: list[np.ndarray], dataset: Dataset, before: float, max_drop: float
) -> tuple[Path, float]:
    """Writes the file in 8 bits beside it; returns its path and mean IoU.

    If the mean IoU falls by more than `max_drop`, NNCF searches the layers to keep, in OpenVINO's format only.

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
    model = onnx.load(file) if is_onnx else openvino.Core().read_model(file)
    if is_onnx:
        compute_weights(model)
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

    try:
        quantized = nncf.quantize(model, data, **settings)
    except Exception as error:  # of any type: NNCF stumbles over graphs that it does not know; other files are fine
        raise ValueError(
            f"{file.name} cannot be written in 8 bits: NNCF {nncf.__version__} fails with "
            f"{type(error).__name__}: {error}"
        ) from error
    score = save(quantized)
    if before - score > max_drop and not is_onnx:

        def validate(compiled, indices) -> tuple[float, None]:
            wrapper.run = lambda pixel_values: {"logits": np.array(compiled(pixel_values)["logits"])}
            part = Subset(dataset, list(indices))
            return float(evaluate(wrapper, processor, part, progress=False)["mean_iou"]), None

        score = save(
            nncf.quantize_with_accuracy_control(
                openvino.Core().read_model(file),
                data,
                nncf.Dataset(list(range(len(dataset)))),
                validate,
                max_drop=max_drop,
                model_type=settings["model_type"],
                subset_size=settings["subset_size"],
            )
        )
    if before - score > max_drop:
        for part in (target, target.with_suffix(".bin")):
            part.unlink(missing_ok=True)
        raise ValueError(
            f"{file.name} in 8 bits has a mean IoU of {100 * score:.2f} % instead of {100 * before:.2f} %, a fall of "
            f"more than max_drop, {100 * max_drop:g} points"
            + ("; OpenVINO's format can keep layers in floating point" if is_onnx else "")
        )
    return target, score
