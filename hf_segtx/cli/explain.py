"""Shows what a segmentation transformer looks at and what it has learnt about its classes.

    python examples/explain.py outputs/segmenter_camvid street.jpg
    python examples/explain.py outputs/segmenter_camvid frames/*.jpg --patch 8 21 --layers 0 3 7 11

Writes, for models on a plain Vision Transformer (Segmenter, SETR):

    NAME_attention.png    a picture, one patch of it, and where each head of each layer looks from there
    distances.png .csv    how far each head of each layer looks, mean over the pictures

for OCRNet:

    NAME_regions.png      a picture, soft object regions of the (at most eight) largest classes in it, and how pixels
                          relate to them

and for every model:

    class_embeddings.png .csv    the classes in the plane in which they differ most: the class embeddings of Segmenter's
                                 mask transformer, elsewhere the classifier's weights

These are Figures 6, 7 and 8 of the Segmenter paper (arXiv 2105.05633), and Eq. 4 and 5 of OCRNet's (arXiv 1909.11065).
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..data import read_image
from ..inference import load_model
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


def parse_arguments(command_line: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="explain.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder of a saved model, or Hub name")
    parser.add_argument("images", nargs="*", help="picture files")
    parser.add_argument("--output_dir", default="explanations", help="where the results go")
    parser.add_argument(
        "--patch", nargs=2, type=int, metavar=("ROW", "COLUMN"), help="in the grid of patches; default: the middle one"
    )
    parser.add_argument("--layers", nargs="+", type=int, help="drawn, counted from 0; default: all")
    parser.add_argument("--device", help="such as cuda:1; default: an accelerator if there is one")
    parser.add_argument("--cache_dir", help="where downloads are kept")
    parser.add_argument("--token", help="Hub token for downloads")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code that comes with a model")
    return parser.parse_args(command_line)


def class_vectors(model) -> torch.Tensor:
    """(K, C), a vector a class: the class embeddings, or the weights of the classifier."""
    embeddings = getattr(model.decode_head, "class_embeddings", None)
    return model.decode_head.classifier.weight.flatten(1) if embeddings is None else embeddings[0]


def shown(pixel_values: torch.Tensor, processor) -> Image.Image:
    """The picture that the model gets, (C, H, W) normalised, as it looks; the first band of it if it is not RGB."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    bands = (pixel_values.cpu() * std + mean).clamp(0, 1) * 255
    bands = bands if len(bands) == 3 else bands[:1].expand(3, -1, -1)
    return Image.fromarray(bands.byte().permute(1, 2, 0).contiguous().numpy())


def look(model, pixel_values: torch.Tensor, patch: tuple[int, int] | None):
    """One picture through the model, with each layer's weights reduced at once: all of them would take gigabytes.

    Shape:
        pixel_values: (1, C, H, W), whole patches
        returns: the patch; (heads, h, w) maps a layer; distances (layers, heads) in pixels
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


def write_table(path: Path, header: list[str], rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def main(arguments: argparse.Namespace):
    """Writes the pictures.

    Raises:
        ValueError, OSError: if there is no model, a picture cannot be read, a patch or layer does not exist.
    """
    model, processor = load_model(
        arguments.model,
        cache_dir=arguments.cache_dir,
        token=arguments.token,
        trust_remote_code=arguments.trust_remote_code,
    )
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    model.to(arguments.device or found).eval()
    output_dir = Path(arguments.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    names = [model.config.id2label[index] for index in range(len(model.config.id2label))]
    colors = [tuple(color) for color in getattr(model.config, "palette", None) or palette(len(names))]

    if model.config.num_labels > 1:
        coordinates = class_embedding_coordinates(class_vectors(model))
        embedding_picture(coordinates, names, colors).save(output_dir / "class_embeddings.png")
        rows = ([name, *point] for name, point in zip(names, coordinates.tolist()))
        write_table(output_dir / "class_embeddings.csv", ["class", "first", "second"], rows)
    if not arguments.images:
        return
    if hasattr(model.decode_head, "context"):  # OCRNet
        for file in arguments.images:
            image = read_image(file, file, model.config.num_channels)
            pixel_values = processor(image, return_tensors="pt")["pixel_values"]
            with torch.inference_mode():
                output = model(pixel_values.to(model.device), output_regions=True)
            found, counts = output.logits[0].argmax(0).unique(return_counts=True)
            largest = found[counts.argsort(descending=True)[:8]].tolist()
            maps = output.region_maps[0], output.pixel_region_relation[0]
            picture = region_picture(shown(pixel_values[0], processor), *maps, names, largest)
            picture.save(output_dir / f"{Path(file).stem}_regions.png")
        return
    if not hasattr(model.backbone, "vit"):
        raise ValueError(
            f"pictures need a plain Vision Transformer (Segmenter, SETR) or OCRNet; {arguments.model} is a "
            f"{type(model).__name__}: give no images, for the class embeddings only"
        )
    layers = list(range(model.config.num_hidden_layers)) if arguments.layers is None else arguments.layers
    if not set(layers) <= set(range(model.config.num_hidden_layers)):
        raise ValueError(f"layers {layers}; there are 0 to {model.config.num_hidden_layers - 1}")
    model.set_attn_implementation("eager")  # the others do not return their weights
    total = 0
    for file in arguments.images:
        image = read_image(file, file, model.config.num_channels)
        pixel_values = processor(image, return_tensors="pt")["pixel_values"]
        bottom, right = (-side % model.config.patch_size for side in pixel_values.shape[2:])
        pixel_values = torch.nn.functional.pad(pixel_values, (0, right, 0, bottom))  # as the model would
        patch, maps, distances = look(model, pixel_values.to(model.device), arguments.patch)
        total = total + distances
        picture = attention_picture(shown(pixel_values[0], processor), [maps[i] for i in layers], patch, layers)
        picture.save(output_dir / f"{Path(file).stem}_attention.png")
    mean = total / len(arguments.images)
    distance_picture(mean).save(output_dir / "distances.png")
    header = ["layer", *(f"head {head}" for head in range(mean.shape[1]))]
    write_table(output_dir / "distances.csv", header, ([i, *row] for i, row in enumerate(mean.tolist())))


def run(command_line: list[str]) -> int:
    """The command; returns its exit status."""
    arguments = parse_arguments(command_line)
    main(arguments)
    print(f"results in {arguments.output_dir}")
    return 0
