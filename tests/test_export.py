"""Exported graphs beside the models themselves: at sizes and batches that the exporter never saw, in three runtimes."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard
from PIL import Image
from small_data import write_folder
from tiny import CASES

from hf_segtx.cli import main
from hf_segtx.data.scenes import SceneDataset
from hf_segtx.data.scenes import labels as scene_labels
from hf_segtx.export import export_model
from hf_segtx.export import folder as export_folder
from hf_segtx.export.graph import GraphOptions, MapsAsTokens, exported_program, first_largest, folded
from hf_segtx.export.metadata import metadata_of
from hf_segtx.export.page import write_page
from hf_segtx.export.runner import load_exported, open_file
from hf_segtx.export.to_onnx import compute_weights, translated
from hf_segtx.export.verification import compare, same_labels
from hf_segtx.inference import load_model, predict, segment
from hf_segtx.runtime import segment as runner


# Example input of the exporter: (2, 3, 128, 192). Here: other batches; smaller, equal, larger, no multiples of 8 or 32.
SHAPES = [(1, 3, 64, 64), (2, 3, 128, 192), (5, 3, 136, 72), (1, 3, 136, 208), (2, 3, 70, 101)]
# Operators that TensorRT, Core ML or ExecuTorch refuse, or whose result has a size that depends on values.
REFUSED = set("If Loop Scan NonZero Unique Compress OneHot Mod BitShift Hardmax RoiAlign GridSample DeformConv".split())
# Rounding of float32 through a few layers, in standard deviations of the logits. OCRNet's softmax over all pixels, and
# Segmenter's division by the length of vectors, multiply it.
TOLERANCE = {"segformer": 1e-5, "setr": 1e-5, "segmenter": 1e-4, "ocrnet": 1e-4}


def trained(name, **fields):
    """A tiny model whose batch statistics are those of its inputs, as after training."""
    torch.manual_seed(0)
    model = CASES[name].make_model(**fields).train()
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(2, 3, 64, 96))
    return model.eval()


def check_operators(model):
    """A graph of the standard's operators, none of them refused elsewhere, and of kernels that are initializers."""
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    assert not {node.op_type for node in model.graph.node} & REFUSED
    initializers = {tensor.name for tensor in model.graph.initializer}
    assert all(node.input[1] in initializers for node in model.graph.node if node.op_type == "Conv")


def expectation(model, inputs):
    """Logits, label map and confidence of the model itself, with PyTorch's own upsampling."""
    with torch.no_grad():
        logits = model(inputs).logits
    align_corners = getattr(model.config, "align_corners", False)
    upsampled = F.interpolate(logits, size=inputs.shape[2:], mode="bilinear", align_corners=align_corners)
    if logits.shape[1] == 1:
        return logits, (upsampled > 0).long()[:, 0], upsampled[:, 0].abs().sigmoid(), upsampled[:, 0].abs()
    best = upsampled.topk(2, dim=1).values
    return logits, upsampled.argmax(1), upsampled.softmax(1).amax(1), best[:, 0] - best[:, 1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Folder of a tiny SegFormer for the classes of the scenes, whose pictures are resized and padded."""
    path = tmp_path_factory.mktemp("checkpoint")
    labels = scene_labels()
    model = trained("segformer", num_labels=labels.num_labels)
    model.config.id2label, model.config.label2id = labels.id2label, labels.label2id
    model.save_pretrained(path)
    CASES["segformer"].row.processor(size={"shortest_edge": 72}, size_divisor=16).save_pretrained(path)
    return path


@pytest.fixture
def without_timing(monkeypatch):
    """Timing starts two processes for each file, which no test here needs."""
    monkeypatch.setattr(export_folder, "measured", lambda *_, **__: {"milliseconds": 1.0, "peak_mib": 1.0})


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    """Folder of the checkpoint's files for ONNX Runtime and OpenVINO, and what the export found of them."""
    path = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_folder, "measured", lambda *_, **__: {"milliseconds": 1.0, "peak_mib": 1.0})
        return path, export_model(str(checkpoint), path, ["onnx", "openvino"])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("way", ["trace", "old exporter"])
