"""Segments pictures: label maps as PNG and overlays with a legend.

    python examples/predict.py outputs/segformer_scenes photo.jpg
    python examples/predict.py outputs/camvid/best frames/ --output_dir predictions
    python examples/predict.py nvidia/segformer-b0-finetuned-ade-512-512 'holiday/**/*.jpg'

Writes, for each picture, `NAME_labels.png` (palette image, the pixel value is the class id) and `NAME_overlay.png`.
A picture that cannot be read is reported at the end, and the rest is done; the exit status is then 1.

Image processor, model and post-processing are called as `pipeline("image-segmentation")` calls them, but without it:
the pipeline cuts the label map into one full-size mask a class, which would have to be put together again.
"""

import argparse
import glob
import sys
from pathlib import Path


# This folder last: its evaluate.py would hide the library of that name.
sys.path.sort(key=lambda folder: Path(folder).resolve() == Path(__file__).resolve().parent)

import torch
from PIL import Image
from tqdm.auto import tqdm

from hf_segtx.data import IMAGE_SUFFIXES, read_image
from hf_segtx.inference import load_model, predict
from hf_segtx.visualization import label_png, legend, overlay, palette


def parse_arguments(command_line: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="predict.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder of a saved model, or Hub name")
    parser.add_argument("images", nargs="+", help="files, folders (with all below) or quoted glob patterns")
    parser.add_argument("--output_dir", default="predictions", help="where the results go")
    parser.add_argument("--alpha", type=float, default=0.5, help="opacity of the overlay, 0 to 1")
    parser.add_argument("--device", help="such as cuda:1; default: an accelerator if there is one")
    parser.add_argument("--cache_dir", help="where downloads are kept")
    parser.add_argument("--token", help="Hub token for downloads")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code that comes with a model")
    return parser.parse_args(command_line)


def find_images(patterns: list[str]) -> dict[Path, Path]:
    """{file: its path below the folder or pattern it was found by, without suffix}.

    Raises:
        ValueError: if a pattern finds nothing, or two files would get the same output.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        root = Path(pattern)
        if root.is_dir():
            files = sorted(file for file in root.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        elif root.is_file():
            root, files = root.parent, [root]
        else:
            files = sorted(Path(file) for file in glob.glob(pattern, recursive=True) if Path(file).is_file())
            fixed = [part for part in Path(pattern).parts[:-1]]
            wild = next((i for i, part in enumerate(fixed) if glob.has_magic(part)), len(fixed))
            root = Path(*fixed[:wild])
        if not files:
            raise ValueError(f"{pattern}: no pictures ({', '.join(sorted(IMAGE_SUFFIXES))})")
        found.update({file: file.relative_to(root).with_suffix("") for file in files})
    outputs: dict[Path, Path] = {}
    for file, output in found.items():
        if output in outputs:
            raise ValueError(f"{outputs[output]} and {file} would both be written to {output}_labels.png; rename one")
        outputs[output] = file
    return found


def with_legend(picture: Image.Image, names: list[str], colors: list, present: list[int]) -> Image.Image:
    """The picture with the legend of the classes that occur below it."""
    key = legend(names, colors, present, width=max(320, picture.width))
    canvas = Image.new("RGB", (max(picture.width, key.width), picture.height + key.height), (255, 255, 255))
    canvas.paste(picture, (0, 0))
    canvas.paste(key, (0, picture.height))
    return canvas


def main(arguments: argparse.Namespace) -> dict[Path, str]:
    """Predicts; returns {file: what was wrong} of the files that failed.

    Raises:
        ValueError, OSError: if there is no model or no picture, or the output cannot be written.
    """
    files = find_images(arguments.images)
    output_dir = Path(arguments.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    model, processor = load_model(
        arguments.model,
        cache_dir=arguments.cache_dir,
        token=arguments.token,
        trust_remote_code=arguments.trust_remote_code,
    )
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    model.to(arguments.device or found).eval()
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    if len(names) == 1:  # a sigmoid
        names = ["background", *names]
    colors = [tuple(color) for color in getattr(model.config, "palette", None) or palette(len(names))]
    failures = {}
    for file, output in tqdm(files.items(), unit="image", disable=len(files) == 1):
        try:
            image = read_image(str(file), str(file))
        except ValueError as error:
            failures[file] = str(error)
            continue
        label_map = predict(model, processor, [image])[0].cpu().numpy()
        target = output_dir / output
        target.parent.mkdir(parents=True, exist_ok=True)
        label_png(label_map, colors).save(f"{target}_labels.png")
        picture = overlay(image, label_map, colors, arguments.alpha)
        with_legend(picture, names, colors, sorted(set(label_map.ravel().tolist()))).save(f"{target}_overlay.png")
    print(f"{len(files) - len(failures)} of {len(files)} pictures segmented, results in {output_dir}")
    return failures


if __name__ == "__main__":
    try:
        failed = main(parse_arguments(sys.argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    for message in failed.values():
        print(f"error: {message}", file=sys.stderr)
    sys.exit(1 if failed else 0)
