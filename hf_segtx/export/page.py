"""README.md of an exported folder: what is in it, how well it was verified, and a few lines for each language."""

import json
import shlex
from pathlib import Path

from ..markdown import plain


PAGE = """---
license: {license}
pipeline_tag: image-segmentation
tags: [semantic-segmentation, hf_segtx, {tags}]
---
# {source}, exported

{architecture} with {classes} classes. Input `pixel_values`: {input}, batch x {channels} x height x width.
Outputs: {outputs}. `preprocessor_config.json` says how pictures are prepared.

{table}

Bound of the logits' difference: {bound:g} standard deviations, at inputs of {shapes}. Ties are pixels whose two best
classes differ by no more than rounding. Milliseconds and memory: one call at {timed_shape}, beside the checkpoint in
PyTorch, each in a process of its own. Mean IoU: {scored}.
{lines}"""


LINES = {  # of each format
    "onnx": """
```bash
pip install numpy pillow onnxruntime && python segment.py photo.jpg    # label map and overlay, without PyTorch
segtx predict {folder} photo.jpg                                       # with hf_segtx: videos, folders
```

Python:
```python
from PIL import Image
from segment import load, segment  # beside this page; without PyTorch

session, facts = load("model.onnx")
label_map = segment(session, facts, Image.open("photo.jpg"))  # (height, width), class ids
```
C++:
```cpp
Ort::Env env; Ort::Session session(env, "model.onnx", Ort::SessionOptions{{}});
std::vector<int64_t> shape{{1, {channels}, height, width}};  // {input}
auto info = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
auto input = Ort::Value::CreateTensor<{cpp_type}>(info, pixels.data(), pixels.size(), shape.data(), shape.size());
const char *in[] = {{"pixel_values"}}, *out[] = {{"{first_output}"}};
auto results = session.Run(Ort::RunOptions{{}}, in, &input, 1, out, 1);
const {cpp_output} *{first_output} = results[0].GetTensorData<{cpp_output}>();
```
JavaScript:
```javascript
import * as ort from "onnxruntime-web";
const session = await ort.InferenceSession.create("model.onnx");
const input = new ort.Tensor("{js_type}", pixels, [1, {channels}, height, width]); // {input}
const {{ {first_output} }} = await session.run({{ pixel_values: input }});
console.log({first_output}.dims, {first_output}.data);
```
TensorRT: `trtexec --onnx=model.onnx --minShapes=pixel_values:1x{channels}x256x256 \
--optShapes=pixel_values:1x{channels}x512x512 --maxShapes=pixel_values:4x{channels}x1024x1024` (not run here; a file of
one size, `--static`, asks least of it).
""",
    "openvino": """
OpenVINO, or `segtx predict {folder}/openvino_model.xml photo.jpg`:
```python
import openvino

exactly = {{"INFERENCE_PRECISION_HINT": "f32"}}  # without it in 16 bits, where the processor multiplies them
model = openvino.compile_model("openvino_model.xml", "CPU", exactly)
{first_output} = model(pixels)["{first_output}"]  # pixels: (batch, {channels}, height, width), {input}
```
```cpp
auto exactly = ov::hint::inference_precision(ov::element::f32);
ov::InferRequest request = ov::Core().compile_model("openvino_model.xml", "CPU", exactly).create_infer_request();
request.set_input_tensor(ov::Tensor(ov::element::from<{cpp_type}>(), {{1, {channels}, height, width}}, pixels.data()));
request.infer();
const {cpp_output} *{first_output} = request.get_tensor("{first_output}").data<{cpp_output}>();
```
""",
    "torch": """
PyTorch, without hf_segtx:
```python
import torch

model = torch.export.load("model.pt2").module()
{first_output} = model(pixels)[0]  # pixels: (batch, {channels}, height, width), {input}
```
Core ML and ExecuTorch start from such a file of one size: see "Others" in hf_segtx's docs/deployment.md.
""",
}


def write_page(folder: Path, record: dict) -> None:
    """Writes README.md from what export.json says."""
    metadata, options, checked = record["metadata"], record["options"], record["verification"]
    preprocessing = json.loads(metadata["preprocessing"])
    takes_bytes = metadata["input"].startswith("uint8")
    scored = f"of {checked['scored_images']} images ({checked['pictures_of']}); {checked['protocol'].rstrip('.')}"
    first_output, classes = options["outputs"][0], len(json.loads(metadata["id2label"]))
    names = {
        "folder": shlex.quote(folder.resolve().name),
        "input": metadata["input"],
        "channels": len(preprocessing["image_mean"]),
        "first_output": first_output,
        "cpp_type": "uint8_t" if takes_bytes else "float",
        "cpp_output": "float" if first_output != "label_map" else "uint8_t" if classes <= 256 else "int16_t",
        "js_type": "uint8" if takes_bytes else "float32",
    }
    formats = dict.fromkeys(entry["format"] for entry in record["files"])
    text = PAGE.format(
        license=json.dumps(metadata["license"]),
        source=plain(metadata["source"]),
        architecture=metadata["architecture"],
        classes=classes,
        input=metadata["input"],
        channels=names["channels"],
        outputs=", ".join(f"`{name}`" for name in options["outputs"]),
        table="\n".join(table(record)),
        bound=checked["bound"],
        shapes=", ".join("x".join(map(str, shape)) for shape in checked["shapes"]),
        timed_shape="x".join(map(str, checked["timed_shape"])),
        scored=scored if checked["scored_images"] else f"not measured ({checked['protocol']})",
        tags=", ".join(formats),
        lines="".join(LINES[format].format(**names) for format in formats),
    )
    (folder / "README.md").write_text(text)


def table(record: dict) -> list[str]:
    """Markdown: one line for the checkpoint and one for each file."""
    lines = [
        "| file | MB | largest difference of logits | equal pixels | unequal, no ties | mean IoU | ms | MiB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]

    def number(entry: dict, key: str, form: str) -> str:
        return "-" if entry.get(key) is None else format(entry[key], form)

    for entry in ({"file": "checkpoint, PyTorch", **record["checkpoint"]}, *record["files"]):
        megabytes = format(entry["bytes"] / 1e6, ".1f") if "bytes" in entry else "-"
        cells = [
            entry["file"],
            megabytes,
            number(entry, "largest_difference", ".1e"),
            number(entry, "equal_pixels", ".6f"),
            number(entry, "unequal_decided", "d"),
            number(entry, "mean_iou", ".4f"),
            number(entry, "milliseconds", ".0f"),
            number(entry, "peak_mib", ".0f"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