def test_tracing_is_refused(name, way, tmp_path):
    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = CASES[name].make_model()

        def forward(self, pixel_values):
            return self.model(pixel_values).logits

    module, inputs = Logits().eval(), torch.zeros(2, 3, 64, 96)
    with pytest.raises(ValueError, match="tracing .* use torch.export.export"):
        if way == "trace":
            torch.jit.trace(module, inputs)
        else:
            torch.onnx.export(module, (inputs,), tmp_path / "m.onnx", dynamo=False)


@pytest.mark.parametrize("name", CASES)
def test_openvino_tracing_is_refused(name):
    with pytest.raises(RuntimeError, match="use torch.export.export"):
        openvino.convert_model(CASES[name].make_model(), example_input=torch.zeros(2, 3, 64, 96))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"decoder_projection_norm": True},
        {"decoder_stages": [1, 3]},
        {"decoder_stages": [3], "decoder_fusion": False},
    ],
    ids=str,
)
def test_folded_head_is_the_head(fields):
    """Oracle: the model itself; 1e-5 of the deviation is rounding."""
    model = trained("segformer", **fields)
    if model.decode_head.norm is not None:
        torch.nn.init.normal_(model.decode_head.norm.bias)
    before = copy.deepcopy(model.state_dict())
    inputs = torch.randn(2, 3, 70, 101)
    with torch.no_grad():
        expected, found = model(inputs).logits, folded(model)(inputs).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.std()))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded(model).modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_largest_class_is_the_first_of_equal_ones():
    maps = torch.randint(-3, 3, (2, 7, 5, 6)).float()
    assert torch.equal(first_largest(maps).long(), maps.argmax(1))


def test_maps_are_transposed_as_tokens():
    """The same values and shapes; in the graph no transposition of four dimensions is left."""

    class BackAndForth(torch.nn.Module):
        def forward(self, x):
            x = x.permute(0, 3, 1, 2)
            return x, torch.nn.functional.pad(x, (1, 0)).permute(0, 2, 3, 1), x.permute(1, 0, 2, 3)

    x = torch.randn(2, 3, 4, 5)
    with MapsAsTokens():
        program = torch.export.export(BackAndForth(), (x,), strict=False)
    for found, expected in zip(program.module()(x), BackAndForth()(x), strict=True):
        assert torch.equal(found, expected)
    orders = [node.args[1] for node in program.graph.nodes if node.target is torch.ops.aten.permute.default]
    assert orders == [[1, 0, 2, 3]]


