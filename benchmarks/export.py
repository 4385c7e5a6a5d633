"""Exported graphs side by side, interleaved: eager, compiled, ONNX Runtime, OpenVINO and OpenVINO in 8 bits.

    OMP_NUM_THREADS=2 python benchmarks/export.py                          # all four, SegFormer-B0 beside transformers'
    OMP_NUM_THREADS=2 python benchmarks/export.py --models segformer --sizes b0 b2 --no_compile
    OMP_NUM_THREADS=2 python benchmarks/export.py --parts tail             # upsampling and argmax alone

Random weights; images of 512x512, batch 1, float32. Prints median and minimum of the time and, for SegFormer, the
ratios to transformers' model exported by torch.export for the same runtime: up to its logits, of which its image
processor makes the label map, as users do; and with the tail of ours in the graph. `--processor_time` adds up that of
all threads, for a machine that does other things as well.
"""

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import nncf
import numpy as np
import openvino
import torch
import torch.nn.functional as F
from measure import interleave, machine, record
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from hf_segtx.architectures import ARCHITECTURES
from hf_segtx.export.graph import Graph, GraphOptions, exported_program
from hf_segtx.export.runner import open_onnx, open_openvino
from hf_segtx.export.to_onnx import write_onnx
from hf_segtx.export.to_openvino import write_openvino
from hf_segtx.models.configuration_segformer import SIZES


PUBLISHED = {"segformer": ["b0"], "setr": ["base"], "segmenter": ["small"], "ocrnet": ["hrnet_w18"]}
# What a user would take instead, and ours: rows of a table.
PAIRS = (
    ("transformers, ONNX Runtime", "eager"),
    ("transformers, OpenVINO", "eager"),
    ("transformers, ONNX Runtime", "ours, ONNX Runtime"),
    ("transformers, OpenVINO", "ours, OpenVINO"),
    ("transformers with our tail, ONNX Runtime", "ours, ONNX Runtime"),
    ("transformers with our tail, OpenVINO", "ours, OpenVINO"),
    ("ours, OpenVINO", "eager"),
    ("ours, OpenVINO", "eager, optimized copy"),
)
OPTIONS = GraphOptions(("label_map", "logits"), static_shape=(1, 512, 512))


