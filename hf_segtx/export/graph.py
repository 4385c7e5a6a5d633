"""What is exported: a trained model made ready for inference, between preparation of the pixels and a label map.

    pixel_values -- [uint8: to float, mean and std] -- model -- logits -- [upsampling, argmax] -- label map

The graph serves every batch, height and width (`torch.export` with `Dim.DYNAMIC`, which refuses where `Dim.AUTO` would
specialise without a word), or one of them.

Letters: B images, K classes; (H, W) size of the input, (h, w) that of the logits.
"""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from ..models.cpu import fold


OUTPUTS = ("label_map", "logits", "confidence")


@dataclass
class GraphOptions:
    """What the graph takes and returns.

    Args:
        outputs: among "label_map" (B, H, W), uint8 or, for more than 256 classes, int16; "logits" (B, K, h, w) float32,
            at the resolution of the head; "confidence" (B, H, W) float32, the softmax probability of the label.
        mean, std: of the normalisation, in units of 0-255, if the graph shall take RGB of 0-255 (B, 3, H, W) uint8;
            None: the input is float32 as the image processor normalises it.
        half: compute in 16 bits; input and outputs stay what they are.
        static_shape: (B, H, W) if the graph shall serve that size only.
        temperature: of the image processor, that `confidence` is to be computed with; logits stay what they are.
    """

    outputs: Sequence[str] = ("label_map", "logits")
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    half: bool = False
    static_shape: tuple[int, int, int] | None = None
    temperature: float = 1.0

    def __post_init__(self):
        if not self.outputs or set(self.outputs) - set(OUTPUTS):
            raise ValueError(f"outputs are {list(self.outputs)}; choose among {', '.join(OUTPUTS)}")
        if self.static_shape is not None and min(self.static_shape) < 1:
            raise ValueError(f"static_shape is {self.static_shape}; batch, height and width are at least 1")


# An operator of its own, because ONNX can upsample maps whose channels come last, several times as fast, and PyTorch
# has no name for that.
@torch.library.custom_op("hf_segtx_export::resize_channels_last", mutates_args=())
def resize_channels_last(logits: torch.Tensor, height: int, width: int, align_corners: bool) -> torch.Tensor:
    """Bilinear upsampling (B, K, h, w) -> (B, H, W, K)."""
    resized = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=align_corners)
    return resized.permute(0, 2, 3, 1).contiguous()


@resize_channels_last.register_fake
def _(logits, height, width, align_corners):
    return logits.new_empty((logits.shape[0], height, width, logits.shape[1]))


@torch.no_grad()
def folded(model: PreTrainedModel) -> PreTrainedModel:
    """A copy for inference, on the CPU in float32, in which all that weights alone decide is computed."""
    return fold(copy.deepcopy(model).cpu().float())