def test_comparison_finds_what_is_wrong(monkeypatch):
    """A file whose third batch entry, larger sizes or classes are wrong is told from one whose ties fall otherwise."""
    model = trained("segformer")
    pictures, shapes = torch.randn(2, 3, 64, 96), [(1, 64, 96), (3, 72, 80)]

    def session_of(change):
        def run(inputs):
            logits, label_map, _, margin = expectation(model, torch.from_numpy(inputs))
            return change({"logits": logits.numpy(), "label_map": label_map.numpy().astype(np.uint8)}, margin)

        return lambda *_: run

    def compared(change):
        monkeypatch.setattr("hf_segtx.export.verification.open_file", session_of(change))
        return compare(model, None, ["label_map", "logits"], pictures, shapes, False, bound=1e-3)

    def third_entry(found, _):
        if len(found["logits"]) == 3:
            found["logits"][2] = found["logits"][1]
        return found

    def other_class(found, margin):
        found["label_map"][margin.argmax() // margin[0].numel(), 0, 0] += 1
        return found

    def near_ties(found, margin):
        found["label_map"][margin < 1e-3 * found["logits"].std()] += 1
        return found

    right = compared(lambda found, _: found)
    assert right.largest_difference < 1e-6 and right.equal_pixels == 1 and right.unequal_decided == 0
    wrong = compared(third_entry)
    assert wrong.largest_difference > 0.1 and wrong.where == [3, 3, 72, 80]
    assert compared(other_class).unequal_decided > 0
    ties = compared(near_ties)
    assert ties.unequal_decided == 0 and ties.equal_pixels < 1


def test_ties_are_what_rounding_decides():
    logits = torch.tensor([[[0.0, 1.0]], [[1e-5, 0.0]]])  # (2, 1, 2): class 1 by a hair, class 0
    same, decided = same_labels(logits, np.array([[0, 0]]), (1, 2), False, margin=1e-3)
    assert same.tolist() == [[False, True]] and decided.tolist() == [[False, True]]


@pytest.mark.slow
def test_folder_predicts_as_the_checkpoint(checkpoint, exported):
    tmp_path, record = exported
    assert record["failures"] == [] and [entry["unequal_decided"] for entry in record["files"]] == [0, 0]
    assert json.loads(json.dumps(record)) == json.loads((tmp_path / "export.json").read_text())
    assert {entry["mean_iou"] for entry in record["files"]} == {record["checkpoint"]["mean_iou"]}
    assert (tmp_path / "segment.py").is_file() and "no score of the model" in (tmp_path / "README.md").read_text()

    scenes = SceneDataset(2, seed=5, size=(90, 150))
    images = [scenes[0]["image"], scenes[1]["image"].crop((0, 0, 70, 60))]
    model, processor = load_model(checkpoint)
    expected = predict(model, processor, images)
    for name in (".", "model.onnx", "openvino_model.xml"):
        exported = load_model(tmp_path / name, threads=1)
        for found, label_map in zip(predict(*exported, images), expected, strict=True):
            assert torch.equal(found, label_map)
    views = {"scales": (0.75, 1.25), "flip": True, "return_uncertainty": True}
    processors = [copy.deepcopy(processor), load_exported(tmp_path)[1]]
    for each in processors:
        each.window_size, each.window_stride = 64, 48
    result, beside = (
        segment(net, each, images[:1], **views)[0]
        for net, each in zip((model, load_exported(tmp_path)[0]), processors, strict=True)
    )
    torch.testing.assert_close(beside.confidence, result.confidence, rtol=0, atol=1e-5)  # rounding


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["", "--mode slide --window_size 64 --window_stride 40", "--scales 0.75 1.25 --flip"])
def test_evaluation_of_files_is_that_of_the_checkpoint(checkpoint, exported, tmp_path, flags):
    """All numbers but those of time, of the command for a checkpoint, the exported folder and a file in it."""
    folder, results = exported[0], []
    for source in (checkpoint, folder, folder / "openvino_model.xml"):
        words = [*flags.split(), "--max_eval_samples", "3", "--device", "cpu", "--output_dir", str(tmp_path)]
        assert main(["evaluate", str(source), *words]) == 0
        results.append(json.loads((tmp_path / "evaluation.json").read_text()))
    for result in results[1:]:
        assert result["precision"] == "float32"
        for key in ("protocol", "images", "data_fingerprint", "flags"):
            assert result[key] == results[0][key]
        for key in ("mean_iou", "overall_accuracy", "mean_boundary_iou", "mean_image_iou"):
            assert result[key] == pytest.approx(results[0][key], abs=1e-4)  # of 10 000 pixels one may be a tie
    assert results[0]["mean_iou"] > 0.01


@pytest.mark.slow
def test_files_have_their_own_precision_provider_and_hash(exported, capsys):
    folder = exported[0]
    assert main(["evaluate", str(folder), "--max_eval_samples", "1", "--precision", "bf16", "--device", "cpu"]) == 2
    assert "bf16 is for checkpoints" in capsys.readouterr().err
    for file, provider in (("model.onnx", "CPUExecutionProvider"), ("openvino_model.xml", "CPU")):
        words = ["evaluate", str(folder / file), "--max_eval_samples", "1", "--device", "cpu", "--classes_only"]
        assert main([*words, "--provider", provider, "--threads", "1"]) == 0
        assert main([*words, "--provider", "abacus"]) == 2
        assert f"provider 'abacus' is {'not in' if provider != 'CPU' else 'no device'}" in capsys.readouterr().err
    hashes = {load_exported(folder / file)[0].weights_sha256 for file in ("model.onnx", "openvino_model.xml")}
    assert len(hashes) == 2 and exported[1]["metadata"]["weights_sha256"] not in hashes


