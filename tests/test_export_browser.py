"""Exports in headless Chromium: transformers.js and onnxruntime-web give the label maps of the models themselves."""

import functools
import json
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CASES

from hf_segtx.data.scenes import SceneDataset
from hf_segtx.export.graph import GraphOptions, exported_program
from hf_segtx.export.to_onnx import write_onnx
from hf_segtx.export.to_transformers_js import save_for_transformers_js
from hf_segtx.export.verification import same_labels


pytestmark = pytest.mark.slow
sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
PACKAGE = "@huggingface/transformers@4.3.2"  # and, for it, onnxruntime-web
ONNXRUNTIME_WEB = """
async ([file, pixels, shape]) => {
  const ort = await import("/node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs");
  ort.env.wasm.wasmPaths = "/node_modules/onnxruntime-web/dist/";
  ort.env.wasm.numThreads = 1;
  const values = new Float32Array(await (await fetch(pixels, {cache: "no-store"})).arrayBuffer());
  const session = await ort.InferenceSession.create(file);
  const { label_map } = await session.run({ pixel_values: new ort.Tensor("float32", values, shape) });
  return [label_map.type, label_map.dims, Array.from(label_map.data)];
}
"""
TRANSFORMERS_JS = """
async ([folder, dtype, picture]) => {
  const { pipeline, env } = await import("/node_modules/@huggingface/transformers/dist/transformers.min.js");
  Object.assign(env, { allowRemoteModels: false, allowLocalModels: true, localModelPath: "/", useBrowserCache: false });
  env.backends.onnx.wasm.wasmPaths = "/node_modules/onnxruntime-web/dist/";
  env.backends.onnx.wasm.numThreads = 1;
  const segmenter = await pipeline("image-segmentation", folder, { dtype, device: "wasm" });
  const segments = await segmenter(picture);
  const labels = new Array(segments[0].mask.data.length).fill(-1);
  for (const { label, mask } of segments) {
    mask.data.forEach((value, place) => { if (value) labels[place] = segmenter.model.config.label2id[label]; });
  }
  return [[segments[0].mask.height, segments[0].mask.width], labels];
}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Folder with npm's packages, an empty page, and what tests put there; and the address of its server."""
    if shutil.which("npm") is None:
        pytest.skip("there is no npm, which fetches transformers.js: apt-get install npm")
    folder = tmp_path_factory.mktemp("site")
    words = "npm install --ignore-scripts --prefer-offline --no-audit --no-fund".split()
    done = subprocess.run([*words, PACKAGE], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"npm cannot fetch {PACKAGE}; run `npm cache add {PACKAGE}` with a network: {done.stderr[-200:]}")
    (folder / "index.html").write_text("<!doctype html><title>export</title>")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=folder)
    handler.func.extensions_map |= {".mjs": "text/javascript", ".wasm": "application/wasm"}
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def page(site):
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])  # containers lack its needs
        page = browser.new_page()
        page.set_default_timeout(300_000)  # milliseconds, on a machine that does other things as well
        page.goto(site[1])
        yield page
        browser.close()


def check_labels(logits, labels, margin):
    """Every pixel (B, H, W) has the model's class, but for ties, whose two best differ by less than the margin."""
    for expected, found in zip(logits, labels, strict=True):
        same, decided = same_labels(expected, found, found.shape, False, margin * float(logits.std()))
        assert bool((same | ~decided).all()) and float(decided.float().mean()) > 0.99


@pytest.mark.parametrize("name", CASES)
def test_label_maps_of_onnxruntime_web(name, site, page):
    torch.manual_seed(0)
    model, options = CASES[name].make_model(), GraphOptions(("label_map",))
    write_onnx(exported_program(model, options, False, "onnx"), site[0] / f"{name}.onnx", options.outputs, {})
    for shape in ((1, 3, 64, 64), (2, 3, 72, 104), (1, 3, 70, 101)):
        inputs = torch.randn(shape)
        (site[0] / "pixels.bin").write_bytes(inputs.numpy().tobytes())
        kind, size, values = page.evaluate(ONNXRUNTIME_WEB, [f"/{name}.onnx", "/pixels.bin", list(shape)])
        assert kind == "uint8" and size == [shape[0], *shape[2:]]
        with torch.no_grad():
            check_labels(model(inputs).logits, np.array(values).reshape(size), margin=1e-3)  # rounding, twice


def test_transformers_js(site, page):
    """The pipeline that users call: picture, its own processor, our graph, its own upsampling and argmax."""
    torch.manual_seed(0)
    model = CASES["segformer"].make_model()
    processor = CASES["segformer"].row.processor(size={"height": 96, "width": 128})
    save_for_transformers_js(model, processor, site[0] / "segformer")
    assert json.loads((site[0] / "segformer" / "config.json").read_text())["model_type"] == "segformer"
    SceneDataset(1, seed=4, size=(96, 128))[0]["image"].save(site[0] / "scene.png")
    with torch.no_grad():
        pixel_values = processor(images=[Image.open(site[0] / "scene.png")], return_tensors="pt")["pixel_values"]
        logits = model(pixel_values).logits
    for dtype, margin in (("fp32", 1e-3), ("fp16", 0.02), ("q8", 0.4)):  # twice what 24, 11 and 8 bits round
        size, values = page.evaluate(TRANSFORMERS_JS, ["segformer", dtype, "/scene.png"])
        labels = np.array(values).reshape(1, *size)
        assert size == [96, 128]
        if dtype == "fp32":
            check_labels(logits, labels, margin)
        else:
            same, decided = same_labels(logits[0], labels[0], (96, 128), False, margin * float(logits.std()))
            assert bool((same | ~decided).all())
