"""README.md of an exported folder: what is in it, how well it was verified, and a few lines for each language."""

import json
import shlex
from pathlib import Path

from ..markdown import plain


PAGE = """---
license: {license}
pipeline_tag: image-segmentation
tags: [semantic-segmentation, hf_segtx, onnx]
---
# {source}, exported

{architecture} with {classes} classes. Input `pixel_values`: {input}, batch x {channels} x height x width.
Outputs: {outputs}.

{table}

Bound of the logits' difference: {bound:g} standard deviations, at inputs of {shapes}. Ties are pixels whose two best
classes differ by no more than rounding. Milliseconds and memory: one call at {timed_shape}, beside the checkpoint in
PyTorch, each in a process of its own. Mean IoU: {scored}.

```bash
pip install numpy pillow onnxruntime && python segment.py photo.jpg    # label map and overlay, without PyTorch
segtx predict {folder} photo.jpg                                       # with hf_segtx: videos, folders, scales
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
auto labels = session.Run(Ort::RunOptions{{}}, in, &input, 1, out, 1);
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
one size, `--static`, asks least of it). Core ML and ExecuTorch start from `model.pt2` of one size (not run here).
"""


def write_page(folder: Path, record: dict) -> None:
    """Writes README.md from what export.json says."""
    metadata, options, checked = record["metadata"], record["options"], record["verification"]
    preprocessing = json.loads(metadata["preprocessing"])
    takes_bytes = metadata["input"].startswith("uint8")
    scored = f"of {checked['scored_images']} images; {checked['protocol']}"
    text = PAGE.format(
        license=json.dumps(metadata["license"]),
        source=plain(metadata["source"]),
        architecture=metadata["architecture"],
        classes=len(json.loads(metadata["id2label"])),
        input=metadata["input"],
        channels=len(preprocessing["image_mean"]),
        outputs=", ".join(f"`{name}`" for name in options["outputs"]),
        first_output=options["outputs"][0],
        cpp_type="uint8_t" if takes_bytes else "float",
        js_type="uint8" if takes_bytes else "float32",
        table="\n".join(table(record)),
        bound=checked["bound"],
        shapes=", ".join("x".join(map(str, shape)) for shape in checked["shapes"]),
        timed_shape="x".join(map(str, checked["timed_shape"])),
        scored=scored if checked["scored_images"] else f"not measured ({checked['protocol']})",
        folder=shlex.quote(folder.resolve().name),
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
