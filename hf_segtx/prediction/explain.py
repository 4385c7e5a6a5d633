"""What a model looks at in pictures, and what it learnt about its classes, as files.

For models on a plain Vision Transformer (Segmenter, SETR) `NAME_attention.png` for each picture, and how far each head
looks in the mean over them, `distances.png` and `.csv`; for OCRNet `NAME_regions.png`; for every model of two classes
or more `class_embeddings.png` and `.csv`.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..data import read_image
from ..visualization import (
    attention_picture,
    class_embedding_coordinates,
    distance_picture,
    embedding_picture,
    mean_attention_distance,
    palette,
    patch_attention,
    region_picture,
)
from .pictures import as_png
from .results import Results
from .sources import is_video


def explain(
    model,
    processor,
    names: dict[Path, Path],
    results: Results,
    *,
    patch: tuple[int, int] | None = None,
    layers: Sequence[int] = (),
) -> None:
    """Writes the pictures and tables.

    Args:
        model: on its device, in evaluation mode.
        processor: its image processor.
        names: {picture: path of its results below their folder}, see `find_sources`; without any, only the classes are
            explained.
        patch: row and column in the grid of patches; by default the middle one.
        layers: those to draw, counted from 0; by default all.

    Raises:
        ValueError: if a picture cannot be read, a patch or layer does not exist, the model has no pictures to show, or
            a result is a file of the user.
    """
    if video := next(filter(is_video, names), None):
        raise ValueError(f"{video}: videos are not explained; give pictures")
    if names and not (hasattr(model.decode_head, "context") or hasattr(model.backbone, "vit")):
        raise ValueError(
            f"pictures need a plain Vision Transformer (Segmenter, SETR) or OCRNet, and this is a "
            f"{type(model).__name__}: give no images, for the class embeddings only"
        )
    if model.config.num_labels > 1:
        _explain_classes(model, results)
    if names and hasattr(model.decode_head, "context"):
        _explain_regions(model, processor, names, results)
    elif names:
        _explain_attention(model, processor, names, results, patch, layers)


def _explain_classes(model, results: Results) -> None:
    embeddings = getattr(model.decode_head, "class_embeddings", None)
    vectors = model.decode_head.classifier.weight.flatten(1) if embeddings is None else embeddings[0]  # (K, C)
    coordinates = class_embedding_coordinates(vectors)
    names = [model.config.id2label[index] for index in range(len(model.config.id2label))]
    colors = [tuple(color) for color in getattr(model.config, "palette", None) or palette(len(names))]
    _write(results, "class_embeddings.png", embedding_picture(coordinates, names, colors))
    rows = ([name, *point] for name, point in zip(names, coordinates.tolist()))
    _write(results, "class_embeddings.csv", [["class", "first", "second"], *rows])


def _explain_regions(model, processor, names: dict[Path, Path], results: Results) -> None:
    for file, name in names.items():
        pixel_values = _inputs(model, processor, file)
        with torch.inference_mode():
            output = model(pixel_values.to(model.device), output_regions=True)
        found, counts = output.logits[0].argmax(0).unique(return_counts=True)
        largest = found[counts.argsort(descending=True)[:8]].tolist()
        maps = output.region_maps[0], output.pixel_region_relation[0]
        classes = [model.config.id2label[index] for index in range(len(model.config.id2label))]
        picture = region_picture(shown(pixel_values[0], processor), *maps, classes, largest)
        _write(results, f"{name}_regions.png", picture, file)


def _explain_attention(model, processor, names, results: Results, patch, layers: Sequence[int]) -> None:
    layers = list(layers) or list(range(model.config.num_hidden_layers))
    if not set(layers) <= set(range(model.config.num_hidden_layers)):
        raise ValueError(f"layers {layers}; there are 0 to {model.config.num_hidden_layers - 1}")
    model.set_attn_implementation("eager")  # the others do not return their weights
    total = 0
    for file, name in names.items():
        pixel_values = _inputs(model, processor, file)
        bottom, right = (-side % model.config.patch_size for side in pixel_values.shape[2:])
        pixel_values = torch.nn.functional.pad(pixel_values, (0, right, 0, bottom))  # as the model would
        chosen, maps, distances = look(model, pixel_values.to(model.device), patch)
        total = total + distances
        picture = attention_picture(shown(pixel_values[0], processor), [maps[i] for i in layers], chosen, layers)
        _write(results, f"{name}_attention.png", picture, file)
    mean = total / len(names)
    _write(results, "distances.png", distance_picture(mean))
    header = ["layer", *(f"head {head}" for head in range(mean.shape[1]))]
    _write(results, "distances.csv", [header, *([i, *row] for i, row in enumerate(mean.tolist()))])


def look(model, pixel_values: torch.Tensor, patch: tuple[int, int] | None):
    """One picture through the model, with each layer's weights reduced at once: all of them would take gigabytes.

    Shape:
        pixel_values: (1, C, H, W), whole patches
        returns: the patch; (heads, h, w) maps of each layer; distances (layers, heads) in pixels
    """
    patch_size = model.config.patch_size
    grid_size = tuple(side // patch_size for side in pixel_values.shape[2:])
    patch = (grid_size[0] // 2, grid_size[1] // 2) if patch is None else tuple(patch)
    maps, distances = [], []

    def reduce(module, inputs, output):
        maps.append(patch_attention(output[1][0], patch, grid_size))
        distances.append(mean_attention_distance(output[1][0], grid_size, patch_size))

    hooks = [block.attn.register_forward_hook(reduce) for block in model.backbone.vit.blocks]
    try:
        with torch.inference_mode():
            model.backbone(pixel_values)
    finally:
        for hook in hooks:
            hook.remove()
    return patch, maps, np.stack(distances)


def shown(pixel_values: torch.Tensor, processor) -> Image.Image:
    """The picture that the model gets, (C, H, W) normalised, as it looks; the first band of it if it is not RGB."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    bands = (pixel_values.cpu() * std + mean).clamp(0, 1) * 255
    bands = bands if len(bands) == 3 else bands[:1].expand(3, -1, -1)
    return Image.fromarray(bands.byte().permute(1, 2, 0).contiguous().numpy())


def _inputs(model, processor, file: Path) -> torch.Tensor:
    """The picture (1, C, H, W) as the model gets it."""
    image = read_image(str(file), str(file), model.config.num_channels)
    return processor(image, return_tensors="pt")["pixel_values"]


def _write(results: Results, name: str, content: Image.Image | list, source: Path | str = "the model") -> None:
    """Writes a picture, or the rows of a table."""
    if isinstance(content, Image.Image):
        data = as_png(content)
    else:
        table = io.StringIO(newline="")
        csv.writer(table).writerows(content)
        data = table.getvalue().encode()
    results.write(results.claim(name, source), data)
