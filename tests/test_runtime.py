"""The runner without PyTorch: it needs nothing of the package, and gives the label maps of the package."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CASES

from hf_segtx.data.scenes import SceneDataset
from hf_segtx.export.graph import GraphOptions, exported_program
from hf_segtx.export.metadata import metadata_of
from hf_segtx.export.to_onnx import write_onnx
from hf_segtx.inference import predict
from hf_segtx.runtime import segment as runner


def facts_and_session(name, options, processor_fields, **fields):
    """What `load` returns of an exported file, without exporting: the session calls the model."""
    torch.manual_seed(0)
    model = CASES[name].make_model(**fields)
    processor = CASES[name].row.processor_pil(**processor_fields).follow(model.config)

    class Session:
        def get_inputs(self):
            return [SimpleNamespace(shape=["batch", 3, "height", "width"])]

        def run(self, names, feeds):
            with torch.no_grad():
                outputs = {"logits": model(torch.from_numpy(feeds["pixel_values"])).logits}
            size = feeds["pixel_values"].shape[2:]
            resized = torch.nn.functional.interpolate(outputs["logits"], size=size, mode="bilinear")
            outputs["label_map"] = resized.argmax(1).to(torch.uint8)
            return [outputs[name].numpy() for name in names]

    facts = metadata_of(model, processor, options, "nowhere")
    for key in ("preprocessing", "id2label", "palette", "outputs"):
        facts[key] = json.loads(facts[key])
    return model, processor, facts, Session()


def test_colours_are_those_of_the_training_data():
    colors = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [0, 0, 0]]
    assert facts_and_session("segformer", GraphOptions(), {}, palette=colors)[2]["palette"] == colors
    assert len(facts_and_session("segformer", GraphOptions(), {})[2]["palette"]) == 4


@pytest.mark.parametrize(
    "name, processor_fields, fields",
    [
        ("segformer", {"size": {"shortest_edge": 72, "longest_edge": 100}}, {}),
        ("segformer", {"size": {"height": 64, "width": 80}}, {}),
        ("setr", {"size": {"shortest_edge": 70}}, {}),  # padded to whole patches
        ("ocrnet", {"do_resize": False}, {"align_corners": True}),
        ("segformer", {"do_resize": False, "window_size": 64, "window_stride": [48, 40]}, {}),
        ("segformer", {"size": {"shortest_edge": 72}, "stretch_divisor": 32, "do_flip_channel_order": True}, {}),
        ("segformer", {"size": {"shortest_edge": 50}, "window_size": 64, "small_images": "enlarge"}, {}),
        ("segformer", {"size": {"shortest_edge": 50}, "window_size": 64, "small_images": "cut"}, {}),
        ("segmenter", {"size": {"shortest_edge": 80}, "window_size": 48, "window_stride": 32}, {"num_labels": 1}),
    ],
    ids=str,
)
def test_label_maps_are_those_of_the_package(name, processor_fields, fields):
    model, processor, facts, session = facts_and_session(name, GraphOptions(), processor_fields, **fields)
    for size in ((90, 150), (60, 50)):
        image = SceneDataset(1, seed=3, size=size)[0]["image"]
        expected = predict(model, processor, [image])[0].numpy()
        found = runner.segment(session, facts, image)
        assert found.shape == size
        assert np.mean(found == expected) > 0.998  # of random weights, a few pixels are near a tie


def test_label_maps_of_files_without_logits():
    options = GraphOptions(("label_map",))
    model, processor, facts, session = facts_and_session("segformer", options, {"do_resize": False})
    image = SceneDataset(1, seed=3, size=(64, 96))[0]["image"]
    assert np.mean(runner.segment(session, facts, image) == predict(model, processor, [image])[0].numpy()) > 0.998
    _, _, facts, session = facts_and_session("segformer", options, {"window_size": 64})
    with pytest.raises(ValueError, match="averaged as logits, which the file does not return"):
        runner.segment(session, facts, image)


@pytest.mark.slow
def test_script_runs_without_torch(tmp_path):
    model, processor, _, _ = facts_and_session("segformer", GraphOptions(), {"size": {"shortest_edge": 72}})
    options = GraphOptions()
    metadata = metadata_of(model, processor, options, "nowhere")
    write_onnx(exported_program(model, options, False, "onnx"), tmp_path / "model.onnx", options.outputs, metadata)
    (tmp_path / "segment.py").write_text(open(runner.__file__).read())
    image = SceneDataset(1, seed=3, size=(90, 150))[0]["image"]
    image.save(tmp_path / "photo.png")
    (tmp_path / "torn.png").write_bytes(b"no picture")
    for name in ("torch", "transformers", "hf_segtx"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not there')")
    words = [sys.executable, "segment.py", "photo.png", "torn.png", "--threads", "1", "--output_dir", "out"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "torn.png" in done.stderr and "photo.png: " in done.stdout, done.stderr
    with Image.open(tmp_path / "out" / "photo_labels.png") as labels:
        found = np.asarray(labels)
    assert np.mean(found == predict(model, processor, [image])[0].numpy()) > 0.998
    with Image.open(tmp_path / "out" / "photo_overlay.png") as overlay:
        assert overlay.size == (150, 90)
