"""Demos without a browser: what is drawn, the files of a Space, the graph of a static page."""

import ast
import io
import json

import huggingface_hub
import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from conformance.fake_hub import FakeHub
from demo_models import NAMES, save_model
from PIL import Image

from hf_segtx.cli import main
from hf_segtx.data.scenes import SceneDataset
from hf_segtx.demo import space, static_page
from hf_segtx.demo.views import Models
from hf_segtx.export import export_model
from hf_segtx.inference import load_model, predict, segment
from hf_segtx.visualization import color_map


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("demo") / "tiny")


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "scene.png"
    SceneDataset(1, seed=9, size=(70, 101))[0]["image"].save(file)
    return file


# ------------------------------------------------------------------------------------------------ what is drawn


def test_views_are_those_of_inference(folder, picture):
    model, processor = load_model(folder)
    models = Models({"tiny": (model, processor)})
    seen = models.see(picture)
    (expected,) = segment(model, processor, [Image.open(picture)], return_uncertainty=True)
    (view,) = seen.views
    label_map = expected.label_map.numpy()
    assert len(np.unique(label_map)) > 2
    assert np.array_equal(view.label_map, label_map)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(view.png))), label_map)
    # Rounding of 16-bit floats in [0, 1]
    assert np.allclose(view.confidence, expected.confidence, atol=1e-3)
    assert np.allclose(view.entropy, expected.entropy / np.log(len(NAMES)), atol=1e-3)
    counts = np.bincount(label_map.ravel())
    assert models.present(seen) == {
        label: counts[label] / label_map.size for label in np.argsort(-counts, kind="stable").tolist() if counts[label]
    }


def test_classes_are_switched_off_and_opacity_counts(folder, picture):
    model, processor = load_model(folder)
    models = Models({"tiny": (model, processor)})
    seen = models.see(picture)
    label_map, pixels = seen.views[0].label_map, np.asarray(Image.open(picture))
    colors = color_map(label_map, models.colors)
    (full,) = models.draw(seen, "classes", 1.0, range(len(NAMES)))
    assert np.array_equal(full, colors)
    off = int(label_map[0, 0])
    (part,) = models.draw(seen, "classes", 1.0, set(range(len(NAMES))) - {off})
    assert np.array_equal(part, np.where((label_map == off)[..., None], pixels, colors))
    for kind in ("confidence", "entropy"):
        (none,) = models.draw(seen, kind, 1.0, [])
        assert np.array_equal(none, pixels)
        (bright,) = models.draw(seen, kind, 1.0, range(len(NAMES)))
        light, values = np.asarray(bright.convert("L"), float), getattr(seen.views[0], kind).astype(float)
        assert np.corrcoef(light.ravel(), values.ravel())[0, 1] > 0.9  # dark to bright, though not quite linear


def test_two_models_share_classes_by_name(folder, picture):
    first, processor = load_model(folder)
    second, _ = load_model(folder)
    second.config.id2label = {**second.config.id2label, 0: "lava", 1: NAMES[2], 2: NAMES[1]}
    models = Models({"first": (first, processor), "second": (second, processor)})
    assert models.names == [*NAMES, "lava"]
    assert len(set(models.colors)) == len(models.names)
    one, other = (view.label_map for view in models.see(picture).views)
    table = np.array([len(NAMES), 2, 1, *range(3, len(NAMES))])
    assert np.array_equal(other, table[one]) and not np.array_equal(one, other)


def test_what_is_wrong_with_a_file_is_told(folder, tmp_path):
    gradio = pytest.importorskip("gradio")
    from hf_segtx.demo.app import build, style, told_to_visitors

    models = Models({"tiny": load_model(folder)})
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    with pytest.raises(gradio.Error, match="broken.png: cannot be decoded") as told, told_to_visitors():
        models.see(broken)
    assert str(tmp_path) not in str(told.value)
    app = build(models)
    events = {event["api_name"] for event in app.config["dependencies"]}
    assert {"segment", "segment_video"} <= events
    assert all(f"input[name='{index}']" in style(models) for index in range(len(NAMES)))


# ----------------------------------------------------------------------------------------------------- a Space


def test_space_is_written_without_network(folder, tmp_path, capsys):
    pytest.importorskip("gradio")
    out = tmp_path / "space"
    words = ["demo", str(folder), "--push_to_hub", "me/street-demo", "--dry_run", "--output_dir", str(out)]
    assert main(words) == 0
    assert "for me/street-demo" in capsys.readouterr().out
    header, text = (out / "README.md").read_text().split("---\n", 2)[1:]
    card = yaml.safe_load(header)
    assert (card["sdk"], card["app_file"], card["title"]) == ("gradio", "app.py", "street-demo")
    assert card["sdk_version"] and "hf_segtx" in card["tags"] and "tiny" in text
    lines = (out / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("torch>") for line in lines) and not any("pytest" in line for line in lines)
    calls = [node for node in ast.walk(ast.parse((out / "app.py").read_text())) if isinstance(node, ast.Call)]
    assert [call.args[0].value for call in calls if call.func.id == "load_model"] == ["model"]
    image = SceneDataset(1, size=(64, 64))[0]["image"]
    copied, original = (predict(*load_model(place), [image])[0] for place in (out / "model", folder))
    assert torch.equal(copied, original)
    assert (out / "hf_segtx" / "demo" / "page" / "worker.js").is_file() and not list(out.rglob("__pycache__"))
    assert main(words) == 2 and "is not empty" in capsys.readouterr().err


