"""Label maps of images that do not fit into memory: read, predicted and written in tiles of many windows each.

    segment_large(model, processor, "scene.tif", "labels.tif")

The same windows and the same result as `hf_segtx.inference.predict` on an image that fits. Held are one row of a tile's
windows of the image and two or three of their logits, whatever the size of the image; windows that lie in two tiles are
predicted in both. Sources and results are memory-mapped .npy files, or TIFF files, best tiled ones, where tifffile is
installed.
"""

import json
from collections.abc import Iterator
from itertools import product
from math import ceil
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from .inference import follow, logits_of_windows
from .models.sliding_windows import MergedWindows, Part, axis_parts, window_grid


@torch.no_grad()
def segment_large(
    model: nn.Module,
    processor,
    source: str | Path | np.ndarray,
    output: str | Path,
    *,
    tile_size: int = 8192,
    window_batch_size: int = 4,
    progress: bool = True,
) -> np.ndarray:
    """Writes the label map of a large image to a file; once interrupted, the same call goes on where it was.

    How far it is stands in a file beside the output, `<output>.progress`, which is removed at the end. The model should
    be in evaluation mode.

    Args:
        processor: with `window_size`, and `do_resize=False`: the image is shown at its own size.
        source: .npy or .tif file, or an array: (H, W, C) or (H, W) uint8.
        output: .npy or .tif file, (H, W) uint8, or uint16 for more than 256 classes. An existing file is replaced,
            unless it is the unfinished one of this image.
        tile_size: largest height and width of a tile in pixels, at least those of a window. Larger ones take more
            memory, smaller ones have more windows in common with their neighbours.
        window_batch_size: windows that go through the model together.
        progress: show a progress bar.

    Returns:
        the label map, memory-mapped for reading.

    Raises:
        ValueError: if the processor resizes or has no windows, a tile is smaller than a window, or a file is of
            another kind.
        ImportError: for TIFF files, if tifffile is not installed.
    """
    if processor.do_resize or processor.window_size is None:
        raise ValueError(
            f"do_resize is {processor.do_resize} and window_size {processor.window_size}; large images are cut into "
            "windows at their own size: set processor.do_resize = False and, say, processor.window_size = 512"
        )
    follow(processor, model)
    image = source if isinstance(source, np.ndarray) else open_image(source)
    output = Path(output)
    size = tuple(image.shape[:2])
    network = processor.size_divisor, processor.minimum_size, processor.small_images == "cut"
    window, starts = window_grid(size, processor.window_size, processor.window_stride, *network)
    if processor.small_images == "enlarge" and any(side < edge for side, edge in zip(size, window)):
        raise ValueError(
            f"small_images is 'enlarge' and the image of {size} pixels below the window of {window}; call "
            "hf_segtx.inference.predict, which enlarges it"
        )
    if tile_size < max(window):
        raise ValueError(f"tile_size is {tile_size} for windows of {window} pixels; make it larger, best many times")
    tiles = list(product(*(axis_parts(*axis, tile_size) for axis in zip(size, window, starts, strict=True))))

    state_file = output.with_name(output.name + ".progress")
    run = {"source": "array" if image is source else str(source), "size": size, "window": window, "tile": tile_size}
    run = json.loads(json.dumps({**run, "starts": [axis[1:2] for axis in starts], "model": model.name_or_path}))
    state = json.loads(state_file.read_text()) if state_file.exists() and output.exists() else {}
    resumed = state.get("run") == run
    first, row = (state["tile"], state["row"]) if resumed else (0, 0)  # what comes next
    dtype = np.uint8 if model.config.num_labels <= 256 else np.uint16
    _open_output(output, size, dtype, resumed)

    done = sum(rows.length * columns.length for rows, columns in tiles[:first])
    done += (row - tiles[first][0].begin) * tiles[first][1].length
    pixels = {"unit": "pixel", "unit_scale": True, "total": size[0] * size[1], "initial": done}
    with tqdm(desc=output.name, disable=not progress, **pixels) as bar:
        for number, (rows, columns) in enumerate(tiles[first:], first):
            row = max(row, rows.begin) if number == first else rows.begin
            label_map = _open_output(output, size, dtype, exists=True)  # anew: else its pages pile up in memory
            for block in _label_rows(model, processor, image, window, rows, columns, row, window_batch_size):
                block = block[: rows.end - row]
                label_map[row : row + len(block), columns.begin : columns.end] = block
                label_map.flush()
                row += len(block)
                unfinished = state_file.with_name(state_file.name + ".new")
                unfinished.write_text(json.dumps({"run": run, "tile": number, "row": row}))
                unfinished.replace(state_file)  # in one step: an interruption leaves the old one or the new one
                bar.update(block.size)
    state_file.unlink()
    return _open_output(output, size, dtype, exists=True)


