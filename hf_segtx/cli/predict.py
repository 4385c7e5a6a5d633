"""Segments pictures and videos: label maps as PNG, overlays with a legend.

    python examples/predict.py outputs/segformer_scenes photo.jpg
    python examples/predict.py outputs/camvid/best frames/ --output_dir predictions
    python examples/predict.py nvidia/segformer-b0-finetuned-ade-512-512 'holiday/**/*.jpg' drive.mp4
    python examples/predict.py outputs/camvid/best camera:0 --max_frames 500      # Ctrl-C ends it, too

Writes, for each picture, `NAME_labels.png` (palette image, the pixel value is the class id) and `NAME_overlay.png`; for
a georeferenced TIFF also `NAME_labels.tif` at the same place on Earth (needs `pip install rasterio`). For each video or
camera `NAME_overlay.mp4`, or with `--frames` a folder NAME with the two pictures of each frame (`pip install av`).
What cannot be read is reported at the end, and the rest is done; the exit status is then 1.

Image processor, model and post-processing are called as `pipeline("image-segmentation")` calls them, but without it:
the pipeline cuts the label map into one full-size mask a class, which would have to be put together again.
"""

import argparse
import glob
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from ..data import read_image
from ..data.layouts import IMAGE_SUFFIXES
from ..inference import load_model, predict
from ..visualization import label_png, legend, overlay, palette


VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}
STREAMS = ("camera:", "rtsp://", "rtmp://", "udp://", "http://", "https://")
CAMERAS = {"linux": ("v4l2", "/dev/video"), "darwin": ("avfoundation", ""), "win32": ("dshow", "video=")}
GEO_KEYS = 34735  # the tag of a TIFF that says what its coordinates mean


def parse_arguments(command_line: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="predict.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder of a saved model, or Hub name")
    parser.add_argument("images", nargs="+", help="files, folders, quoted glob patterns, camera:NUMBER, rtsp://...")
    parser.add_argument("--output_dir", default="predictions", help="where the results go")
    parser.add_argument("--alpha", type=float, default=0.5, help="opacity of the overlay, 0 to 1")
    parser.add_argument("--batch_size", type=int, default=1, help="pictures that go through the model together")
    parser.add_argument("--frames", action="store_true", help="of videos, write the pictures of each frame")
    parser.add_argument("--max_frames", type=int, help="stop a video or camera after so many")
    parser.add_argument("--device", help="such as cuda:1; default: an accelerator if there is one")
    parser.add_argument("--cache_dir", help="where downloads are kept")
    parser.add_argument("--token", help="Hub token for downloads")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code that comes with a model")
    return parser.parse_args(command_line)


# ----------------------------------------------------------------------------------------------------------- reading


def is_stream(source) -> bool:
    return str(source).startswith(STREAMS)


def is_video(source) -> bool:
    return is_stream(source) or Path(source).suffix.lower() in VIDEO_SUFFIXES


def find_images(patterns: list[str]) -> dict[Path | str, Path]:
    """{file or stream: its path below the folder or pattern it was found by, without suffix}.

    Raises:
        ValueError: if a pattern finds nothing, or two files would get the same output.
    """
    found: dict[Path | str, Path] = {}
    for pattern in patterns:
        if is_stream(pattern):
            found[pattern] = Path("".join(letter if letter.isalnum() else "_" for letter in pattern))
            continue
        root = Path(pattern)
        if root.is_dir():
            files = sorted(file for file in root.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES)
        elif root.is_file():
            root, files = root.parent, [root]
        else:
            files = sorted(Path(file) for file in glob.glob(pattern, recursive=True) if Path(file).is_file())
            fixed = [part for part in Path(pattern).parts[:-1]]
            wild = next((i for i, part in enumerate(fixed) if glob.has_magic(part)), len(fixed))
            root = Path(*fixed[:wild])
        if not files:
            raise ValueError(f"{pattern}: no pictures or videos ({', '.join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))})")
        found.update({file: file.relative_to(root).with_suffix("") for file in files})
    outputs: dict[Path, Path | str] = {}
    for file, output in found.items():
        if output in outputs:
            raise ValueError(f"{outputs[output]} and {file} would both be written to {output}_labels.png; rename one")
        outputs[output] = file
    return found


class Video:
    """Frames of a file, a camera or a stream, upright: iterate for PIL images.

    Raises:
        ValueError: if it cannot be opened or decoded, or PyAV is not installed.
    """

    def __init__(self, source: Path | str):
        try:
            import av
        except ImportError as error:
            raise ValueError(f"{source}: videos are read by PyAV; `pip install av`") from error
        self.errors, self.source = av.FFmpegError, source
        name, kind = str(source), None
        if name.startswith("camera:"):
            kind, prefix = CAMERAS[sys.platform]
            name = prefix + name.removeprefix("camera:")
        try:
            self.container = av.open(name, format=kind)
            self.stream = self.container.streams.video[0]
        except (av.FFmpegError, IndexError) as error:
            raise ValueError(f"{source} cannot be opened as a video ({error})") from error
        self.stream.thread_type = "AUTO"
        self.rate = self.stream.average_rate or 25  # frames a second
        self.length = self.stream.frames or None  # unknown of streams

    def __iter__(self) -> Iterator[Image.Image]:
        try:
            for frame in self.container.decode(self.stream):
                image = frame.to_image()
                yield image.rotate(frame.rotation, expand=True) if frame.rotation else image
        except self.errors as error:
            raise ValueError(f"{self.source} cannot be decoded further ({error})") from error

    def close(self) -> None:
        self.container.close()


