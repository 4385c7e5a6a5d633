"""Peak memory of whole processes that turn one picture into its label map: SegFormer in PyTorch and in OpenVINO.

    OMP_NUM_THREADS=2 python benchmarks/memory.py
    OMP_NUM_THREADS=2 python benchmarks/memory.py --sizes b0 b5 --sides 512

Each row is a process of its own that imports, loads a saved folder or an exported graph, and predicts a square picture
twice, as users of it do: `hf_segtx.inference`; transformers' model, image processor and post-processing; a graph in
OpenVINO with nothing but numpy, to the label map with ours, to the logits with transformers', of which users make the
label map with PyTorch (that is not counted) or numpy. Random weights, 150 classes, float32.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np


RUNS = ("hf_segtx, PyTorch", "transformers, PyTorch", "hf_segtx, OpenVINO", "transformers, OpenVINO to logits")


def write(size: str, side: int, folder: Path) -> None:
    """Saves both models with equal weights, and exports both for images of this size."""
    import torch
    from transformers import SegformerForSemanticSegmentation

    from hf_segtx import SegFormerConfig, SegFormerForSemanticSegmentation, SegFormerImageProcessor
    from hf_segtx.export.graph import Graph, GraphOptions, exported_program
    from hf_segtx.export.to_openvino import write_openvino
    from hf_segtx.weights.to_transformers import LAYER_NORM_EPS, save_for_transformers

    equal = {"layer_norm_eps": LAYER_NORM_EPS, "embedding_layer_norm_eps": LAYER_NORM_EPS}
    model = SegFormerForSemanticSegmentation(SegFormerConfig.from_size(size, num_labels=150, **equal)).eval()
    processor = SegFormerImageProcessor(do_resize=False)
    model.save_pretrained(folder / "ours")
    processor.save_pretrained(folder / "ours")
    save_for_transformers(model, processor, folder / "theirs")
    theirs = SegformerForSemanticSegmentation.from_pretrained(folder / "theirs").eval()
    shape = {"static_shape": (1, side, side)}
    program = exported_program(model, GraphOptions(("label_map",), **shape), False, "openvino")
    write_openvino(program, folder / "ours.xml", ["label_map"], {})
    with torch.no_grad():
        graph = Graph(theirs, GraphOptions(("logits",), **shape), False, "openvino")
        program = torch.export.export(graph, (torch.zeros(1, 3, side, side),))
    write_openvino(program, folder / "theirs.xml", ["logits"], {})


def predict(run: str, folder: Path, side: int) -> np.ndarray:
    """The label map of a picture, or the logits."""
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
    library, _, runtime = run.partition(", ")
    if runtime.startswith("OpenVINO"):
        import openvino

        name = {"hf_segtx": "ours", "transformers": "theirs"}[library]
        model = openvino.Core().compile_model(folder / f"{name}.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        pixels = (picture.transpose(2, 0, 1)[None] / 255 - 0.45) / 0.225
        return [model(pixels.astype(np.float32))[0] for _ in range(2)][1]
    if library == "hf_segtx":
        from PIL import Image

        from hf_segtx.inference import load_model, segment

        model, processor = load_model(folder / "ours")
        return [segment(model, processor, [Image.fromarray(picture)])[0].label_map for _ in range(2)][1]
    import torch
    from transformers import SegformerForSemanticSegmentation, SegformerImageProcessor

    model = SegformerForSemanticSegmentation.from_pretrained(folder / "theirs").eval()
    processor = SegformerImageProcessor.from_pretrained(folder / "theirs")
    for _ in range(2):
        with torch.inference_mode():
            outputs = model(**processor(picture, return_tensors="pt"))
        label_map = processor.post_process_semantic_segmentation(outputs, [(side, side)])[0]
    return label_map


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["b0", "b2"])
    parser.add_argument("--sides", nargs="+", type=int, default=[512, 1024])
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)  # run, folder, side: a process of its own
    arguments = parser.parse_args()
    if arguments.child:
        run, folder, side = arguments.child
        predict(run, Path(folder), int(side))
        status = Path("/proc/self/status").read_text()  # of Linux; getrusage would count the parent's memory
        print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)
        return
    from measure import machine

    print(machine())
    rows = {run: [f"| {run}"] for run in RUNS}
    rows["head"] = ["| MiB"]
    for size in arguments.sizes:
        for side in arguments.sides:
            rows["head"].append(f"{size}, {side}x{side}")
            with tempfile.TemporaryDirectory() as folder:
                write(size, side, Path(folder))
                for run in RUNS:
                    words = [sys.executable, __file__, "--child", run, folder, str(side)]
                    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
                    rows[run].append(f"{float(done.stdout.splitlines()[-1]):.0f}")
    print(" | ".join(rows.pop("head")), "|")
    print("|---|" + "---:|" * (len(rows[RUNS[0]]) - 1))
    print(*[" | ".join(row) + " |" for row in rows.values()], sep="\n")


if __name__ == "__main__":
    main()
