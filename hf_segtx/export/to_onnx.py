"""ONNX files: one file with its weights, named dimensions, metadata, and an upsampling that ONNX Runtime does fast."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from onnxscript import opset18 as op

from . import graph  # noqa: F401  registers the operator that is translated


LEAST_OPSET = 18


def _resize_channels_last(logits, height, width, align_corners: bool):
    """Transpose, then Resize over the two middle dimensions."""
    one = op.Constant(value_ints=[1])
    sizes = [op.Reshape(op.Cast(size, to=onnx.TensorProto.INT64), one) for size in (height, width)]
    shape = op.Shape(logits)
    batch = op.Slice(shape, op.Constant(value_ints=[0]), op.Constant(value_ints=[1]))
    classes = op.Slice(shape, op.Constant(value_ints=[1]), op.Constant(value_ints=[2]))
    return op.Resize(
        op.Transpose(logits, perm=[0, 2, 3, 1]),
        None,
        None,
        op.Concat(batch, *sizes, classes, axis=0),
        mode="linear",
        coordinate_transformation_mode="align_corners" if align_corners else "half_pixel",
    )


def translated(program: torch.export.ExportedProgram, inputs: list[str], outputs: list[str], opset: int):
    """The ONNX program of an exported one, which may upsample with channels last.

    Raises:
        ValueError: if the opset is older than the exporter can write.
    """
    if opset < LEAST_OPSET:
        raise ValueError(f"opset is {opset}; the exporter of torch {torch.__version__} writes {LEAST_OPSET} and later")
    return torch.onnx.export(
        program,
        dynamo=True,
        opset_version=opset,
        input_names=list(inputs),
        output_names=list(outputs),
        custom_translation_table={torch.ops.hf_segtx_export.resize_channels_last.default: _resize_channels_last},
        external_data=False,
        verbose=False,
    )


def write_onnx(
    program: torch.export.ExportedProgram, path: Path, outputs: list[str], metadata: Mapping[str, str], opset: int = 20
) -> None:
    """Writes the graph of `exported_program(..., "onnx")`.

    Args:
        outputs: their names.
        metadata: becomes the file's `metadata_props`.
        opset: of the ONNX standard; from 20 on GELU is one node.
    """
    model = translated(program, ["pixel_values"], outputs, opset).model_proto
    compute_weights(model)
    name_dimensions(model)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    onnx.save(model, path)


def compute_weights(model: onnx.ModelProto) -> None:
    """Carries out what the graph does to weights alone, as OCRNet's heads split kernels.

    TensorRT and NNCF take kernels of convolutions as initializers only.
    """
    nodes, initializers = model.graph.node, model.graph.initializer
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in initializers}
    for node in list(nodes):
        if node.input and all(name in constants for name in node.input):
            arrays = ReferenceEvaluator(node).run(None, {name: constants[name] for name in node.input})
            constants |= zip(node.output, arrays)
            initializers.extend(map(onnx.numpy_helper.from_array, map(np.asarray, arrays), node.output))
            nodes.remove(node)
    used = {name for node in nodes for name in node.input}
    for tensor in [tensor for tensor in initializers if tensor.name not in used]:
        initializers.remove(tensor)


def name_dimensions(model: onnx.ModelProto) -> None:
    """Readable names for dimensions of inputs and outputs that vary, instead of formulas; none inside the graph."""
    names = {
        "pixel_values": ("batch", "channels", "height", "width"),
        "label_map": ("batch", "height", "width"),
        "confidence": ("batch", "height", "width"),
        "logits": ("batch", "classes", "logit_rows", "logit_columns"),
    }
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        for dimension, name in zip(value.type.tensor_type.shape.dim, names[value.name]):
            if not dimension.HasField("dim_value"):
                dimension.dim_param = name
