"""A page that segments pictures in the visitor's browser; after it is written, no server but one for files is needed.

index.html page.css page.js worker.js    the page: what is seen, and a worker that prepares pictures and computes
model.onnx facts.json                    from pixels of 0-255 to label map; names, colours, rules of preparation
ort*.mjs ort*.wasm                       onnxruntime-web of npm (MIT licence, as the files say)
examples/ README.md                      drawn scenes; the card, for a static Space

The worker resizes as the image processor does (antialiased, rows after columns, with torchvision's rounding), pads, and
says where each pixel of the label map lies; the graph normalises, computes logits, interpolates them there and takes
the best class. Of a model that is scored in windows the worker averages logits, and takes the best class itself. So the
map is that of `hf_segtx.inference.predict`, but for ties and for what another decoder of JPEG changes.

Letters: K classes; (H, W) label map, (h, w) size of the network's input, (s, t) that of its logits.
"""

import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from transformers import PreTrainedModel

from ..export.graph import folded
from ..export.runner import ExportedModel, pixel_statistics
from ..hub import is_hub_name
from ..models.sliding_windows import window_pair
from ..prediction import Predictor
from .space import empty_folder, known_license, write_static_card
from .views import write_examples


PAGE = Path(__file__).parent / "page"
RUNTIME = "onnxruntime-web@1.30.0"
RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
FILTERS = {2: "bilinear", 3: "bicubic"}  # PIL's numbers of those that the page knows
NUM_VALUES = 2**27  # of interpolated logits, float32, that a page may hold three times; more are shown smaller