@pytest.mark.slow
def test_frames_of_a_video_are_those_of_the_checkpoint(checkpoint, exported, tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "drive.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "bgr0"
        for item in SceneDataset(2, size=(64, 96)):
            container.mux(stream.encode(av.VideoFrame.from_image(item["image"])))
        container.mux(stream.encode())
    maps = []
    for number, source in enumerate((checkpoint, exported[0] / "openvino_model.xml")):
        output = tmp_path / str(number)
        words = ["predict", str(source), str(tmp_path / "drive.mkv"), "--frames", "--output_dir", str(output)]
        assert main([*words, "--device", "cpu"]) == 0
        maps.append([np.asarray(Image.open(file)) for file in sorted(output.glob("drive/*_labels.png"))])
    assert len(maps[0]) == 2 and np.mean(np.array(maps[0]) == np.array(maps[1])) > 0.999  # but for ties


@pytest.mark.slow
def test_file_of_one_size_takes_every_picture(checkpoint, tmp_path, without_timing):
    """The exported processor squashes pictures; batches are filled up. Oracle: the checkpoint with such a processor."""
    options = GraphOptions(("logits",), static_shape=(2, 64, 96))
    record = export_model(str(checkpoint), tmp_path, ["onnx"], options=options)
    assert record["failures"] == [] and "squashed to 64x96" in record["verification"]["protocol"]
    assert record["files"][0]["mean_iou"] == record["checkpoint"]["mean_iou"]
    model, processor = load_model(checkpoint)
    assert "height" not in {key for key, value in dict(processor.size).items() if value}  # which stays as it was
    processor.size = {"height": 64, "width": 96}
    scenes = SceneDataset(3, seed=5, size=(90, 150))
    images = [scenes[index]["image"] for index in range(3)]
    exported = load_model(tmp_path)
    session, facts = runner.load(tmp_path / "model.onnx")
    expected = predict(model, processor, images)
    for image, found, label_map in zip(images, predict(*exported, images), expected, strict=True):
        assert (found == label_map).float().mean() > 0.999  # but for ties
        assert np.mean(runner.segment(session, facts, image) == label_map.numpy()) > 0.998  # whose pixels are rounded
    with pytest.raises(ValueError, match="pictures of 64x96 pixels alone and is shown one of 48x64"):
        segment(*exported, images[:1], scales=(0.75,))
    facts["preprocessing"]["size"] = {"shortest_edge": 64}
    with pytest.raises(ValueError, match="pictures of 64x96 pixels alone, and this one has 64x112"):
        runner.segment(session, facts, images[0])
    processor.window_size = 48
    with pytest.raises(ValueError, match="cuts windows of 48x48; give their size"):
        export_folder.fit_to_size(processor, (64, 96))


@pytest.mark.slow
def test_bytes_in(checkpoint, tmp_path, without_timing):
    record = export_model(str(checkpoint), tmp_path, ["onnx", "openvino"], normalize=True, opset=18)
    assert {entry.version for entry in onnx.load(tmp_path / "model.onnx").opset_import if not entry.domain} == {18}
    assert record["failures"] == [] and record["metadata"]["input"].startswith("uint8")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert session.get_inputs()[0].type == "tensor(uint8)"
    image = SceneDataset(1, size=(64, 96))[0]["image"]
    (label_map,) = session.run(["label_map"], {"pixel_values": np.asarray(image).transpose(2, 0, 1)[None]})
    (model, processor), (exported, same) = load_model(checkpoint), load_model(tmp_path)
    processor.do_resize = same.do_resize = False
    expected = predict(model, processor, [image])[0].numpy()
    # Mean and deviation are one product and one sum there: with random weights, a few pixels are that close to a tie.
    assert np.mean(label_map[0] == expected) > 0.999
    assert np.mean(predict(exported, same, [image])[0].numpy() == expected) > 0.999
    exported, _ = load_model(tmp_path / "openvino_model.xml")
    assert np.mean(predict(exported, same, [image])[0].numpy() == expected) > 0.999


@pytest.mark.slow
def test_8_bits_are_accepted_by_mean_iou(checkpoint, tmp_path, without_timing):
    from hf_segtx.export.quantization import calibration_inputs, quantize

    scenes = SceneDataset(2, size=(72, 96))
    data = {"dataset": scenes, "labels": scene_labels(), "calibration": scenes, "max_drop": 1.0}
    record = export_model(str(checkpoint), tmp_path, ["onnx", "openvino"], **data)
    assert [entry["precision"] for entry in record["files"]] == ["float32", "float32", "int8", "int8"]
    sizes = [(tmp_path / name).stat().st_size for name in ("openvino_model.bin", "openvino_model_int8.bin")]
    assert sizes[1] < 0.5 * sizes[0]
    hashes = {load_exported(tmp_path / entry["file"])[0].weights_sha256 for entry in record["files"]}
    assert len(hashes) == 4
    model, processor = load_exported(tmp_path / "model_int8.onnx")
    assert model.precision == "int8"
    assert predict(model, processor, [scenes[0]["image"]])[0].shape == (72, 96)
    inputs = calibration_inputs(processor, [scenes[0]["image"]], False, [], [])
    with pytest.raises(ValueError, match="a fall of more than max_drop, 0.5 points"):  # said to be perfect before
        quantize(tmp_path / "model.onnx", processor, inputs, scenes, before=1.0, max_drop=0.005)
    assert not (tmp_path / "model_int8.onnx").exists()


@pytest.mark.slow
def test_weights_are_computed_before_the_graph_runs():
    """Every kernel of OCRNet's split ones becomes an initializer; oracle is the graph as it was."""
    program = exported_program(trained("ocrnet"), GraphOptions(("logits",)), False, "onnx")
    before = translated(program, ["pixel_values"], ["logits"], 20).model_proto
    assert "Split" in {node.op_type for node in before.graph.node}
    model = copy.deepcopy(before)
    compute_weights(model)
    onnx.checker.check_model(model, full_check=True)
    check_operators(model)
    inputs = {"pixel_values": np.random.default_rng(0).standard_normal((2, 3, 70, 101), np.float32)}
    (before,), (after,) = (
        onnxruntime.InferenceSession(each.SerializeToString()).run(None, inputs) for each in (before, model)
    )
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-4 * before.std())  # kernels may be chosen otherwise


