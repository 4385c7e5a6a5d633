"""Our SegFormer as transformers.js finds one: transformers' own folder, and graphs that return logits.

    config.json preprocessor_config.json model.safetensors    transformers' `segformer`, see `weights.to_transformers`
    onnx/model.onnx                                           float32, dtype "fp32" there
    onnx/model_fp16.onnx                                      computed in 16 bits, "fp16"
    onnx/model_quantized.onnx                                 weights and products in 8 bits, "q8": a third of the size

transformers.js chooses its class by `model_type`, and upsamples the logits itself; of our four only SegFormer has one.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers import PreTrainedModel

from ..data.scenes import SceneDataset
from ..weights.to_transformers import save_for_transformers
from .graph import GraphOptions, exported_program
from .runner import open_onnx
from .to_onnx import write_onnx
from .verification import FLOAT_BOUND, HALF_BOUND, prepared_pictures


FILES = {  # -> allowed difference of logits, in standard deviations; of 8 bits the share of equal pixels says more
    "model.onnx": FLOAT_BOUND,
    "model_fp16.onnx": HALF_BOUND,
    "model_quantized.onnx": float("inf"),
}


def save_for_transformers_js(model: PreTrainedModel, processor, folder: str | Path) -> list[str]:
    """Writes the folder; returns what of the processor was lost, and how each graph compares with the model.

    Raises:
        ValueError: if the model cannot be expressed, or a graph differs by more than its bound.
    """
    folder = Path(folder)
    notes = save_for_transformers(model, processor, folder)
    graphs = folder / "onnx"
    graphs.mkdir(exist_ok=True)
    for name, half in (("model.onnx", False), ("model_fp16.onnx", True)):
        options = GraphOptions(("logits",), half=half)
        write_onnx(exported_program(model, options, False, "onnx"), graphs / name, options.outputs, {})
    # Convolutions of 8 bits exist in ONNX Runtime for unsigned weights only.
    quantize_dynamic(graphs / "model.onnx", graphs / "model_quantized.onnx", weight_type=QuantType.QUInt8)
    scenes = SceneDataset(2, seed=1, size=(360, 480))
    pictures = prepared_pictures(processor, [scenes[0]["image"], scenes[1]["image"]])
    return notes + [comparison(model, graphs / name, pictures, bound) for name, bound in FILES.items()]


@torch.no_grad()
def comparison(model: PreTrainedModel, file: Path, pictures: torch.Tensor, bound: float) -> str:
    """A sentence about a graph beside the model, at the pictures' size and at another one.

    Raises:
        ValueError: if logits differ by more than the bound.
    """
    session, worst, equal = open_onnx(file, ["logits"], None, None), 0.0, []
    for inputs in (pictures, F.interpolate(pictures[:1], scale_factor=0.75, mode="bilinear")):
        expected = model(inputs).logits
        found = torch.from_numpy(session(inputs.numpy())["logits"])
        if found.shape != expected.shape or not found.isfinite().all():
            raise ValueError(f"{file}: logits {tuple(found.shape)}, not finite or not {tuple(expected.shape)}")
        worst = max(worst, float((found - expected).abs().max() / expected.std()))
        label_maps = [F.interpolate(x, size=inputs.shape[2:], mode="bilinear").argmax(1) for x in (found, expected)]
        equal.append((label_maps[0] == label_maps[1]).flatten())
    if worst > bound:
        raise ValueError(f"{file}: logits differ by {worst:.2g} standard deviations; at most {bound:g} is allowed")
    return (
        f"onnx/{file.name}: {file.stat().st_size / 1e6:.1f} MB; on drawn scenes logits differ by {worst:.1e} standard "
        f"deviations, {100 * torch.cat(equal).float().mean():.2f} % of the pixels have the same label"
    )