def read_ahead(pool: ThreadPoolExecutor, read: Callable, items: Iterable, count: int) -> Iterator[tuple]:
    """(item, result of `read`, or the ValueError that it raised) of each item, in order; `count` are under way."""
    items, waiting = iter(items), deque()
    while True:
        waiting.extend((item, pool.submit(read, item)) for item in islice(items, count - len(waiting)))
        if not waiting:
            return
        item, future = waiting.popleft()
        error = future.exception()
        if error is not None and not isinstance(error, ValueError):
            raise error
        yield item, error or future.result()


# ----------------------------------------------------------------------------------------------------------- writing


def as_picture(image) -> Image.Image:
    """What the overlay is drawn on: of images that are tensors (C, H, W) the first three channels, or the first one."""
    if isinstance(image, Image.Image):
        return image
    shown = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    if shown.dtype != torch.uint8:
        low, high = shown.min(), shown.max()
        shown = ((shown - low) / (high - low).clamp(min=1e-12) * 255).byte()
    return Image.fromarray(shown.permute(1, 2, 0).numpy())


def with_legend(picture: Image.Image, names: list[str], colors: list, present: list[int]) -> Image.Image:
    """The picture with the legend of these classes below it."""
    key = legend(names, colors, present, width=max(320, picture.width))
    canvas = Image.new("RGB", (max(picture.width, key.width), picture.height + key.height), (255, 255, 255))
    canvas.paste(picture, (0, 0))
    canvas.paste(key, (0, picture.height))
    return canvas


def is_georeferenced(file: Path | str) -> bool:
    if Path(file).suffix.lower() not in (".tif", ".tiff"):
        return False
    with suppress(OSError), Image.open(file) as image:
        return GEO_KEYS in image.tag_v2
    return False


def write_geotiff(target: str, label_map: np.ndarray, colors: list, file: Path) -> None:
    """The label map as a GeoTIFF with the coordinates of `file`; void is "no data".

    Raises:
        ValueError: if rasterio is not installed.
    """
    try:
        import rasterio
    except ImportError as error:
        raise ValueError(f"{file}: to keep its coordinates in the label map, `pip install rasterio`") from error
    with rasterio.open(file) as source:
        profile = {key: getattr(source, key) for key in ("crs", "transform", "height", "width")}
    profile |= {"count": 1, "dtype": "uint8", "nodata": 255, "compress": "deflate"}
    with rasterio.open(target, "w", "GTiff", **profile) as result:
        result.write(label_map.astype(np.uint8), 1)
        result.write_colormap(1, dict(enumerate(colors)))


class Predictor:
    """A model, and how its predictions are drawn and written."""

    def __init__(self, model, processor, alpha: float):
        self.model, self.processor, self.alpha = model, processor, alpha
        self.names = [model.config.id2label[index] for index in range(len(model.config.id2label))]
        self.colors = [tuple(color) for color in getattr(model.config, "palette", None) or palette(len(self.names))]

    def predict(self, images: list) -> list[np.ndarray]:
        return [label_map.cpu().numpy() for label_map in predict(self.model, self.processor, images)]

    def draw(self, image, label_map: np.ndarray, present: list[int] | None = None) -> Image.Image:
        """The overlay with its legend, of the classes in the picture or of those given."""
        present = np.unique(label_map).tolist() if present is None else present
        picture = overlay(as_picture(image), label_map, self.colors, self.alpha)
        return with_legend(picture, self.names, self.colors, present)

    def write(self, target: Path, image, label_map: np.ndarray) -> None:
        label_png(label_map, self.colors).save(f"{target}_labels.png")
        self.draw(image, label_map).save(f"{target}_overlay.png", compress_level=1)  # PIL's 6 takes longer than a model