def test_space_is_one_commit(tmp_path, monkeypatch):
    written = tmp_path / "page"
    (written / "examples").mkdir(parents=True)
    for name in ("index.html", "model.onnx", "examples/scene_1.png"):
        (written / name).write_bytes(name.encode())
    space.write_static_card(written, "street-demo", license="mit")

    def breaks(*_, **__):
        raise OSError("cable cut")

    with FakeHub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        huggingface_hub.close_session()  # made for the offline mode
        address = space.push_space(written, "me/street-demo", token="hf_fake")
        commits = hub.repos[("space", "me/street-demo")]["commits"]
        monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", breaks)
        with pytest.raises(ValueError, match="the upload to me/other failed .cable cut."):
            space.push_space(written, "me/other", token="hf_fake")
    huggingface_hub.close_session()
    assert address.endswith("spaces/me/street-demo") and len(commits) == 2  # the first one makes the repository
    files = {str(file.relative_to(written)) for file in written.rglob("*") if file.is_file()}
    assert set(commits[-1][1]) - {".gitattributes"} == files


@pytest.mark.slow
def test_space_of_an_export_and_of_a_hub_model(folder, tmp_path):
    pytest.importorskip("gradio")
    export_model(str(folder), tmp_path / "exported")
    written = space.write_space(tmp_path / "space", [str(tmp_path / "exported"), "me/other"], "me/demo")
    image = SceneDataset(1, size=(64, 64))[0]["image"]
    copied, original = (predict(*load_model(place), [image])[0] for place in (written / "model", folder))
    assert torch.equal(copied, original)
    assert "'me/other': load_model('me/other')" in (written / "app.py").read_text()
    assert yaml.safe_load((written / "README.md").read_text().split("---")[1])["models"] == ["me/other"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--push_to_hub", "demo", "--dry_run"], "give USER/NAME"),
        (["--dry_run"], "--push_to_hub"),
        (["again", "--static", "page"], "shows one model"),
    ],
)
def test_flags_that_do_not_go_together(folder, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", str(folder), *words]) == 2
    assert message in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ a static page


@pytest.fixture
def runtime(tmp_path):
    """Empty files with the names of onnxruntime-web's."""
    place = tmp_path / "package" / "dist"
    place.mkdir(parents=True)
    for name in static_page.RUNTIME_FILES:
        (place / name).write_bytes(b"")
    return place.parent


def shares(count, own, whole, align_corners):
    """What worker.js says of where the pixels lie, in Python."""
    index = np.arange(count)
    if align_corners:
        return (index / max(count - 1, 1) * (own - 1) / max(whole - 1, 1)).astype(np.float32)
    return ((index + 0.5) / count * own / whole).astype(np.float32)


@pytest.mark.parametrize(
    "architecture, fields",
    [
        ("segmenter", {"do_flip_channel_order": True}),  # padded to whole patches
        pytest.param("ocrnet", {"align_corners": True}, marks=pytest.mark.slow),
        pytest.param("setr", {"num_labels": 1}, marks=pytest.mark.slow),
    ],
)
def test_graph_and_facts_give_the_map_of_predict(tmp_path, runtime, capsys, architecture, fields):
    """Pictures of the network's own size, so that nothing is resized before it."""
    folder = save_model(tmp_path / "tiny", architecture, do_resize=False, **fields)
    out = tmp_path / "page"
    assert main(["demo", str(folder), "--static", str(out), "--runtime", str(runtime)]) == 0
    assert "python -m http.server" in capsys.readouterr().out
    facts = json.loads((out / "facts.json").read_text())
    session = onnxruntime.InferenceSession(out / "model.onnx")
    model, processor = load_model(folder)
    for height, width in ((66, 93), (128, 64)):
        image = SceneDataset(1, seed=2, size=(height, width))[0]["image"]
        padded = [-(-max(side, facts["minimum"]) // facts["divisor"]) * facts["divisor"] for side in (height, width)]
        pixels = np.empty((1, 3, *padded), np.float32)
        pixels[:] = np.reshape(facts["padding"], (1, 3, 1, 1))
        pixels[0, :, :height, :width] = np.asarray(image).transpose(2, 0, 1)
        rows, columns = (
            shares(own, own, whole, facts["align_corners"]) for own, whole in zip((height, width), padded, strict=True)
        )
        (label_map,) = session.run(["label_map"], {"pixel_values": pixels, "rows": rows, "columns": columns})
        expected = predict(model, processor, [image])[0].numpy()
        assert len(np.unique(expected)) > 1
        # Ties that float32 rounds the other way; another position or padding changes whole borders.
        assert np.mean(label_map != expected) < 1e-3
    card = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    assert (card["sdk"], card["app_file"]) == ("static", "index.html")
    needed = {"index.html", "page.css", "page.js", "worker.js", *static_page.RUNTIME_FILES, *facts["examples"]}
    assert all((out / name).is_file() for name in needed)


def test_what_a_static_page_cannot_do_is_refused(folder, tmp_path, runtime, monkeypatch):
    model, processor = load_model(folder)

    def write(**options):
        static_page.write_static_page(str(folder), model, processor, tmp_path / "page", **options)

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="npm is not installed.*npm pack onnxruntime-web@"):
        write()
    with pytest.raises(ValueError, match="lacks ort.wasm.min.mjs"):
        write(runtime=tmp_path / "page")
    processor.resample = 4
    with pytest.raises(ValueError, match="resample is 4"):
        write(runtime=runtime)
