"""Segments pictures with an exported model: needs numpy, Pillow and onnxruntime, nothing else.

    python segment.py photo.jpg                             # writes photo_labels.png and photo_overlay.png
    python segment.py *.jpg --output_dir results --threads 2
    python segment.py photo.jpg --model other/model.onnx --provider CUDAExecutionProvider

All that it has to know stands in the .onnx file: names, colours, and how pictures are prepared. Windows, if the model
was scored with them, are averaged where they overlap. As a module:

    session, facts = load("model.onnx")
    label_map = segment(session, facts, Image.open("photo.jpg"))    # (H, W), class ids

Shapes: (H, W) picture, (h, w) as it is resized, K classes.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def load(path, provider: str = "CPUExecutionProvider", threads: int = 0):
    """The session, and the metadata of the file as a dictionary."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    facts = dict(session.get_modelmeta().custom_metadata_map)
    if "preprocessing" not in facts:
        raise ValueError(f"{path} was not exported by hf_segtx: it says nothing of how pictures are prepared")
    for key in ("preprocessing", "id2label", "palette", "outputs"):
        facts[key] = json.loads(facts[key])
    if (channels := len(facts["preprocessing"]["image_mean"])) != 3:
        raise ValueError(f"{path} takes pictures of {channels} channels, which this program does not read")
    return session, facts