@pytest.mark.slow
def test_layers_are_kept_until_the_mean_iou_holds(exported, tmp_path):
    """Truth is what the model says; calibration on darkness spoils its 8 bits, until NNCF keeps enough layers."""
    from hf_segtx.export.quantization import calibration_inputs, quantize

    folder = shutil.copytree(exported[0], tmp_path / "exported")
    model, processor = load_exported(folder / "model.onnx")
    images = [item["image"] for item in SceneDataset(1, seed=3, size=(64, 96))]
    maps = predict(model, processor, images)
    truth = [{"image": image, "label": label, "name": ""} for image, label in zip(images, maps)]
    dark = calibration_inputs(processor, [Image.new("RGB", (96, 64))], False, [], [])
    found = []
    for max_drop in (1.0, 0.3):
        file, mean_iou = quantize(folder / "model.onnx", processor, dark, truth, before=1.0, max_drop=max_drop)
        found.append((mean_iou, [node.op_type for node in onnx.load(file).graph.node].count("QuantizeLinear")))
    assert found[0][0] < 0.7 <= found[1][0] and found[0][1] > found[1][1]


@pytest.mark.slow
def test_file_that_cannot_be_quantised_is_a_failure(checkpoint, tmp_path, without_timing, monkeypatch):
    """Where NNCF stumbles over a file, that is a sentence in the record, and no end of the others."""
    from hf_segtx.export.quantization import nncf

    def stumbling(*_, **__):
        raise KeyError("unfold_1")

    monkeypatch.setattr(nncf, "quantize", stumbling)
    scenes = SceneDataset(2, size=(72, 96))
    data = {"dataset": scenes, "labels": scene_labels(), "calibration": scenes, "max_drop": 1.0}
    record = export_model(str(checkpoint), tmp_path, ["onnx"], **data)
    assert record["failures"] == [
        f"model.onnx cannot be written in 8 bits: NNCF {nncf.__version__} fails with KeyError: 'unfold_1'"
    ]
    assert [entry["file"] for entry in record["files"]] == ["model.onnx"]
    assert not (tmp_path / "model_int8.onnx").exists()
    with pytest.raises(ValueError, match="needs the output logits"):
        export_folder.write_int8(record, None, tmp_path, GraphOptions(("label_map",)), scenes, scenes, 1.0)


