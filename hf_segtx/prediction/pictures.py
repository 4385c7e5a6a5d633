"""Label maps of pictures, and overlays with a legend, as files.

Image processor, model and post-processing are called as `pipeline("image-segmentation")` calls them, but without it:
the pipeline cuts the label map into a full-size mask per class, which would have to be put together again.
"""

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..data import read_image
from ..data.coco import CocoWriter
from ..data.labelme import LabelmeWriter
from ..data.submission import SubmissionWriter
from ..data.yolo import YoloWriter
from ..inference import predict
from ..visualization import label_png, legend, overlay, palette
from .results import Results


WRITERS = {"coco": CocoWriter, "labelme": LabelmeWriter, "yolo": YoloWriter}
WRITERS |= {name: partial(SubmissionWriter, dataset=name) for name in ("cityscapes", "ade20k")}
GEO_KEYS = 34735  # the tag of a TIFF that says what its coordinates mean


class Predictor:
    """A model, and how its predictions are drawn.

    Args:
        model: on its device, in evaluation mode.
        processor: its image processor.
        alpha: opacity of overlays, 0 to 1.

    Attributes:
        names: of the classes.
        colors: of the classes, those of the training data if the model has them.
    """

    def __init__(self, model, processor, alpha: float = 0.5):
        self.model, self.processor, self.alpha = model, processor, alpha
        self.names = [model.config.id2label[index] for index in range(len(model.config.id2label))]
        self.colors = [tuple(color) for color in getattr(model.config, "palette", None) or palette(len(self.names))]

    def predict(self, images: list) -> list[np.ndarray]:
        """(H, W) label maps of the images, which go through the model together."""
        return [label_map.cpu().numpy() for label_map in predict(self.model, self.processor, images)]

    def draw(self, image, label_map: np.ndarray, present: list[int] | None = None) -> Image.Image:
        """The overlay with its legend, of the classes in the picture or of those given."""
        present = np.unique(label_map).tolist() if present is None else present
        picture = overlay(image, label_map, self.colors, self.alpha)
        key = legend(self.names, self.colors, present, width=max(320, picture.width))
        canvas = Image.new("RGB", (max(picture.width, key.width), picture.height + key.height), (255, 255, 255))
        canvas.paste(picture, (0, 0))
        canvas.paste(key, (0, picture.height))
        return canvas

    def mask(self, label_map: np.ndarray) -> Image.Image:
        """The label map as a picture whose values are class ids: with a palette, or 16 bits if too many."""
        if len(self.names) > 255:
            return Image.fromarray(label_map.astype(np.uint16))
        return label_png(label_map, self.colors)


class PictureFiles:
    """The files that the results of a picture go to: `NAME_labels.png` and `NAME_overlay.png`, for a georeferenced
    TIFF also `NAME_labels.tif`.

    Args:
        name: path below the folder of results.
        source: picture file, or the video that it is a frame of.
        writer: of annotations (see `hf_segtx.data.coco.CocoWriter`), whose file of this picture is one more.

    Raises:
        ValueError: if one of them is a file of the user.
    """

    def __init__(self, results: Results, name: Path, source: Path | str, writer=None):
        self.results, self.source = results, source
        self.labels = results.claim(f"{name}_labels.png", source)
        self.overlay = results.claim(f"{name}_overlay.png", source)
        self.geotiff = results.claim(f"{name}_labels.tif", source) if is_georeferenced(source) else None
        self.writer, self.name = writer, name.as_posix()
        file = writer.file(self.name) if writer is not None else None
        self.annotations = results.claim(file, source) if file is not None else None

    def write(self, predictor: Predictor, image, label_map: np.ndarray) -> None:
        """Writes them all.

        Raises:
            ValueError: if rasterio is needed and not installed.
        """
        self.results.write(self.labels, as_png(predictor.mask(label_map)))
        # PIL's own level of compression, 6, takes longer than a model
        self.results.write(self.overlay, as_png(predictor.draw(image, label_map), compress_level=1))
        if self.geotiff is not None:
            self.results.write(self.geotiff, as_geotiff(label_map, predictor.colors, self.source))
        if self.writer is not None:
            content = self.writer.add(self.source, self.name, label_map)
            if self.annotations is not None:
                self.results.write(self.annotations, content)


