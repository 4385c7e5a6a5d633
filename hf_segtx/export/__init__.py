"""Models for other runtimes: ONNX Runtime, OpenVINO and torch.export, verified beside the checkpoint.

export_model("outputs/run", "exported", ["onnx", "openvino"])
model, processor = load_exported("exported")      # for hf_segtx.inference, as load_model returns them
"""

import importlib


def __getattr__(name: str):
    rooms = {"export_model": "folder", "GraphOptions": "graph", "load_exported": "runner"}
    if name not in rooms:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{rooms[name]}", __name__), name)