class PageGraph(nn.Module):
    """From resized pixels to a label map of any size.

    Args:
        model: stays as it is.
        processor: its image processor: how pixels are normalised, in which order of channels, and how logits are
            interpolated.

    Shape:
        pixel_values: (1, 3, h, w) float32, 0-255
        rows: (H,), columns: (W,), where the pixels of the map lie, as shares of the input: 0 is the edge of its first
            pixel and 1 the edge of its last, or their centres with `align_corners`
        returns: label map (H, W) uint8, or int32 for more than 256 classes; for a processor that cuts windows, whose
            logits are averaged before there is a label map, logits (H, W, K) float32
    """

    def __init__(self, model: PreTrainedModel, processor):
        super().__init__()
        self.model, self.num_labels = folded(model), model.config.num_labels
        self.align_corners, self.flips = bool(processor.align_corners), bool(processor.do_flip_channel_order)
        self.has_windows = processor.window_size is not None
        mean, std = statistics(processor)
        mean, std = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
        self.register_buffer("scale", 1 / std)
        self.register_buffer("shift", -mean / std)
        self.eval()

    def forward(self, pixel_values: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        if self.flips:
            pixel_values = pixel_values.flip(1)
        logits = self.model(pixel_values * self.scale + self.shift).logits.float()
        values = logits[0].permute(1, 2, 0)  # (s, t, K): with classes last, the best one is found fast
        for dim, places in enumerate((rows, columns)):  # (H, t, K), then (H, W, K)
            steps = values.shape[dim]
            places = places * (steps - 1) if self.align_corners else places * steps - 0.5
            places = places.clamp(0, steps - 1)
            below = places.floor()
            share = (places - below).view(-1, *[1] * (2 - dim))
            low, high = (values.index_select(dim, index.long()) for index in (below, places.ceil()))
            values = low + (high - low) * share
        if self.has_windows:
            return values
        if self.num_labels == 1:
            return (values[..., 0] > 0).to(torch.uint8)
        return values.argmax(-1).to(torch.uint8 if self.num_labels <= 256 else torch.int32)


def write_static_page(
    source: str, model: PreTrainedModel, processor, output_dir: str | Path, *, runtime: str | Path | None = None
) -> Path:
    """Writes the page into a folder that is empty or not there; returns the folder.

    Args:
        source: folder or Hub name of the model, for its title and licence.
        runtime: folder or archive (.tgz) of the npm package onnxruntime-web; None: `npm` fetches it.

    Raises:
        ValueError: if the processor has a rule that the page does not know, the model is an export, the folder holds
            something, or onnxruntime-web cannot be had.
    """
    check_rules(model, processor)
    folder = empty_folder(output_dir)
    copy_runtime(folder, runtime)
    for file in sorted(PAGE.iterdir()):
        shutil.copy(file, folder)
    write_graph(model, processor, folder / "model.onnx")
    (folder / "examples").mkdir()
    examples = [f"examples/{Path(file).name}" for file in write_examples(folder / "examples")]
    title = source if is_hub_name(source) else Path(source).resolve().name
    (folder / "facts.json").write_text(json.dumps(facts(title, model, processor) | {"examples": examples}, indent=1))
    write_static_card(folder, title, known_license(source))
    return folder


def check_rules(model: PreTrainedModel, processor) -> None:
    """Whether the page can prepare pictures as this processor does.

    Raises:
        ValueError: naming the rule.
    """
    if isinstance(model, ExportedModel):
        raise ValueError("a static page has a graph of its own; give the checkpoint that the export was made of")
    if (channels := len(processor.image_mean)) != 3:
        raise ValueError(f"image_mean has {channels} entries; browsers read pictures of 3 channels")
    if processor.do_resize and int(processor.resample) not in FILTERS:
        raise ValueError(f"resample is {int(processor.resample)}; a static page knows 2 (bilinear) and 3 (bicubic)")


def facts(title: str, model: PreTrainedModel, processor) -> dict:
    """What the page has to know, for facts.json."""
    predictor = Predictor(model, processor)
    size = {key: value for key, value in dict(processor.size).items() if value}
    mean, _ = statistics(processor)
    padding = mean[::-1] if processor.do_flip_channel_order else mean
    as_said = processor.do_resize and "height" in size  # such a size is not padded
    pads = processor.do_pad and not as_said
    window = None
    if processor.window_size is not None:
        size_of_window = window_pair(processor.window_size)
        stride = window_pair(processor.window_stride or size_of_window)
        window = {"size": size_of_window, "stride": stride, "small_images": processor.small_images}
        pads = pads or processor.small_images == "cut"
    return {
        "title": title,
        "window": window,
        "names": predictor.names,
        "colors": predictor.colors,
        "size": size if processor.do_resize else None,
        "stretch": processor.stretch_divisor or 1,
        "filter": FILTERS.get(int(processor.resample)),
        "divisor": (processor.size_divisor or 1) if pads else 1,
        "minimum": (processor.minimum_size or 1) if pads else 1,
        "padding": padding,
        "num_logits": model.config.num_labels,
        "align_corners": bool(processor.align_corners),
        "most_pixels": NUM_VALUES // max(2, model.config.num_labels),
    }


def statistics(processor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation in units of 0-255."""
    names = "image_mean image_std do_normalize do_rescale rescale_factor".split()
    return pixel_statistics({name: getattr(processor, name) for name in names})


def write_graph(model: PreTrainedModel, processor, path: Path) -> None:
    """The ONNX file of a `PageGraph`.

    Raises:
        ValueError: if the packages that write it are not installed.
    """
    try:
        import onnx

        from ..export.to_onnx import translated
    except ImportError as error:
        raise ValueError(f"a static page needs an ONNX file, and {error}; `pip install hf_segtx[onnx]`") from error
    graph = PageGraph(model.cpu().float(), processor)
    names, dynamic = ["pixel_values", "rows", "columns"], torch.export.Dim.DYNAMIC
    examples = (torch.zeros(1, 3, 128, 192), torch.linspace(0, 1, 100), torch.linspace(0, 1, 150))
    with torch.no_grad():
        program = torch.export.export(
            graph, examples, dynamic_shapes=({2: dynamic, 3: dynamic}, {0: dynamic}, {0: dynamic})
        )
    onnx.save(translated(program, names, ["logits" if graph.has_windows else "label_map"], 20).model_proto, path)


def copy_runtime(folder: Path, runtime: str | Path | None) -> None:
    """Puts onnxruntime-web into the folder.

    Args:
        runtime: as in `write_static_page`.

    Raises:
        ValueError: if it is not there, or `npm` is missing or cannot reach its registry.
    """
    with TemporaryDirectory() as place:
        if runtime is None:
            runtime = fetched_runtime(Path(place))
        runtime = Path(runtime)
        if runtime.suffix in (".tgz", ".gz"):
            with tarfile.open(runtime) as archive:  # nothing else of it is unpacked, so that no path can lead elsewhere
                for member in sorted(archive.getmembers(), key=lambda member: member.name, reverse=True):
                    if member.isfile() and (name := Path(member.name).name) in RUNTIME_FILES:
                        (Path(place) / name).write_bytes(archive.extractfile(member).read())
            runtime = Path(place)
        found = {file: next(iter(sorted(runtime.rglob(file))), None) for file in RUNTIME_FILES}
        if missing := [file for file, there in found.items() if there is None]:
            raise ValueError(f"runtime is {runtime}, which lacks {missing[0]}; give the npm package {RUNTIME}")
        for there in found.values():
            shutil.copy(there, folder)


def fetched_runtime(folder: Path) -> Path:
    """The archive of onnxruntime-web, which `npm` downloads and verifies."""
    cure = f"run `npm pack {RUNTIME}` where there is npm and a network, and give the .tgz file as `runtime`"
    try:
        done = subprocess.run(
            ["npm", "pack", RUNTIME, "--prefer-offline", "--silent"], cwd=folder, capture_output=True, text=True
        )
    except FileNotFoundError as error:
        raise ValueError(f"npm is not installed, which fetches onnxruntime-web; {cure}") from error
    archives = sorted(folder.glob("*.tgz"))
    if done.returncode or not archives:
        said = (done.stderr.strip().splitlines() or ["no archive came"])[0]
        raise ValueError(f"npm cannot fetch {RUNTIME} ({said}); {cure}")
    return archives[0]