def test_page_shows_names_as_they_are(checkpoint, tmp_path, monkeypatch):
    """A model "." is called like its folder; a name is neither a heading, a link nor a command."""
    folder = tmp_path / "a [b](c) *d*"
    shutil.copytree(checkpoint, folder)
    (folder / "README.md").write_text("---\nlicense: 'x: y'\n---\n")
    monkeypatch.chdir(folder)
    metadata = metadata_of(*load_model("."), GraphOptions(), ".")
    checked = {"bound": 1.0, "shapes": [[1, 2, 3]], "timed_shape": [1], "scored_images": 0}
    checked |= {"pictures_of": "", "protocol": ""}
    record = {"metadata": metadata, "options": {"outputs": ["logits"]}, "verification": checked}
    write_page(Path("."), record | {"checkpoint": {}, "files": [{"file": "model.onnx", "format": "onnx"}]})
    text = Path("README.md").read_text()
    assert "\n# a \\[b\\](c) \\*d\\*, exported\n" in text and "segtx predict 'a [b](c) *d*' photo" in text
    assert ModelCard(text).data.license == "x: y" and "onnx" in ModelCard(text).data.tags
    write_page(Path("."), record | {"checkpoint": {}, "files": [{"file": "openvino_model.xml", "format": "openvino"}]})
    text = Path("README.md").read_text()
    assert (
        "onnx" not in text and 'compile_model("openvino_model.xml", "CPU", exactly)' in text
    )  # nothing that is not there


@pytest.mark.slow
def test_program_of_pytorch_says_which_images_are_too_small(tmp_path):
    model, options = trained("segformer"), GraphOptions()
    torch.export.save(exported_program(model, options, False), tmp_path / "m.pt2")
    (tmp_path / "export.json").write_text(json.dumps({"metadata": {"outputs": json.dumps(options.outputs)}}))
    session = open_file(tmp_path / "m.pt2", ["logits"])
    assert session(np.zeros((1, 3, 64, 64), np.float32))["logits"].shape == (1, 4, 16, 16)
    with pytest.raises(ValueError, match=r"no input of shape \(1, 3, 32, 64\).* give a larger image"):
        session(np.zeros((1, 3, 32, 64), np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_openvino_exporter_of_transformers(name):
    """With dynamic=True: other batches and sizes than the example's; oracle is the model."""
    exporters = pytest.importorskip("transformers.exporters")
    model, example = trained(name), {"pixel_values": torch.randn(2, 3, 128, 192)}
    graph, _ = exporters.OpenVINOExporter().export_program(model, example, exporters.OpenVINOConfig(dynamic=True))
    # Else OpenVINO computes in 16 bits where the processor can.
    exported = openvino.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for shape in SHAPES[:3]:
        inputs = torch.randn(shape)
        with torch.no_grad():
            expected = model(pixel_values=inputs).logits
        found = torch.from_numpy(exported([inputs.numpy()])["logits"])
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[name] * float(expected.std()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["segformer", "ocrnet"])
def test_onnx_exporter_of_transformers(name):
    """As above."""
    exporters = pytest.importorskip("transformers.exporters")
    model, example = trained(name), {"pixel_values": torch.randn(2, 3, 128, 192)}
    exported = exporters.OnnxExporter().export(model, example, exporters.OnnxConfig(dynamic=True))
    for shape in SHAPES[:3]:
        inputs = torch.randn(shape)
        with torch.no_grad():
            expected = model(pixel_values=inputs).logits
        found = exported(pixel_values=inputs).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[name] * float(expected.std()))


@pytest.mark.slow
def test_static_half_and_label_map_only(checkpoint, tmp_path, without_timing):
    options = GraphOptions(("label_map",), half=True, static_shape=(1, 64, 96))
    record = export_model(str(checkpoint), tmp_path, ["onnx", "openvino"], options=options)
    assert record["verification"]["shapes"] == [[1, 64, 96]] and record["failures"] == []
    for entry in record["files"]:
        assert entry["precision"] == "float16"
        assert entry["largest_difference"] is None and entry["equal_pixels"] > 0.95
    (dimensions,) = [value.shape for value in onnxruntime.InferenceSession(tmp_path / "model.onnx").get_inputs()]
    assert dimensions == [1, 3, 64, 96]
    with pytest.raises(ValueError, match="no output `logits`"):
        load_model(tmp_path)


@pytest.mark.slow
def test_file_says_what_a_runner_needs(checkpoint, exported):
    tmp_path, _ = exported
    processor = load_model(checkpoint)[1]
    of_onnx = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    of_openvino = openvino.Core().read_model(tmp_path / "openvino_model.xml").get_rt_info()["model_info"]
    for metadata in (of_onnx, {key: value.astype(str) for key, value in of_openvino.items()}):
        preprocessing = json.loads(metadata["preprocessing"])
        assert preprocessing["size"] == {"shortest_edge": 72} and preprocessing["size_divisor"] == 16
        assert preprocessing["image_mean"] == list(processor.image_mean)
        assert json.loads(metadata["id2label"])["6"] == "vehicle" and metadata["license"] == "unknown"
    model = onnx.load(tmp_path / "model.onnx")
    names = [dimension.dim_param for dimension in model.graph.input[0].type.tensor_type.shape.dim]
    assert names == ["batch", "", "height", "width"] and not (tmp_path / "model.onnx.data").exists()
    assert {"Gelu", "LayerNormalization", "Resize", "ArgMax"} <= {node.op_type for node in model.graph.node}
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}


