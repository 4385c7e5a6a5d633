"""Label maps of images that do not fit into memory: read and written in strips, one row of windows at a time.

    segment_large(model, processor, "scene.tif", "labels.tif")

The same windows and the same result as `hf_segtx.inference.predict` on an image that fits. Held are one row of windows
of the image and two or three of their logits. Sources and results are memory-mapped .npy files, or TIFF files, tiled or
not, where tifffile is installed.
"""

import json
from collections.abc import Iterator
from math import ceil
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from .inference import logits_of_windows
from .models.image_processing_segtx import window_grid
from .models.sliding_windows import MergedWindows


@torch.no_grad()
def segment_large(
    model: nn.Module,
    processor,
    source: str | Path | np.ndarray,
    output: str | Path,
    *,
    window_batch_size: int = 4,
    progress: bool = True,
) -> np.ndarray:
    """Writes the label map of a large image to a file; once interrupted, the same call goes on where it was.

    How far it is stands in a file beside the output, `<output>.progress`, which is removed at the end. The model should
    be in evaluation mode.

    Args:
        processor: with `window_size`, and `do_resize=False`: the image is shown at its own size.
        source: .npy or .tif file, or an array (maybe a memory map): (H, W, C) or (H, W) uint8.
        output: .npy or .tif file, (H, W) uint8, or uint16 for more than 256 classes. An existing file is replaced,
            unless it is the unfinished one of this image.
        window_batch_size: windows that go through the model together.
        progress: show a progress bar.

    Returns:
        the label map, memory-mapped for reading.

    Raises:
        ValueError: if the processor resizes or has no windows, or a file is of another kind.
        ImportError: for TIFF files, if tifffile is not installed.
    """
    if processor.do_resize or processor.window_size is None:
        raise ValueError(
            f"do_resize is {processor.do_resize} and window_size {processor.window_size}; large images are cut into "
            "windows at their own size: set processor.do_resize = False and, say, processor.window_size = 512"
        )
    image = source if isinstance(source, np.ndarray) else open_image(source)
    output = Path(output)
    size = tuple(image.shape[:2])
    window, (tops, lefts) = window_grid(size, processor.window_size, processor.window_stride, processor.size_divisor)
    merged = MergedWindows(size, size, window, (tops, lefts), processor.align_corners)

    state_file = output.with_name(output.name + ".progress")
    run = {"source": "array" if image is source else str(source), "size": size, "window": window, "tops": tops[1:2]}
    run = json.loads(json.dumps({**run, "lefts": lefts[1:2], "model": model.name_or_path}))
    state = json.loads(state_file.read_text()) if state_file.exists() and output.exists() else {}
    resumed = state.get("run") == run
    row = state["row"] if resumed else 0
    dtype = np.uint8 if model.config.num_labels <= 256 else np.uint16
    label_map = _open_output(output, size, dtype, resumed)
    first = merged.resume(row)

    def windows() -> Iterator[tuple[torch.Tensor]]:
        for top in tops[first:]:
            strip = np.asarray(image[top : min(top + window[0], size[0])])
            for left in lefts:
                piece = strip[:, left : left + window[1]]
                # on the way the processor pads it to the window, the one window that it has
                yield (processor(images=[_channels_first(piece)], return_tensors="pt")["pixel_values"][0],)

    with tqdm(total=size[0], initial=row, desc=output.name, unit="row", disable=not progress) as bar:
        for (logits,) in logits_of_windows(model, windows(), window_batch_size):
            if merged.add(logits):
                rows = merged.next_rows().cpu().numpy()
                label_map[row : row + len(rows)] = rows
                label_map.flush()
                row += len(rows)
                unfinished = state_file.with_name(state_file.name + ".new")
                unfinished.write_text(json.dumps({"run": run, "row": row}))
                unfinished.replace(state_file)  # in one step: an interruption leaves the old one or the new one
                bar.update(len(rows))
    state_file.unlink()
    return _open_output(output, size, dtype, exists=True)


def open_image(path: str | Path):
    """The image of a .npy or .tif file, (H, W, C) or (H, W), of which slices of rows are read when asked for.

    Raises:
        ValueError: for files of other kinds.
        ImportError: for TIFF files, if tifffile is not installed.
    """
    path = Path(path)
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r")
    if path.suffix in (".tif", ".tiff"):
        return TiffRows(path)
    raise ValueError(f"{path} is neither .npy nor .tif; convert it, or open it with PIL and call predict")


class TiffRows:
    """The first picture of a TIFF file, of which slices of rows can be read: `rows[1000:2000]`.

    Raises:
        ValueError: if the file keeps each channel apart.
    """

    def __init__(self, path: Path):
        self._page = _tifffile(path).TiffFile(path).pages.first
        if self._page.axes not in ("YX", "YXS"):
            raise ValueError(f"{path} has axes {self._page.axes}; save it as rows, columns, channels (YXS)")
        self.shape = self._page.shape

    def __getitem__(self, rows: slice) -> np.ndarray:
        page = self._page
        result = np.zeros((rows.stop - rows.start, *page.shape[1:]), page.dtype)
        height = page.tilelength if page.is_tiled else page.rowsperstrip
        across = ceil(page.imagewidth / page.tilewidth) if page.is_tiled else 1
        numbers = range(rows.start // height * across, ceil(rows.stop / height) * across)
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
            target = result[first - rows.start : last - rows.start, left : left + pixels.shape[2]]
            target[...] = pixels[0, first - top : last - top, : target.shape[1]].reshape(target.shape)
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
