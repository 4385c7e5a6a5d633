"""Whether exported files compute what the checkpoint does: at sizes and batches that they were not exported with.

A pixel is a tie where the checkpoint's two best classes differ by no more than twice the allowed difference of logits:
there rounding decides, and either class is right. Everywhere else the labels have to be equal.
"""

import multiprocessing
import re
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from ..inference import image_size, load_model, resized_image
from .runner import open_file, outputs_of


FLOAT_BOUND = 1e-3  # of the logits' standard deviation; rounding in float32 is a hundredth of it in deep models
HALF_BOUND = 0.1  # of 16 bits, whose rounding is 2 ** 13 times as coarse, mostly averaged out


@dataclass
class Comparison:
    """A file beside the checkpoint.

    Args:
        largest_difference: of logits, in standard deviations of the checkpoint's; None without that output.
        equal_pixels: share of all pixels with the same label; None without that output.
        unequal_decided: number of pixels with another label that are no ties.
        where: shape (B, C, H, W) of the input with the largest difference, or the most unequal pixels.
    """

    largest_difference: float | None = None
    equal_pixels: float | None = None
    unequal_decided: int = 0
    where: list[int] | None = None


def verification_shapes(size: tuple[int, int], static_shape: tuple[int, int, int] | None, least: int):
    """Shapes (B, H, W) to try: the size of the protocol, other batches, smaller, larger, odd and oblong sizes.

    Args:
        size: of a prepared picture, pixels.
        least: pixels of the smallest side that the network takes.
    """
    if static_shape is not None:
        return [static_shape]
    height, width = size
    small = max(height // 2 + 3, least), max(width // 3 + 5, least)
    return [(1, height, width), (2, height, width), (3, *small), (1, height + 17, max(width // 2, least))]


def compare(
    model: PreTrainedModel,
    file: Path,
    outputs: Sequence[str],
    pictures: torch.Tensor,
    shapes: Sequence[tuple[int, int, int]],
    align_corners: bool,
    bound: float,
    statistics_of_bytes: tuple[list[float], list[float]] | None = None,
) -> Comparison:
    """Runs checkpoint and file on pictures, resized to each of the shapes.

    Args:
        pictures: (N, C, H, W) as the image processor normalises them.
        bound: allowed difference of logits, in standard deviations.
        statistics_of_bytes: mean and deviation in units of 0-255, if the file takes bytes.
    """
    session, result = open_file(file, list(outputs)), Comparison()
    total = equal = 0
    worst = -1.0
    for batch, height, width in shapes:
        chosen = pictures[torch.arange(batch) % len(pictures)]
        inputs = F.interpolate(chosen, size=(height, width), mode="bilinear", antialias=True)
        fed = inputs
        if statistics_of_bytes is not None:
            mean, std = (torch.tensor(values).view(-1, 1, 1) for values in statistics_of_bytes)
            fed = (inputs * std + mean).round().clamp(0, 255)
            inputs, fed = (fed - mean) / std, fed.to(torch.uint8)
        with torch.no_grad():
            expected = model(inputs).logits
        try:
            found = session(fed.numpy())
        except Exception as error:  # each runtime has its own; a backbone may have cut its windows for one size
            raise ValueError(
                f"{file} fails for an input of {tuple(inputs.shape)} ({str(error).strip().splitlines()[0][:200]}); "
                "export it for one size, with the option static_shape"
            ) from error
        deviation, here = float(expected.std()), 0.0
        if "logits" in found:
            if found["logits"].shape != tuple(expected.shape):
                raise ValueError(
                    f"{file}: logits of shape {found['logits'].shape} for an input of {tuple(inputs.shape)}; the "
                    f"checkpoint's are {tuple(expected.shape)}"
                )
            here = float(np.abs(found["logits"] - expected.numpy()).max()) / deviation
            here = here if here == here else float("inf")  # NaN is as far away as can be
            result.largest_difference = max(here, result.largest_difference or 0.0)
        if "label_map" in found:
            for logits, labels in zip(expected, found["label_map"], strict=True):
                same, decided = same_labels(logits, labels, (height, width), align_corners, 2 * bound * deviation)
                equal, total = equal + int(same.sum()), total + same.numel()
                unequal = int((decided & ~same).sum())
                result.unequal_decided += unequal
                here = max(here, bound * unequal)
        if here > worst:
            worst, result.where = here, list(inputs.shape)
    result.equal_pixels = equal / total if total else None
    return result


def same_labels(logits: torch.Tensor, labels: np.ndarray, size: tuple[int, int], align_corners: bool, margin: float):
    """Where (H, W) the labels are those of the logits (K, h, w), and where the two best classes are further apart."""
    logits = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=align_corners)[0]
    if len(logits) == 1:
        logits = torch.cat([torch.zeros_like(logits), logits])
    best = logits.topk(2, dim=0)
    return best.indices[0] == torch.from_numpy(labels).long(), best.values[0] - best.values[1] > margin


def prepared_pictures(processor, images: Sequence) -> torch.Tensor:
    """Pictures as the processor resizes and normalises them, all of the size of the first: (N, C, H, W).

    Of a processor with windows, of the size of a window.
    """
    prepared = [resized_image(processor, image) for image in images]
    size = protocol_size(processor, images[0])
    return torch.cat([F.interpolate(x[None], size=size, mode="bilinear", antialias=True) for x in prepared])


def protocol_size(processor, image) -> tuple[int, int]:
    """(H, W) of what the model is shown of an image."""
    shown = processor(images=[image], return_tensors="pt")["pixel_values"]
    return image_size(shown)


# ------------------------------------------------------------------------------------------------- time and memory


def measured(path: str | Path, shape: tuple[int, int, int, int], takes_bytes: bool = False, repeats: int = 5) -> dict:
    """{"milliseconds": median of a call, "peak_mib": memory above that of the bare process} of a file or checkpoint.

    In a process of its own, with the runtime's own number of threads; memory is None where the system does not tell.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, str(path), shape, takes_bytes, repeats).result()


def _measure(path: str, shape: tuple[int, ...], takes_bytes: bool, repeats: int) -> dict:
    def peak() -> float | None:  # MiB; what getrusage says on Linux counts the parent process, too
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
        return int(found[1]) / 2**10 if found else None

    status = Path("/proc/self/status")
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    inputs = pixels if takes_bytes else pixels.astype(np.float32) / 64 - 2
    before = peak()
    if Path(path).is_dir():
        model, processor = load_model(path)
        model.eval()

        def call():
            with torch.no_grad():
                processor.post_process_semantic_segmentation(model(torch.from_numpy(inputs)), [shape[2:]] * shape[0])
    else:
        session = open_file(Path(path), outputs_of(Path(path))[:1])

        def call():
            session(inputs)

    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    memory = None if before is None else round(peak() - before, 1)
    return {"milliseconds": round(1000 * statistics.median(seconds), 1), "peak_mib": memory}