def segment_images(
    predictor: Predictor, names: dict[Path, Path], results: Results, batch_size: int = 1, format: str | None = None
) -> dict[Path, str]:
    """Segments picture files; returns what was wrong with those that failed.

    Args:
        names: {picture: path of its results below their folder}, see `find_sources`.
        batch_size: pictures that go through the model together.
        format: write the label maps also as outlines for tools of annotation: "coco", "labelme" or "yolo"; or for a
            test server: "cityscapes" or "ade20k".

    Raises:
        OSError: if the results cannot be written, because the disk is full, for example.
    """
    failures: dict[Path, str] = {}
    files: dict[Path, PictureFiles] = {}
    writer = None if format is None else WRITERS[format](results.folder, dict(enumerate(predictor.names)))
    together = {name: results.claim(name, "all pictures") for name in (writer.finish() if writer is not None else ())}
    for source, name in names.items():
        try:
            files[source] = PictureFiles(results, name, source, writer)
        except ValueError as error:
            failures[source] = str(error)

    def finish(source: Path, future: Future) -> None:
        try:
            future.result()
        except ValueError as error:
            failures[source] = str(error)

    num_channels = getattr(predictor.model.config, "num_channels", 3)
    with ThreadPoolExecutor() as pool, tqdm(total=len(files), unit="image", disable=len(files) <= 1) as bar:
        images = read_ahead(pool, lambda file: read_image(str(file), str(file), num_channels), files, 2 * batch_size)
        writing: deque = deque()
        while batch := list(islice(images, batch_size)):
            bar.update(len(batch))
            for (source, image), label_map in zip(batch, predict_each(predictor, [image for _, image in batch])):
                if isinstance(label_map, ValueError):
                    failures[source] = str(label_map)
                else:
                    writing.append((source, pool.submit(files[source].write, predictor, image, label_map)))
            while len(writing) > 2 * batch_size:  # else they pile up in memory where writing is slower
                finish(*writing.popleft())
        for source, future in writing:
            finish(source, future)
    for name, path in together.items():
        results.write(path, writer.finish()[name])
    return failures


def predict_each(predictor: Predictor, images: Sequence) -> list:
    """The label map of each image; a ValueError in the place of an image stays, and one that the model raises for an
    image takes its place, while the others of the batch are predicted."""
    readable = [image for image in images if not isinstance(image, ValueError)]
    try:
        found = iter(predictor.predict(readable)) if readable else iter(())
        return [image if isinstance(image, ValueError) else next(found) for image in images]
    except ValueError as error:
        if len(images) == 1:
            return [error]
        return [label_map for image in images for label_map in predict_each(predictor, [image])]


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


def as_png(image: Image.Image, **options) -> bytes:
    """The content of the file."""
    content = io.BytesIO()
    image.save(content, "PNG", **options)
    return content.getvalue()


def is_georeferenced(file: Path | str) -> bool:
    """Whether it is a TIFF that says where on Earth its pixels lie."""
    if Path(file).suffix.lower() not in (".tif", ".tiff"):
        return False
    with suppress(OSError), Image.open(file) as image:
        return GEO_KEYS in image.tag_v2
    return False


def as_geotiff(label_map: np.ndarray, colors: list, file: Path) -> bytes:
    """The label map as the content of a GeoTIFF with the coordinates of `file`; void is "no data".

    Raises:
        ValueError: if rasterio is not installed.
    """
    try:
        import rasterio
    except ImportError as error:
        raise ValueError(f"{file}: to keep its coordinates in the label map, `pip install rasterio`") from error
    with rasterio.open(file) as source:
        profile = {key: getattr(source, key) for key in ("crs", "transform", "height", "width")}
    kind = np.uint8 if len(colors) <= 255 else np.uint16
    profile |= {"count": 1, "dtype": kind.__name__, "nodata": int(np.iinfo(kind).max), "compress": "deflate"}
    with rasterio.MemoryFile() as content:
        with content.open(driver="GTiff", **profile) as result:
            result.write(label_map.astype(kind), 1)
            if kind is np.uint8:
                result.write_colormap(1, dict(enumerate(colors)))
        return content.read()