def resized_size(height: int, width: int, size: dict) -> tuple[int, int]:
    """(h, w): as said, or with the ratio kept, the largest at which neither edge exceeds its bound."""
    if size.get("height") and size.get("width"):
        return size["height"], size["width"]
    scale = size["shortest_edge"] / min(height, width)
    if size.get("longest_edge"):
        scale = min(scale, size["longest_edge"] / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def pair(value) -> tuple[int, int]:
    """Height and width of a number, or of two."""
    return (value, value) if isinstance(value, int) else tuple(value)


def enlarged_size(size: tuple[int, int], window: tuple[int, int]) -> tuple[int, int]:
    """The size, or the smallest one of the same ratio of which no side is below the window's."""
    first = max((0, 1), key=lambda axis: window[axis] / size[axis])
    if size[first] >= window[first]:
        return size
    other = max(window[1 - first], int(size[1 - first] / size[first] * window[first]))
    return (window[first], other) if first == 0 else (other, window[first])


def prepare(image: Image.Image, facts: dict) -> tuple[np.ndarray, tuple[int, int]]:
    """Pixels (1, 3, h', w') for the model, padded on the right and bottom, and the size (h, w) without padding."""
    rules = facts["preprocessing"]
    image = ImageOps.exif_transpose(image).convert("RGB")
    height, width = image.height, image.width
    if rules["do_resize"]:
        height, width = resized_size(height, width, rules["size"])
        if not rules["size"].get("height") and (divisor := rules.get("stretch_divisor")):
            height, width = (-(-side // divisor) * divisor for side in (height, width))
        image = image.resize((width, height), rules["resample"])
    pixels = np.asarray(image, np.float32)
    if rules.get("small_images") == "enlarge" and rules["window_size"] is not None:
        height, width = enlarged_size((height, width), pair(rules["window_size"]))
        if (height, width) != pixels.shape[:2]:
            planes = pixels.transpose(2, 0, 1)
            pixels = upsampled(planes, (height, width), pixels.shape[:2], False).transpose(1, 2, 0)
    if rules.get("do_flip_channel_order"):
        pixels = pixels[..., ::-1]
    factor = rules["rescale_factor"] if rules["do_rescale"] else 1.0
    normalize = rules["do_normalize"]
    mean = np.array(rules["image_mean"] if normalize else [0.0] * 3, np.float32)
    std = np.array(rules["image_std"] if normalize else [1.0] * 3, np.float32)
    low, divisor = rules["minimum_size"] or 1, rules["size_divisor"] or 1
    whole = [-(-max(side, low) // divisor) * divisor for side in (height, width)]  # what the network can take
    padded = [height, width]
    if rules["window_size"] is not None:
        window = pair(rules["window_size"])
        if rules.get("small_images") == "cut":
            window = map(min, window, whole)
        padded = list(map(max, padded, window))
    elif rules["do_pad"] and not (rules["do_resize"] and rules["size"].get("height")):  # a size as said is not padded
        padded = whole
    if facts["input"].startswith("uint8"):
        result = np.broadcast_to((mean / factor).round().clip(0, 255).astype(np.uint8), (*padded, 3)).copy()
        result[:height, :width] = pixels.round().astype(np.uint8)
    else:
        result = np.zeros((*padded, 3), np.float32)  # the mean
        result[:height, :width] = (pixels * factor - mean) / std
    return np.ascontiguousarray(result.transpose(2, 0, 1)[None]), (height, width)


def upsampled(values: np.ndarray, size: tuple[int, int], extent, align_corners: bool) -> np.ndarray:
    """Bilinear interpolation (K, h, w) -> (K, *size) of the top left `extent` (in values) of the map."""
    for axis, (target, covered) in enumerate(zip(size, extent), start=1):
        index = np.arange(target, dtype=np.float64)
        if align_corners:
            place = index * ((covered - 1) / max(target - 1, 1))
        else:
            place = (index + 0.5) * (covered / target) - 0.5
        place = place.clip(0, values.shape[axis] - 1)
        below = np.floor(place).astype(int)
        above = np.minimum(below + 1, values.shape[axis] - 1)
        share = (place - below).astype(np.float32).reshape(-1, *[1] * (2 - axis))
        values = values.take(below, axis) * (1 - share) + values.take(above, axis) * share
    return values


def extent_of(logits: np.ndarray, own: tuple[int, int], padded: tuple[int, int], align_corners: bool) -> list[float]:
    """How many logits a side cover the picture, without its padding."""
    pairs = zip(own, padded, logits.shape[-2:])
    if align_corners:
        return [1 + (part - 1) * (steps - 1) / max(whole - 1, 1) for part, whole, steps in pairs]
    return [part * steps / whole for part, whole, steps in pairs]


def windows_of(facts: dict, size: tuple[int, int]) -> list[tuple[slice, slice]]:
    """The windows of a padded picture: every stride, the last one aligned to the border."""
    window = pair(facts["preprocessing"]["window_size"])
    stride = pair(facts["preprocessing"]["window_stride"] or window)
    window = tuple(map(min, window, size))
    rows, columns = (
        [*range(0, side - edge, step), max(side - edge, 0)] for side, edge, step in zip(size, window, stride)
    )
    return [(slice(top, top + window[0]), slice(left, left + window[1])) for top in rows for left in columns]


def best_class(logits: np.ndarray) -> np.ndarray:
    """(K, H, W) -> (H, W); one class is a sigmoid."""
    return (logits[0] > 0).astype(np.uint8) if len(logits) == 1 else logits.argmax(0)


def run(session, output: str, pixels: np.ndarray) -> np.ndarray:
    """An output (1, ...) for pixels (1, 3, h', w'); a file of one batch size is shown copies of the picture."""
    batch, _, *size = session.get_inputs()[0].shape  # names where any size will do
    if isinstance(size[0], int) and tuple(size) != pixels.shape[2:]:
        raise ValueError(
            f"the file was exported for pictures of {size[0]}x{size[1]} pixels alone, and this one has "
            f"{pixels.shape[2]}x{pixels.shape[3]} as it is prepared"
        )
    copies = batch if isinstance(batch, int) else 1
    return session.run([output], {"pixel_values": pixels.repeat(copies, axis=0)})[0][:1]


def segment(session, facts: dict, image: Image.Image) -> np.ndarray:
    """Class ids (H, W) of a picture, at its own size."""
    pixels, own = prepare(image, facts)
    image = ImageOps.exif_transpose(image)
    target, padded = (image.height, image.width), pixels.shape[2:]
    align_corners = facts["preprocessing"]["align_corners"]
    if facts["preprocessing"]["window_size"] is not None:
        if "logits" not in facts["outputs"]:
            raise ValueError("the windows of this model are averaged as logits, which the file does not return")
        total, count = 0.0, np.zeros(padded, np.float32)
        for rows, columns in windows_of(facts, padded):
            logits = run(session, "logits", np.ascontiguousarray(pixels[:, :, rows, columns]))
            size = (rows.stop - rows.start, columns.stop - columns.start)
            if count[0, 0] == 0:
                total = np.zeros((logits.shape[1], *padded), np.float32)
            total[:, rows, columns] += upsampled(logits[0], size, logits.shape[2:], align_corners)
            count[rows, columns] += 1
        merged = (total / count)[:, : own[0], : own[1]]
        return best_class(merged if own == target else upsampled(merged, target, own, align_corners))
    if "logits" in facts["outputs"]:
        logits = run(session, "logits", pixels)
        extent = extent_of(logits, own, padded, align_corners)
        return best_class(upsampled(logits[0], target, extent, align_corners))
    label_map = run(session, "label_map", pixels)
    label_map = Image.fromarray(label_map[0, : own[0], : own[1]].astype(np.int32))
    return np.asarray(label_map.resize(target[::-1], Image.NEAREST))


def main(command_line: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--model", default=str(Path(__file__).with_name("model.onnx")), help="an exported .onnx file")
    parser.add_argument("--output_dir", default=".", help="folder of the results")
    parser.add_argument("--provider", default="CPUExecutionProvider", help="of ONNX Runtime")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are cores")
    arguments = parser.parse_args(command_line)
    session, facts = load(arguments.model, arguments.provider, arguments.threads)
    colors = np.array(facts["palette"], np.uint8)
    folder, failed = Path(arguments.output_dir), 0
    folder.mkdir(parents=True, exist_ok=True)
    for picture in arguments.pictures:
        try:
            with Image.open(picture) as image:
                label_map = segment(session, facts, image)
                image = ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, ValueError) as error:
            print(f"error: {picture}: {error}", file=sys.stderr)
            failed = 1
            continue
        stem = folder / Path(picture).stem
        labels = Image.fromarray(label_map.astype(np.uint8 if len(colors) <= 256 else np.int32))
        if len(colors) <= 256:
            labels.putpalette(colors.flatten().tolist())
        labels.save(f"{stem}_labels.png")
        Image.blend(image, Image.fromarray(colors[label_map]), 0.5).save(f"{stem}_overlay.png")
        found = {facts["id2label"][str(number)]: share for number, share in zip(*shares(label_map))}
        print(f"{picture}: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in found.items()))
    return failed


def shares(label_map: np.ndarray):
    """Classes that occur, and their shares of the pixels."""
    numbers, counts = np.unique(label_map, return_counts=True)
    return numbers, counts / label_map.size


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