def timed(calls: dict, arguments: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Median and minimum of the time of each call in ms."""
    clock = time.process_time if arguments.processor_time else time.perf_counter
    seconds = interleave(calls, arguments.rounds, clock)
    return {name: (1000 * statistics.median(values), 1000 * min(values)) for name, values in seconds.items()}


def sessions(files: tuple[Path, Path], name: str, output: str = "label_map") -> dict:
    """ONNX Runtime and OpenVINO on the files of a model, with as many threads as PyTorch has."""
    threads = torch.get_num_threads()
    return {
        f"{name}, ONNX Runtime": open_onnx(files[0], [output], None, threads),
        f"{name}, OpenVINO": open_openvino(files[1], [output], None, threads),
    }


def written(make_program, folder: Path, name: str) -> tuple[Path, Path]:
    """The files of a model for both."""
    files = folder / f"{name}.onnx", folder / f"{name}.xml"
    write_onnx(make_program("onnx"), files[0], OPTIONS.outputs, {})
    write_openvino(make_program("openvino"), files[1], OPTIONS.outputs, {})
    return files


def transformers_sessions(size: str, num_labels: int, folder: Path) -> dict:
    """Those of transformers' SegFormer, as users run it, and with the tail of ours."""
    theirs = SegformerForSemanticSegmentation(SegformerConfig(**SIZES[size], num_labels=num_labels)).eval()
    processor = SegformerImageProcessor()

    def program(runtime: str) -> torch.export.ExportedProgram:
        with torch.no_grad():
            return torch.export.export(Graph(theirs, OPTIONS, False, runtime), (torch.zeros(1, 3, 512, 512),))

    def label_map(run, array: np.ndarray) -> list:
        logits = SimpleNamespace(logits=torch.from_numpy(run(array)["logits"]))
        return processor.post_process_semantic_segmentation(logits, [(512, 512)])

    files = written(program, folder, "transformers")
    runs = {name: partial(label_map, run) for name, run in sessions(files, "transformers", "logits").items()}
    return runs | sessions(files, "transformers with our tail")


def in_8_bits(folder: Path, name: str) -> str:
    """Quantises ours.xml on noise, to int8.xml; returns why that failed, or nothing."""
    try:
        quantized = nncf.quantize(
            openvino.Core().read_model(folder / "ours.xml"),
            nncf.Dataset([np.random.randn(1, 3, 512, 512).astype(np.float32) for _ in range(4)]),
            subset_size=4,
            model_type=None if name == "ocrnet" else nncf.ModelType.TRANSFORMER,
        )
    except Exception as error:  # of any type: NNCF stumbles over graphs that it does not know
        return f"NNCF {nncf.__version__} fails with {type(error).__name__}: {error}"
    openvino.save_model(quantized, folder / "int8.xml", compress_to_fp16=False)
    return ""


def models(arguments: argparse.Namespace, folder: Path) -> None:
    sizes = PUBLISHED | {"segformer": arguments.sizes}
    for name, size in [(architecture, size) for architecture in arguments.models for size in sizes[architecture]]:
        torch.manual_seed(0)
        row = ARCHITECTURES[name]
        model = row.model(row.config.from_size(size, num_labels=arguments.num_labels)).eval()
        processor = row.processor()
        inputs = torch.randn(1, 3, 512, 512)
        align_corners = getattr(model.config, "align_corners", False)
        program = partial(exported_program, model, OPTIONS, align_corners)
        runs = sessions(written(program, folder, "ours"), "ours")
        if name == "segformer":
            runs |= transformers_sessions(size, arguments.num_labels, folder)
        reason = in_8_bits(folder, name)
        if not reason:
            runs["ours, OpenVINO in 8 bits"] = open_openvino(
                folder / "int8.xml", ["label_map"], None, torch.get_num_threads()
            )

        @torch.inference_mode()
        def eager(net=model, processor=processor, inputs=inputs):
            return processor.post_process_semantic_segmentation(net(inputs), [(512, 512)])

        compiled = torch.compile(model)
        calls = {"eager": eager, "eager, optimized copy": partial(eager, model.optimize_for_inference())}
        if arguments.compile:
            calls["compiled"] = lambda net=compiled: eager(net)
        array = inputs.numpy()
        calls |= {key: (lambda run=run, array=array: run(array)) for key, run in runs.items()}
        times = timed(calls, arguments)
        print(f"\n{name}, {size}, {arguments.num_labels} classes, to the label map of 512x512")
        for key, (median, least) in times.items():
            print(f"  {key:42}{median:8.0f} ms, at least {least:6.0f}", flush=True)
        if reason:
            print(f"  {'ours, OpenVINO in 8 bits':42} none: {reason}", flush=True)
        for peer, ours in PAIRS if name == "segformer" else ():
            print(f"  {ours} beside {peer}: {times[peer][0] / times[ours][0]:.2f} times as fast")
            record(f"SegFormer-{size}: {ours} beside {peer}", times[peer][0] / 1e3, times[ours][0] / 1e3, 0, 0)


class PlainTail(torch.nn.Module):
    """What PyTorch's own functions become: Resize, ArgMax over the channels, Cast."""

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return F.interpolate(logits, size=(512, 512), mode="bilinear").argmax(1).to(torch.uint8)


def tail(arguments: argparse.Namespace, folder: Path) -> None:
    from hf_segtx.export.graph import resize_channels_last

    class OwnTail(torch.nn.Module):
        def forward(self, logits):
            return resize_channels_last(logits, 512, 512, False).argmax(3).to(torch.uint8)

    logits = F.interpolate(torch.randn(1, arguments.num_labels, 16, 16), size=(128, 128), mode="bicubic")
    calls, results = {}, {}
    for name, module in {"Resize, ArgMax": PlainTail(), "ours": OwnTail()}.items():
        import onnxruntime

        from hf_segtx.export.to_onnx import translated

        path = folder / "tail.onnx"
        translated(torch.export.export(module, (logits,)), ["logits"], ["label_map"], 20).save(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options)
        calls[name] = lambda session=session: session.run(None, {"logits": logits.numpy()})
        results[name] = calls[name]()[0]
    times = timed(calls, arguments)
    equal = np.mean(results["ours"] == results["Resize, ArgMax"])
    print(
        f"\nONNX Runtime, logits (1, {arguments.num_labels}, 128, 128) to the label map of 512x512; equal {equal:.6f}"
    )
    for name, (median, least) in times.items():
        faster = times["Resize, ArgMax"][0] / median
        print(f"  {name:32}{median:8.0f} ms, at least {least:6.0f}  {faster:.1f} times as fast", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", default=["tail", "models"], choices=["tail", "models"])
    parser.add_argument("--models", nargs="*", default=list(PUBLISHED), choices=list(PUBLISHED))
    parser.add_argument("--sizes", nargs="*", default=PUBLISHED["segformer"], choices=list(SIZES), help="of SegFormer")
    parser.add_argument("--processor_time", action="store_true", help="of all threads")
    parser.add_argument("--no_compile", dest="compile", action="store_false", help="without torch.compile")
    parser.add_argument("--num_labels", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    print(machine())
    print("processor time of all threads" if arguments.processor_time else "time by the clock")
    with tempfile.TemporaryDirectory() as folder:
        for part in arguments.parts:
            {"tail": tail, "models": models}[part](arguments, Path(folder))


if __name__ == "__main__":
    main()
