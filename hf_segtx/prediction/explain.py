"""What a model looks at in pictures, and what it learnt about its classes, as files.

For every model `NAME_classes.png` for each picture, and in the mean over them `receptive_fields.png`; for models of two
classes or more `class_embeddings.png` and `.csv`. For transformers of this package `NAME_attention.png`; for those on a
plain Vision Transformer (Segmenter, SETR) also how far each head looks in the mean over the pictures, `distances.png`
and `.csv`; for OCRNet `NAME_regions.png`. Where asked for, `NAME_occlusion.png`; and beside another model
`NAME_differences.png` and, over all pictures, `differences.csv`.
"""

import csv
import io
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..data import read_image
from ..inference import image_size, resized_image
from ..visualization import (
    attention_picture,
    class_embedding_coordinates,
    comparison,
    distance_picture,
    embedding_picture,
    heat_panels,
    mean_attention_distance,
    overlay,
    palette,
    patch_attention,
    region_picture,
)
from .gradients import Gradients, follow_gradients
from .occlusion import occlusion
from .pictures import Predictor, as_png
from .results import Results
from .sources import is_video


VOID = -1  # where two label maps are the same


def explain(
    model,
    processor,
    names: dict[Path, Path],
    results: Results,
    *,
    pixel: tuple[int, int] | None = None,
    layers: Sequence[int] = (),
    occlusion_side: int | None = None,
    other: tuple | None = None,
) -> None:
    """Writes the pictures and tables.

    Args:
        model: on its device, in evaluation mode.
        processor: its image processor.
        names: {picture: path of its results below their folder}, see `find_sources`; without any, only the classes are
            explained.
        pixel: row and column of the pictures, from where attention is drawn, by default the middle; and whose class
            occlusion follows, by default those of most pixels.
        layers: those to draw, counted from 0; by default all.
        occlusion_side: of the patch that covers the picture, in pixels as the model sees it; 0 for an eighth of the
            picture; None for no occlusion, which takes some hundred predictions for each picture.
        other: another model of the same classes and its processor, to be compared.

    Raises:
        ValueError: if a picture cannot be read, a pixel or layer does not exist, the other model has other classes, or
            a result is a file of the user.
    """
    if video := next(filter(is_video, names), None):
        raise ValueError(f"{video}: videos are not explained; give pictures")
    if other is not None and list(other[0].config.id2label.values()) != list(model.config.id2label.values()):
        raise ValueError(
            f"the models have other classes, {', '.join(model.config.id2label.values())} and "
            f"{', '.join(other[0].config.id2label.values())}; compare models of the same data"
        )
    if model.config.num_labels > 1:
        _explain_classes(model, results)
    if not names:
        return
    if hasattr(model.decode_head, "context"):
        _explain_regions(model, processor, names, results)
    if attentions(model):
        _explain_attention(model, processor, names, results, pixel, layers)
    _explain_activation(model, processor, names, results)
    _explain_fields(model, processor, names, results, other)
    if occlusion_side is not None:
        _explain_occlusion(model, processor, names, results, pixel, occlusion_side)
    if other is not None:
        _explain_differences(Predictor(model, processor), Predictor(*other), names, results)


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


def attentions(model) -> list:
    """The attention layers of the encoder, if it is one of this package's transformers; else none."""
    if hasattr(model.backbone, "vit"):
        return [block.attn for block in model.backbone.vit.blocks]
    return [block.attn for stage in getattr(model.backbone, "stages", []) for block in stage.blocks]


