"""Batches of images -> rows of results, whoever hands the batches over: shards of `segtx predict`, Ray, Spark.

    segmenter = BatchSegmenter("outputs/mine")
    table = segmenter({"path": ["a.jpg", "b.jpg"], "bytes": [content_of_a, content_of_b]})

A row has the columns of `SCHEMA`: `height` and `width` in pixels, `label` (PNG of class ids),
`confidence` and `entropy` (means over the pixels, see `hf_segtx.inference.segment`), and the `error` of an image that
cannot be read, whose other columns are null.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ..data.decoding import read_image
from ..inference import image_size, load_model, segment
from .pictures import Predictor, as_png, predict_each, read_ahead


SCHEMA = pa.schema(
    {
        "name": pa.string(),
        "height": pa.int32(),
        "width": pa.int32(),
        "label": pa.binary(),
        "confidence": pa.float32(),
        "entropy": pa.float32(),
        "error": pa.string(),
    }
)


class BatchSegmenter:
    """A checkpoint as a function of batches; Ray and Spark make one of it in each of their processes.

    Args:
        name_or_path: folder of a saved model, or Hub name.
        image_column: column of the images: contents of files, paths, {"bytes", "path"} as in HF data sets, or decoded
            uint8 arrays (H, W, C) or (H, W).
        name_column: column of what the results call the images; without it, `name` is null.
        uncertainty: also `confidence` and `entropy`, which takes longer; else they are null.
        batch_size: images that go through the model together, without `uncertainty`.
        device: such as "cuda:1"; None is an accelerator if there is one.
        loading: further arguments of `hf_segtx.inference.load_model`.

    Raises:
        ValueError, OSError: as `load_model`.
    """

    def __init__(
        self,
        name_or_path: str | Path,
        *,
        image_column: str = "bytes",
        name_column: str = "path",
        uncertainty: bool = True,
        batch_size: int = 1,
        device: str | None = None,
        **loading,
    ):
        model, processor = load_model(name_or_path, **loading)
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        self.predictor = Predictor(model.to(device or found).eval(), processor)
        self.image_column, self.name_column = image_column, name_column
        self.uncertainty, self.batch_size = uncertainty, batch_size

    def __call__(self, batch: Mapping[str, Sequence]) -> pa.Table:
        """The results of a batch, in its order, with the columns of `SCHEMA`.

        Args:
            batch: columns by their names, as a dict of arrays or lists, or a pandas data frame.

        Raises:
            ValueError: if there is no such column.
        """
        if self.image_column not in batch:
            raise ValueError(f"there is no column {self.image_column!r} among {list(batch)}; set `image_column`")
        files = list(batch[self.image_column])
        names = [str(name) for name in batch[self.name_column]] if self.name_column in batch else [None] * len(files)
        num_channels = getattr(self.predictor.model.config, "num_channels", 3)

        def read(index: int):
            return as_image(files[index], names[index] or f"image {index} of a batch", num_channels)

        with ThreadPoolExecutor() as pool:
            images = read_ahead(pool, read, range(len(files)), 2 * self.batch_size + 2)
            rows = segment_rows(pool, self.predictor, images, uncertainty=self.uncertainty, batch_size=self.batch_size)
            return pa.Table.from_pylist([{"name": names[index], **row} for index, row in rows], SCHEMA)


def as_image(value, name: str, num_channels: int):
    """An image for the model, of what may stand in a table; see `BatchSegmenter`.

    Raises:
        ValueError: if it cannot be decoded, or has another number of channels.
        TypeError: if it is something else.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        value = {"bytes": bytes(value), "path": None}
    if value is None or isinstance(value, (dict, str, Path)):
        return read_image(value, name, num_channels)
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} is a {type(value).__name__}; give bytes, a path, a dict of them, or an array")
    channels = 1 if value.ndim == 2 else value.shape[-1]
    if value.dtype != np.uint8 or value.ndim not in (2, 3) or channels != num_channels:
        raise ValueError(
            f"{name}: an array {value.shape} of {value.dtype}; give uint8 (height, width, {num_channels} channels)"
        )
    return torch.from_numpy(value.reshape(*value.shape[:2], channels).transpose(2, 0, 1).copy())


def segment_rows(
    pool: ThreadPoolExecutor, predictor: Predictor, images: Iterator[tuple], *, uncertainty: bool, batch_size: int
) -> Iterator[tuple[Any, dict]]:
    """(key, row) of each image, in order; a row has the columns of `SCHEMA` without `name`.

    Label maps are made PNGs while the model goes on; only so many wait that they do not pile up in memory.

    Args:
        images: (key, image, or the ValueError that reading it raised).
        batch_size: images that go through the model together, without `uncertainty`.
    """
    encoding: deque = deque()
    while batch := list(islice(images, batch_size)):
        for (key, image), result in zip(batch, _results(predictor, [image for _, image in batch], uncertainty)):
            encoding.append((key, pool.submit(_row, predictor, image, result)))
        while len(encoding) > 2 * batch_size + 2:
            key, row = encoding.popleft()
            yield key, row.result()
    for key, row in encoding:
        yield key, row.result()


def _results(predictor: Predictor, images: list, uncertainty: bool) -> list:
    """(label map, confidence, entropy) of each image, or the ValueError in its place."""
    if not uncertainty:
        maps = predict_each(predictor, images)
        return [item if isinstance(item, ValueError) else (item, None, None) for item in maps]
    results = []
    for image in images:
        try:
            if isinstance(image, ValueError):
                raise image
            (found,) = segment(predictor.model, predictor.processor, [image], return_uncertainty=True)
        except ValueError as error:
            results.append(error)
        else:
            results.append((found.label_map.cpu().numpy(), found.confidence.mean().item(), found.entropy.mean().item()))
    return results


def _row(predictor: Predictor, image, result) -> dict:
    row = dict.fromkeys(set(SCHEMA.names) - {"name"})
    if isinstance(result, ValueError):
        return row | {"error": str(result)}
    label_map, confidence, entropy = result
    height, width = image_size(image)
    label = as_png(predictor.mask(label_map))
    return row | {"height": height, "width": width, "label": label, "confidence": confidence, "entropy": entropy}