def segment_images(predictor: Predictor, files: dict, batch_size: int) -> dict[Path, str]:
    """Writes the results of {picture: target}; returns what was wrong with those that failed."""
    failures = {}
    num_channels = getattr(predictor.model.config, "num_channels", 3)

    def write(file, image, label_map):
        predictor.write(files[file], image, label_map)
        if is_georeferenced(file):
            write_geotiff(f"{files[file]}_labels.tif", label_map, predictor.colors, file)

    def finish(file, future):
        try:
            future.result()
        except ValueError as error:
            failures[file] = str(error)
        except OSError as error:  # a full disk, which would fail for all others, too
            raise OSError(f"{files[file]}_*: the results cannot be written ({error})") from error

    with ThreadPoolExecutor() as pool, tqdm(total=len(files), unit="image", disable=len(files) == 1) as bar:
        images = read_ahead(pool, lambda file: read_image(str(file), str(file), num_channels), files, 2 * batch_size)
        writing: deque = deque()
        while batch := list(islice(images, batch_size)):
            bar.update(len(batch))
            failures.update({file: str(image) for file, image in batch if isinstance(image, ValueError)})
            batch = [(file, image) for file, image in batch if file not in failures]
            label_maps = predictor.predict([image for _, image in batch])
            for (file, image), label_map in zip(batch, label_maps, strict=True):
                writing.append((file, pool.submit(write, file, image, label_map)))
            while len(writing) > 2 * batch_size:  # else they pile up in memory where writing is slower
                finish(*writing.popleft())
        for file, future in writing:
            finish(file, future)
    return failures


def segment_video(predictor: Predictor, source, target: Path, arguments: argparse.Namespace) -> None:
    """Writes an overlay video, or a folder of pictures; Ctrl-C ends it at the frame.

    Raises:
        ValueError: if the video cannot be read, or is torn; what came before is written.
    """
    with closing(Video(source)) as video, closing(Frames(target) if arguments.frames else Film(target, video)) as out:
        lengths = [length for length in (video.length, arguments.max_frames) if length]
        bar = tqdm(total=min(lengths, default=None), unit="frame", desc=str(source))
        frames = islice(video, arguments.max_frames)
        with ThreadPoolExecutor(1) as pool, bar, suppress(KeyboardInterrupt):
            ahead = pool.submit(lambda: list(islice(frames, arguments.batch_size)))
            while images := ahead.result():
                ahead = pool.submit(lambda: list(islice(frames, arguments.batch_size)))
                for image, label_map in zip(images, predictor.predict(images), strict=True):
                    out.write(predictor, image, label_map)
                    bar.update()


class Frames:
    """The two pictures of each frame in a folder."""

    def __init__(self, target: Path):
        self.folder, self.count = target, 0
        target.mkdir(parents=True, exist_ok=True)

    def write(self, predictor: Predictor, image, label_map: np.ndarray) -> None:
        predictor.write(self.folder / f"{self.count:06d}", image, label_map)
        self.count += 1

    def close(self) -> None:
        pass


class Film:
    """An MP4 of the overlays above the legend of all classes."""

    def __init__(self, target: Path, video: Video):
        self.target, self.video = f"{target}_overlay.mp4", video
        self.container = self.stream = None  # opened by the first frame, which tells the size

    def write(self, predictor: Predictor, image, label_map: np.ndarray) -> None:
        import av  # is there: the frames came through it

        picture = predictor.draw(image, label_map, list(range(len(predictor.names))))
        if self.container is None:
            self.container = av.open(self.target, "w")
            self.stream = self.container.add_stream("libx264", rate=self.video.rate)
            self.stream.width, self.stream.height = (edge + edge % 2 for edge in picture.size)  # the codec's condition
            self.stream.pix_fmt = "yuv420p"
        picture = picture.crop((0, 0, self.stream.width, self.stream.height))
        self.container.mux(self.stream.encode(av.VideoFrame.from_image(picture)))

    def close(self) -> None:
        if self.container is not None:
            self.container.mux(self.stream.encode())
            self.container.close()


def main(arguments: argparse.Namespace) -> dict[Path, str]:
    """Predicts; returns {file: what was wrong} of the files that failed.

    Raises:
        ValueError, OSError: if there is no model or no picture, or the output cannot be written.
    """
    if arguments.batch_size < 1:
        raise ValueError(f"--batch_size is {arguments.batch_size}; it must be at least 1")
    output_dir = Path(arguments.output_dir)
    files = {file: output_dir / output for file, output in find_images(arguments.images).items()}
    model, processor = load_model(
        arguments.model,
        cache_dir=arguments.cache_dir,
        token=arguments.token,
        trust_remote_code=arguments.trust_remote_code,
    )
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    model.to(arguments.device or found).eval()
    predictor = Predictor(model, processor, arguments.alpha)
    for target in files.values():
        target.parent.mkdir(parents=True, exist_ok=True)
    videos = {file: target for file, target in files.items() if is_video(file)}
    images = {file: target for file, target in files.items() if file not in videos}
    failures = segment_images(predictor, images, arguments.batch_size) if images else {}
    for video, target in videos.items():
        try:
            segment_video(predictor, video, target, arguments)
        except ValueError as error:
            failures[video] = str(error)
    print(f"{len(files) - len(failures)} of {len(files)} segmented, results in {output_dir}")
    return failures


def run(command_line: list[str]) -> int:
    """The command; returns its exit status."""
    failed = main(parse_arguments(command_line))
    for message in failed.values():
        print(f"error: {message}", file=sys.stderr)
    return 1 if failed else 0
