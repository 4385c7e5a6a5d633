"""Exported graphs at every size and batch, of every head, in every runtime.

The oracle is the model. It takes minutes, so it is a file of its own, which another process may take.
"""

import json

import numpy as np
import onnx
import pytest
import torch
from test_export import SHAPES, TOLERANCE, check_operators, expectation, trained

from hf_segtx.export.graph import GraphOptions, exported_program
from hf_segtx.export.runner import open_file
from hf_segtx.export.to_onnx import write_onnx
from hf_segtx.export.to_openvino import write_openvino


HEADS = [
    ("segformer", {}),
    ("segformer", {"decoder_projection_norm": True}),
    ("segformer", {"position_encoding": "learned", "image_size": 64}),
    ("setr", {"decode_head": "naive"}),
    ("setr", {"decode_head": "pup"}),
    ("setr", {"decode_head": "mla"}),
    ("segmenter", {"decode_head": "mask"}),
    ("segmenter", {"decode_head": "linear"}),
    ("segmenter", {"decode_head": "mask", "num_labels": 1}),
    ("ocrnet", {}),
    ("ocrnet", {"align_corners": True}),
    ("ocrnet", {"backbone_type": "resnet", "hidden_sizes": [8, 8, 16, 16], "stem_hidden_sizes": [8]}),
]


@pytest.mark.slow
@pytest.mark.parametrize("name, fields", HEADS, ids=lambda value: str(value))
def test_every_size_and_batch_in_every_runtime(name, fields, tmp_path):
    model = trained(name, **fields)
    align_corners = fields.get("align_corners", False)
    options = GraphOptions(("label_map", "logits", "confidence"))
    (tmp_path / "export.json").write_text(json.dumps({"metadata": {"outputs": json.dumps(options.outputs)}}))
    write_onnx(exported_program(model, options, align_corners, "onnx"), tmp_path / "m.onnx", options.outputs, {})
    torch.export.save(exported_program(model, options, align_corners, "torch"), tmp_path / "m.pt2")
    write_openvino(exported_program(model, options, align_corners, "openvino"), tmp_path / "m.xml", options.outputs, {})
    check_operators(onnx.load(tmp_path / "m.onnx"))
    sessions = [open_file(tmp_path / f"m.{suffix}", list(options.outputs)) for suffix in ("onnx", "xml", "pt2")]
    for shape in SHAPES:
        inputs = torch.randn(shape)
        logits, label_map, confidence, margin = expectation(model, inputs)
        tolerance = TOLERANCE[name] * float(logits.std())
        for session in sessions:
            found = session(inputs.numpy())
            torch.testing.assert_close(torch.from_numpy(found["logits"]), logits, rtol=0, atol=tolerance)
            assert found["label_map"].dtype == np.uint8
            unequal = torch.from_numpy(found["label_map"]).long() != label_map
            assert float(margin[unequal].max() if unequal.any() else 0) <= 2 * tolerance
            torch.testing.assert_close(torch.from_numpy(found["confidence"]), confidence, rtol=0, atol=1e-4)
