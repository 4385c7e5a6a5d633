"""OpenVINO's files, `model.xml` and `model.bin`."""

from collections.abc import Mapping
from pathlib import Path

import openvino
import torch


def write_openvino(
    program: torch.export.ExportedProgram,
    path: Path,
    outputs: list[str],
    metadata: Mapping[str, str],
    half: bool = False,
) -> None:
    """Writes the graph of `exported_program(..., "openvino")`.

    Args:
        path: of the .xml file; the weights are put beside it.
        outputs: their names.
        metadata: becomes `rt_info` under "model_info".
        half: store weights in 16 bits.
    """
    model = openvino.convert_model(program)
    model.inputs[0].get_tensor().set_names({"pixel_values"})
    for output, name in zip(model.outputs, outputs, strict=True):
        output.get_tensor().set_names({name})
    for key, value in metadata.items():
        model.set_rt_info(value, ["model_info", key])
    openvino.save_model(model, path, compress_to_fp16=half)