def _explain_attention(model, processor, names, results: Results, pixel, layers: Sequence[int]) -> None:
    count = len(attentions(model))
    layers = list(layers) or list(range(count))
    if not set(layers) <= set(range(count)):
        raise ValueError(f"layers {layers}; there are 0 to {count - 1}")
    model.set_attn_implementation("eager")  # the others do not return their weights
    is_plain = hasattr(model.backbone, "vit")
    side = model.config.patch_size if is_plain else 4  # of what the attention starts from, in pixels
    distances = []
    for file, name in names.items():
        image = read_image(str(file), str(file), model.config.num_channels)
        pixel_values = _inputs(model, processor, file)
        bottom, right = (-length % side for length in pixel_values.shape[2:])
        pixel_values = torch.nn.functional.pad(pixel_values, (0, right, 0, bottom))  # as the model would
        place = place_of(pixel, image_size(image), file)
        grid_size = tuple(length // side for length in pixel_values.shape[2:])
        patch = tuple(
            int(share * (length - pad) / side)
            for share, length, pad in zip(place, pixel_values.shape[2:], (bottom, right))
        )
        look = look_from_patch if is_plain else look_from_place
        maps, found = look(model, pixel_values.to(model.device), patch, grid_size)
        distances += [found] * is_plain
        picture = attention_picture(
            shown(pixel_values[0], processor), [maps[i] for i in layers], patch, layers, grid_size
        )
        _write(results, f"{name}_attention.png", picture, file)
    if distances:
        mean = sum(distances) / len(distances)
        _write(results, "distances.png", distance_picture(mean))
        header = ["layer", *(f"head {head}" for head in range(mean.shape[1]))]
        _write(results, "distances.csv", [header, *([i, *row] for i, row in enumerate(mean.tolist()))])


def place_of(pixel: tuple[int, int] | None, size: tuple[int, int], file: Path) -> tuple[float, float]:
    """Where the middle of a pixel lies, in shares of height and width; by default the middle of the picture."""
    if pixel is None:
        return 0.5, 0.5
    if not all(0 <= place < length for place, length in zip(pixel, size)):
        raise ValueError(f"pixel {tuple(pixel)} is outside {file}, which has {size[0]} rows and {size[1]} columns")
    return tuple((place + 0.5) / length for place, length in zip(pixel, size))


@contextmanager
def with_hooks(modules: Sequence, function):
    """`function(module, inputs, output)` is called after each of the modules, within."""
    hooks = [module.register_forward_hook(function) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def look_from_patch(model, pixel_values: torch.Tensor, patch: tuple[int, int], grid_size: tuple[int, int]):
    """One picture through a plain Vision Transformer, with each layer's weights reduced at once: all of them would take
    gigabytes.

    Shape:
        pixel_values: (1, C, H, W), whole patches
        returns: (heads, h, w) maps of each layer; distances (layers, heads) in pixels
    """
    maps, distances = [], []

    def reduce(module, inputs, output):
        maps.append(patch_attention(output[1][0], patch, grid_size))
        distances.append(mean_attention_distance(output[1][0], grid_size, model.config.patch_size))

    with with_hooks(attentions(model), reduce), torch.inference_mode():
        model.backbone(pixel_values)
    return maps, np.stack(distances)


def look_from_place(model, pixel_values: torch.Tensor, patch: tuple[int, int], grid_size: tuple[int, int]):
    """The same through SegFormer, whose stages have other resolutions, and keys R times smaller than those.

    Shape:
        returns: (heads, h / R, w / R) maps of each layer, of what the place in its stage's map attends to; None
    """
    maps = []

    def reduce(module, inputs, output):
        size = inputs[0].shape[1:3]
        row, column = (int((place + 0.5) / count * length) for place, count, length in zip(patch, grid_size, size))
        ratio = module.reduction.stride if module.reduction is not None else (1, 1)
        keys = tuple(length // step for length, step in zip(size, ratio))
        maps.append(output[1][0, :, row * size[1] + column].reshape(-1, *keys).float().cpu().numpy())

    with with_hooks(attentions(model), reduce), torch.inference_mode():
        model.backbone(pixel_values)
    return maps, None


def _explain_activation(model, processor, names: dict[Path, Path], results: Results) -> None:
    for file, name in names.items():
        pixel_values = _inputs(model, processor, file)
        found = follow_gradients(model, pixel_values.to(model.device))
        classes = found.largest_classes(7)
        maps = [found.class_activation(index) for index in classes]
        titles = [found.name(index) for index in classes]
        _write(results, f"{name}_classes.png", heat_panels(shown(pixel_values[0], processor), maps, titles, 0.6), file)


def _explain_fields(model, processor, names: dict[Path, Path], results: Results, other: tuple | None) -> None:
    """Receptive fields in the mean over the pictures, those of the other model below; their square roots, else one sees
    the brightest pixels only."""
    maps, titles = [], []
    for who, pair in (("", (model, processor)), ("other ", other)):
        total: list[np.ndarray] = []
        for file in names if pair else ():
            pixel_values = _inputs(*pair, file)
            fields, of_maps = follow_gradients(pair[0], pixel_values.to(pair[0].device)).receptive_fields()
            fields = [resized(field, (128, 128)) for field in fields]  # pictures may have other sizes
            total = [sum(some) for some in zip(total, fields, strict=True)] if total else fields
            image = shown(pixel_values[0], pair[1])
        maps += [np.sqrt(field / len(names)) for field in total]
        titles += [f"{who}{title}" for title in of_maps] if total else []
    _write(results, "receptive_fields.png", heat_panels(image, maps, titles))


def _explain_occlusion(model, processor, names, results: Results, pixel, side: int) -> None:
    for file, name in names.items():
        pixel_values = _inputs(model, processor, file).to(model.device)
        with torch.no_grad():  # no gradients are asked for, whose graph would be held for long
            found = Gradients(pixel_values, (), model(pixel_values).logits, model.config.id2label)
        best = found.label_map()
        classes, words = found.largest_classes(7), ""
        masks = torch.stack([best == index for index in classes])
        if pixel is not None:
            image = read_image(str(file), str(file), model.config.num_channels)
            place = place_of(pixel, image_size(image), file)
            own = resized_image(processor, image).shape[1:]
            cell = tuple(
                min(int(share * part / whole * steps), steps - 1)
                for share, part, whole, steps in zip(place, own, pixel_values.shape[2:], best.shape)
            )
            masks = torch.zeros_like(best, dtype=torch.bool)[None]
            masks[0, cell[0], cell[1]] = True
            classes, words = [max(int(best[cell]), 0)], f" at {pixel[0]}, {pixel[1]}"
        masks[~masks.any(dim=(1, 2))] = True  # of a sigmoid that finds nothing
        maps = occlusion(model, pixel_values, classes, masks, side or None).clip(0)
        titles = [found.name(index) + words for index in classes]
        picture = heat_panels(shown(pixel_values[0], processor), maps, titles, 0.6)
        _write(results, f"{name}_occlusion.png", picture, file)


def _explain_differences(model: Predictor, other: Predictor, names: dict[Path, Path], results: Results) -> None:
    """Where the label maps of two models differ, as pictures, and how often which class becomes which."""
    classes = len(model.names)
    counts = np.zeros((classes, classes), np.int64)
    for file, name in names.items():
        maps = []
        for predictor in (model, other):
            image = read_image(str(file), str(file), predictor.model.config.num_channels)
            maps.append(predictor.predict([image])[0])
        counts += np.bincount((maps[0] * classes + maps[1]).ravel(), minlength=classes**2).reshape(classes, classes)
        changed = maps[0] != maps[1]
        where = overlay(image, np.where(changed, 0, 255), [(255, 0, 160)], 0.7)
        rows = [[image, *maps], [where, *(np.where(changed, label_map, VOID) for label_map in maps)]]
        titles = ("below: where they differ", "this model", "the other")
        picture = comparison(*zip(*rows, strict=True), model.names, model.colors, VOID, titles)
        _write(results, f"{name}_differences.png", picture, file)
    rows = [
        [model.names[here], model.names[there], counts[here, there], f"{counts[here, there] / counts.sum():.6f}"]
        for here, there in sorted(np.argwhere(counts).tolist(), key=lambda pair: -counts[tuple(pair)])
        if here != there
    ]
    _write(results, "differences.csv", [["this model", "the other", "pixels", "share of all pixels"], *rows])


def resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) -> size, in the mean over the area."""
    return torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(values)[None], size)[0].numpy()


def shown(pixel_values: torch.Tensor, processor) -> Image.Image:
    """The picture that the model gets, (C, H, W) normalised, as it looks; the first band of it if it is not RGB."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    bands = (pixel_values.cpu() * std + mean).clamp(0, 1) * 255
    bands = bands if len(bands) == 3 else bands[:1].expand(3, -1, -1)
    return Image.fromarray(bands.byte().permute(1, 2, 0).contiguous().numpy())


def _inputs(model, processor, file: Path) -> torch.Tensor:
    """The picture (1, C, H, W) as the model gets it; whole, also if it is else shown windows."""
    image = read_image(str(file), str(file), model.config.num_channels)
    return processor(image, window_size=None, return_tensors="pt")["pixel_values"]


def _write(results: Results, name: str, content: Image.Image | list, source: Path | str = "the model") -> None:
    """Writes a picture, or the rows of a table."""
    if isinstance(content, Image.Image):
        data = as_png(content)
    else:
        table = io.StringIO(newline="")
        csv.writer(table).writerows(content)
        data = table.getvalue().encode()
    results.write(results.claim(name, source), data)
