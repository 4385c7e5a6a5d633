"""Exported graphs side by side, interleaved: eager, compiled, ONNX Runtime, OpenVINO and OpenVINO in 8 bits.

    OMP_NUM_THREADS=1 python benchmarks/export.py                          # all four, SegFormer-B0 beside transformers'
    OMP_NUM_THREADS=1 python benchmarks/export.py --models segformer --no_compile
    OMP_NUM_THREADS=1 python benchmarks/export.py --parts tail             # upsampling and argmax alone

Random weights; images of 512x512, batch 1. Prints median and minimum of processor time (of all threads; wall-clock time
on a machine that does other things means little) and, for SegFormer, the ratio to transformers' model exported the same
way: by torch.export, with the same tail, for the same runtime.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import nncf
import numpy as np
import openvino
import torch
import torch.nn.functional as F
from measure import machine
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from hf_segtx.architectures import ARCHITECTURES
from hf_segtx.export.graph import Graph, GraphOptions, exported_program
from hf_segtx.export.runner import open_onnx, open_openvino
from hf_segtx.export.to_onnx import write_onnx
from hf_segtx.export.to_openvino import write_openvino
from hf_segtx.models.configuration_segformer import SIZES


PUBLISHED = {"segformer": "b0", "setr": "base", "segmenter": "small", "ocrnet": "hrnet_w18"}
OPTIONS = GraphOptions(("label_map", "logits"), static_shape=(1, 512, 512))


def interleaved(calls: dict, rounds: int) -> dict[str, tuple[float, float]]:
    """Median and minimum of the processor time of each call in ms, one round after the other."""
    seconds = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if number:  # the first warms up
                seconds[name].append(time.process_time() - start)
    return {name: (1000 * statistics.median(values), 1000 * min(values)) for name, values in seconds.items()}


def program_of(module: torch.nn.Module, runtime: str) -> torch.export.ExportedProgram:
    """A model that is none of ours, with the tail of ours."""
    with torch.no_grad():
        return torch.export.export(Graph(module, OPTIONS, False, runtime), (torch.zeros(1, 3, 512, 512),))


def sessions(make_program, folder: Path, name: str, threads: int) -> dict:
    """ONNX Runtime and OpenVINO on the files of a model."""
    files = folder / f"{name}.onnx", folder / f"{name}.xml"
    write_onnx(make_program("onnx"), files[0], OPTIONS.outputs, {})
    write_openvino(make_program("openvino"), files[1], OPTIONS.outputs, {})
    return {
        f"{name}, ONNX Runtime": open_onnx(files[0], ["label_map"], None, threads),
        f"{name}, OpenVINO": open_openvino(files[1], ["label_map"], None, threads),
    }


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
    for name in arguments.models:
        torch.manual_seed(0)
        row = ARCHITECTURES[name]
        model = row.model(row.config.from_size(PUBLISHED[name], num_labels=arguments.num_labels)).eval()
        processor = row.processor()
        inputs = torch.randn(1, 3, 512, 512)
        align_corners = getattr(model.config, "align_corners", False)
        runs = sessions(
            lambda runtime, m=model, a=align_corners: exported_program(m, OPTIONS, a, runtime), folder, "ours", 1
        )
        if name == "segformer":
            config = SegformerConfig(**SIZES["b0"], num_labels=arguments.num_labels)
            theirs = SegformerForSemanticSegmentation(config).eval()
            runs |= sessions(lambda runtime, m=theirs: program_of(m, runtime), folder, "transformers", 1)
        reason = in_8_bits(folder, name)
        if not reason:
            runs["ours, OpenVINO in 8 bits"] = open_openvino(folder / "int8.xml", ["label_map"], None, 1)

        @torch.inference_mode()
        def eager(net=model, processor=processor, inputs=inputs):
            return processor.post_process_semantic_segmentation(net(inputs), [(512, 512)])

        compiled = torch.compile(model)
        calls = {"eager": eager}
        if arguments.compile:
            calls["compiled"] = lambda net=compiled: eager(net)
        array = inputs.numpy()
        calls |= {key: (lambda run=run, array=array: run(array)) for key, run in runs.items()}
        times = interleaved(calls, arguments.rounds)
        print(f"\n{name}, {PUBLISHED[name]}, {arguments.num_labels} classes, to the label map of 512x512")
        for key, (median, least) in times.items():
            ratio = ""
            if key.startswith("transformers"):
                ratio = f"  {median / times[key.replace('transformers', 'ours')][0]:.2f} times ours"
            print(f"  {key:32}{median:8.0f} ms, at least {least:6.0f}{ratio}", flush=True)
        if reason:
            print(f"  {'ours, OpenVINO in 8 bits':32} none: {reason}", flush=True)


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
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options)
        calls[name] = lambda session=session: session.run(None, {"logits": logits.numpy()})
        results[name] = calls[name]()[0]
    times = interleaved(calls, arguments.rounds)
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
    parser.add_argument("--no_compile", dest="compile", action="store_false", help="without torch.compile")
    parser.add_argument("--num_labels", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    print(machine())
    print("processor time, 1 thread, float32")
    with tempfile.TemporaryDirectory() as folder:
        for part in arguments.parts:
            {"tail": tail, "models": models}[part](arguments, Path(folder))


if __name__ == "__main__":
    main()