def test_what_cannot_be_exported_is_refused(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="'coreml'; choose among onnx, openvino, torch"):
        export_model(str(checkpoint), tmp_path, ["coreml"])
    with pytest.raises(ValueError, match="holds a model that is not an export"):
        export_model(str(checkpoint), checkpoint)
    with pytest.raises(ValueError, match="choose among label_map"):
        GraphOptions(("masks",))
    with pytest.raises(ValueError, match="opset is 17; .* writes 18 and later"):
        translated(None, [], [], 17)
    with pytest.raises(ValueError, match="provider and threads are for"):
        load_model(checkpoint, threads=2)


def test_an_export_that_fails_does_not_block_its_folder(checkpoint, tmp_path, monkeypatch):
    def fail(*args):
        raise NotImplementedError("no such operator")

    monkeypatch.setattr(export_folder, "write_graph", fail)
    for _ in range(2):
        with pytest.raises(NotImplementedError):
            export_model(str(checkpoint), tmp_path)


def test_graphs_of_an_earlier_export_are_removed(tmp_path):
    """They may be of another model than the one that the record is about from now on."""
    for name in ("model.onnx", "openvino_model.xml", "openvino_model.bin", "photo.jpg"):
        (tmp_path / name).touch()
    files = [{"file": "model.onnx"}, {"file": "openvino_model.xml"}]
    (tmp_path / "export.json").write_text(json.dumps({"files": files}))
    export_folder.remove_earlier(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"export.json", "photo.jpg"}


@pytest.mark.parametrize("name", ["model.onnx", "openvino_model.xml", "model.pt2"])
def test_damaged_files_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"half of it")
    (tmp_path / "export.json").write_text(json.dumps({"metadata": {"outputs": '["logits"]'}}))
    with pytest.raises(ValueError, match=f"{name} cannot be loaded .*; copy it again, or export the model again"):
        open_file(tmp_path / name, ["logits"])


@pytest.mark.slow
def test_difference_ends_with_status_1(checkpoint, tmp_path, without_timing, monkeypatch, capsys):
    """A graph whose head is off by a few per cent is written, named and refused."""
    from hf_segtx.export import graph

    def disturbed(model):
        model = folded(model)
        model.decode_head.classifier.weight.mul_(1.03)
        return model

    monkeypatch.setattr(graph, "folded", disturbed)
    data = write_folder(tmp_path / "data", size=(64, 80))
    words = ["export", str(checkpoint), "--output_dir", str(tmp_path / "out"), "--validation_dir", str(data)]
    assert main(words) == 1
    assert "model.onnx: logits differ by" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.onnx").is_file()
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["verification"]["protocol"] == "classes of data and model differ" and len(record["failures"]) >= 1


def test_images_of_all_modes_are_prepared_alike(checkpoint):
    """The runner without PyTorch: oracle is the PIL back-end of the image processor."""
    from hf_segtx.runtime.segment import prepare

    model, _ = load_model(checkpoint)
    processor = CASES["segformer"].row.processor_pil.from_pretrained(checkpoint)
    facts = metadata_of(model, processor, GraphOptions(), str(checkpoint))
    facts["preprocessing"] = json.loads(facts["preprocessing"])
    image = SceneDataset(1, size=(90, 151))[0]["image"]
    for each in (image, image.convert("L"), image.resize((40, 200))):
        pixels, size = prepare(each, facts)
        expected = np.asarray(processor(images=[each], return_tensors="np")["pixel_values"])
        assert pixels.shape == expected.shape and size[0] <= pixels.shape[2]
        np.testing.assert_allclose(pixels, expected, atol=1e-5)  # the order of rescaling and normalisation