def _label_rows(
    model: nn.Module, processor, image, window: tuple[int, int], rows: Part, columns: Part, row: int, batch_size: int
) -> Iterator[np.ndarray]:
    """The label map of a tile from `row` on, in blocks of rows; the last may be more rows than the tile has."""
    # The tile's windows cover an image of their own, of which the tile is a part: each pixel has all of its windows.
    top, left = rows.starts[0], columns.starts[0]
    size = tuple(
        part.covered(length, edge) for part, length, edge in zip((rows, columns), image.shape[:2], window, strict=True)
    )
    starts = [start - top for start in rows.starts], [start - left for start in columns.starts]
    merged = MergedWindows(size, size, window, starts, processor.align_corners)
    first = merged.resume(row - top)

    def windows() -> Iterator[tuple[torch.Tensor]]:
        for start in rows.starts[first:]:
            strip = image[start : min(start + window[0], image.shape[0]), left : left + size[1]]
            for column in starts[1]:
                piece = strip[:, column : column + window[1]]
                # on the way the processor pads it to the window, the one window that it has
                yield (processor(images=[_channels_first(piece)], return_tensors="pt")["pixel_values"][0],)

    inside = slice(columns.begin - left, columns.end - left)
    for (logits,) in logits_of_windows(model, windows(), batch_size):
        if merged.add(logits):
            yield merged.next_rows()[:, inside].cpu().numpy()


def open_image(path: str | Path):
    """The image of a .npy or .tif file, (H, W, C) or (H, W), whose parts are read when asked for: `image[:9, 20:30]`.

    Raises:
        ValueError: for files of other kinds.
        ImportError: for TIFF files, if tifffile is not installed.
    """
    path = Path(path)
    if path.suffix == ".npy":
        return NpyPixels(path)
    if path.suffix in (".tif", ".tiff"):
        return TiffPixels(path)
    raise ValueError(f"{path} is neither .npy nor .tif; convert it, or open it with PIL and call predict")


class NpyPixels:
    """The array of a .npy file, mapped anew for each part: else the pages that were read pile up in memory."""

    def __init__(self, path: Path):
        self._path = path
        self.shape = np.load(path, mmap_mode="r").shape

    def __getitem__(self, part: tuple[slice, slice]) -> np.ndarray:
        return np.array(np.load(self._path, mmap_mode="r")[part])


class TiffPixels:
    """The first picture of a TIFF file, of which only the tiles or strips that a part needs are read.

    Raises:
        ValueError: if the file keeps each channel apart.
    """

    def __init__(self, path: Path):
        self._page = _tifffile(path).TiffFile(path).pages.first
        if self._page.axes not in ("YX", "YXS"):
            raise ValueError(f"{path} has axes {self._page.axes}; save it as rows, columns, channels (YXS)")
        self.shape = self._page.shape

    def __getitem__(self, part: tuple[slice, slice]) -> np.ndarray:
        page, (rows, columns) = self._page, part
        result = np.zeros((rows.stop - rows.start, columns.stop - columns.start, *page.shape[2:]), page.dtype)
        height, width = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        across = ceil(page.imagewidth / width)
        numbers = [
            row * across + column
            for row in range(rows.start // height, ceil(rows.stop / height))
            for column in range(columns.start // width, ceil(columns.stop / width))
        ]
        segments = page.parent.filehandle.read_segments(
            [page.dataoffsets[number] for number in numbers],
            [page.databytecounts[number] for number in numbers],
            indices=numbers,
        )
        for data, number in segments:
            pixels, (_, _, top, left, _), _ = page.decode(data, number)  # (1, rows, columns, channels), maybe padded
            if pixels is None:  # never written: zeros
                continue
            first, last = max(top, rows.start), min(top + pixels.shape[1], rows.stop)
            begin, end = max(left, columns.start), min(left + pixels.shape[2], columns.stop)
            target = result[first - rows.start : last - rows.start, begin - columns.start : end - columns.start]
            target[...] = pixels[0, first - top : last - top, begin - left : end - left].reshape(target.shape)
        return result


def _channels_first(pixels: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, C) to (C, H, W); a grey image gets three equal channels."""
    return np.repeat(pixels[None], 3, 0) if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _open_output(path: Path, size: tuple[int, int], dtype, exists: bool) -> np.ndarray:
    """The label map in a file, memory-mapped."""
    if path.suffix == ".npy":
        new = {} if exists else {"shape": size, "dtype": dtype}
        return np.lib.format.open_memmap(path, "r+" if exists else "w+", **new)
    if path.suffix in (".tif", ".tiff"):
        new = {} if exists else {"shape": size, "dtype": dtype, "bigtiff": True, "photometric": "minisblack"}
        return _tifffile(path).memmap(path, **new)
    raise ValueError(f"{path} is neither .npy nor .tif; give the output one of these endings")


def _tifffile(path: Path):
    try:
        import tifffile
    except ImportError as error:
        raise ImportError(f"{path}: TIFF files need tifffile; pip install tifffile, or use .npy") from error
    return tifffile