class Graph(nn.Module):
    """The module that is exported.

    Args:
        model: of this package, as [`folded`] returns it.
        options: see [`GraphOptions`].
        align_corners: how logits are upsampled.
        runtime: "onnx", "openvino" or "torch", each of which has a way to a label map that the others are slow at.

    Shape:
        pixel_values: (B, C, H, W), float32 or uint8
        returns: a tensor for each of the outputs
    """

    def __init__(self, model: PreTrainedModel, options: GraphOptions, align_corners: bool, runtime: str):
        super().__init__()
        self.dtype = torch.float16 if options.half else torch.float32
        self.model = model.to(self.dtype)
        self.num_labels = model.config.num_labels
        self.outputs, self.align_corners, self.runtime = tuple(options.outputs), align_corners, runtime
        self.temperature = options.temperature
        self.normalize = options.mean is not None
        if self.normalize:  # (x - mean) / std as one product and one sum
            mean, std = torch.tensor(options.mean).view(-1, 1, 1), torch.tensor(options.std).view(-1, 1, 1)
            self.register_buffer("scale", 1 / std)
            self.register_buffer("shift", -mean / std)
        self.eval()

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        size = pixel_values.shape[2:]
        if self.normalize:
            pixel_values = pixel_values.float() * self.scale + self.shift
        logits = self.model(pixel_values.to(self.dtype)).logits.float()
        results = {"logits": logits}
        if set(self.outputs) - {"logits"}:
            results |= self.of_pixels(logits, size)
        return tuple(results[name] for name in self.outputs)

    def of_pixels(self, logits: torch.Tensor, size: tuple[int, int]) -> dict[str, torch.Tensor]:
        """Label map and, where it is asked for, confidence, at the size of the input."""
        if self.runtime == "onnx":
            classes, upsampled = 3, resize_channels_last(logits, size[0], size[1], self.align_corners)
        else:
            classes = 1
            upsampled = F.interpolate(logits, size=size, mode="bilinear", align_corners=self.align_corners)
        if self.num_labels == 1:
            logit = upsampled.squeeze(classes)
            results = {"label_map": (logit > 0).to(torch.uint8)}
            confidence = self.tempered(logit.abs()).sigmoid()
            return results | ({"confidence": confidence} if "confidence" in self.outputs else {})
        labels = first_largest(upsampled) if self.runtime == "openvino" else upsampled.argmax(classes)
        labels = labels.to(torch.uint8 if self.num_labels <= 256 else torch.int16)
        if "confidence" not in self.outputs:
            return {"label_map": labels}
        return {"label_map": labels, "confidence": self.tempered(upsampled).softmax(classes).amax(classes)}

    def tempered(self, logits: torch.Tensor) -> torch.Tensor:
        """What confidence is computed from."""
        return logits if self.temperature == 1 else logits / self.temperature


def first_largest(maps: torch.Tensor) -> torch.Tensor:
    """argmax(1) of (B, K, H, W), in functions that OpenVINO vectorises: its own takes several times as long."""
    numbers = torch.arange(maps.shape[1], dtype=maps.dtype).view(1, -1, 1, 1)
    return torch.where(maps == maps.amax(1, keepdim=True), numbers, float(maps.shape[1])).amin(1)


class MapsAsTokens(TorchFunctionMode):
    """Between (B, h, w, C) and (B, C, h, w) by way of tokens (B, h w, C), which is the same.

    OpenVINO knows the transposition of tokens for a map whose channels come last in memory, and copies nothing; that of
    a map it carries out: a third of the time of a SegFormer-B0.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.permute and args[1:] == (0, 3, 1, 2):
            return args[0].flatten(1, 2).transpose(1, 2).unflatten(2, args[0].shape[1:3])
        if function is torch.Tensor.permute and args[1:] == (0, 2, 3, 1):
            return args[0].flatten(2).transpose(1, 2).unflatten(1, args[0].shape[2:])
        return function(*args, **(kwargs or {}))


def example_shape(model: PreTrainedModel, options: GraphOptions) -> tuple[int, int, int, int]:
    """Shape (B, C, H, W) of the example that the graph is exported with; of a dynamic graph it means nothing.

    Batch, height and width differ from each other and from 1: equal sizes, or 1, would make a graph for that case.
    """
    channels = getattr(model.config, "num_channels", 3)
    batch, height, width = options.static_shape or (2, 128, 192)
    return batch, channels, height, width


def exported_program(
    model: PreTrainedModel, options: GraphOptions, align_corners: bool, runtime: str = "torch"
) -> torch.export.ExportedProgram:
    """The model as a graph with weights.

    Args:
        model: of this package; stays as it is.
    """
    graph = Graph(folded(model), options, align_corners, runtime)
    example = torch.zeros(example_shape(model, options), dtype=torch.uint8 if graph.normalize else torch.float32)
    dynamic = None
    if options.static_shape is None:
        dynamic = ({dim: torch.export.Dim.DYNAMIC for dim in (0, 2, 3)},)
    with torch.no_grad(), MapsAsTokens() if runtime == "openvino" else nullcontext():
        return torch.export.export(graph, (example,), dynamic_shapes=dynamic, strict=False)
