"""How far a model's confidences are to be believed, and the temperature that makes them truer.

    found = calibrate(model, processor, validation_dataset)
    found.before.error, found.after.error           # expected calibration errors, of [0, 1]
    processor.temperature = found.temperature       # `segment` and all that shows confidences uses it; label maps stay
    processor.save_pretrained(folder)

Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017, arXiv 1706.04599): a model is calibrated if, of the
pixels with confidence p, a share p has the right class. The expected calibration error (their Eq. 3, 15 bins) is how
far it is from that; dividing all logits by one temperature (Section 4.2) mends most of it, and no pixel changes its
class.

Data of any size pass through in bounded memory: the bins count all valid pixels, and the temperature is fitted to a
random sample of them. What it does to the error is measured on other images than it is fitted to: each half of the
images with the temperature of the other half. That of the result is fitted to all of them.

Shapes: N pixels, K classes, M bins.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import distributed, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from .data.loaders import evaluation_dataloader
from .error_analysis import gathered
from .inference import follow, probability_blocks
from .metrics import is_distributed
from .models.image_processing_segtx import TEMPERATURES, SegmentationProcessing


BINS = 15  # of equal width, as in the paper
SAMPLED_LOGITS = 2**22  # 16 MB; of 19 classes 220,000 pixels


class Reliability:
    """Which share of the pixels of each confidence is right.

    Args:
        bins: M, each of the confidences ((m - 1) / M, m / M].

    Attributes:
        pixels, hits: (M,) all pixels, and those whose class is right.
        confidence: (M,) sum over the pixels.
    """

    def __init__(self, bins: int = BINS):
        self.pixels, self.hits = np.zeros((2, bins), np.int64)
        self.confidence = np.zeros(bins)

    def add(self, confidence: torch.Tensor, is_right: torch.Tensor) -> None:
        """Counts pixels: (N,) of [0, 1], and (N,) bool."""
        bins = len(self.pixels)
        confidence = confidence.double().cpu()
        index = (confidence * bins).ceil().long().sub_(1).clamp_(0, bins - 1)
        self.pixels += torch.bincount(index, minlength=bins).numpy()
        self.hits += torch.bincount(index[is_right.cpu()], minlength=bins).numpy()
        self.confidence += torch.bincount(index, confidence, bins).numpy()

    @property
    def error(self) -> float:
        """The expected calibration error: the mean over the pixels of how far their bin is off."""
        return float(np.abs(self.hits - self.confidence).sum() / self.pixels.sum())

    @property
    def accuracy(self) -> float:
        """The share of all pixels that is right."""
        return float(self.hits.sum() / self.pixels.sum())

    @property
    def mean_confidence(self) -> float:
        """Over all pixels."""
        return float(self.confidence.sum() / self.pixels.sum())


@dataclass
class Calibration:
    """What `calibrate` found.

    Attributes:
        before: with the processor's present temperature, of all valid pixels.
        after: with fitted temperatures, of the sample.
        temperature: that the processor should have.
    """

    before: Reliability
    after: Reliability
    temperature: float

    def as_json(self) -> dict:
        """The numbers, in JSON's types."""
        return {
            "expected_calibration_error": self.before.error,
            "with_fitted_temperature": self.after.error,
            "fitted_temperature": self.temperature,
            "mean_confidence": self.before.mean_confidence,
            "pixels": int(self.before.pixels.sum()),
        }

    def __str__(self) -> str:
        text = (
            f"calibration: mean confidence {100 * self.before.mean_confidence:.2f} %, right "
            f"{100 * self.before.accuracy:.2f} % of {self.before.pixels.sum()} pixels; expected calibration error "
            f"{100 * self.before.error:.2f} %, with the fitted temperature {self.temperature:.3f} "
            f"{100 * self.after.error:.2f} %"
        )
        if not 1.001 * TEMPERATURES[0] < self.temperature < TEMPERATURES[1] / 1.001:
            text += " (an end of its range)"
        return text


class _Sample:
    """Random pixels of all that were added, each with the same chance; at most so many logits.

    Attributes:
        share: of the pixels, that is kept.
        parts: [logits (n, K), labels (n,), numbers of their images (n,)].
    """

    def __init__(self, size: int, seed: int):
        self.size, self.share = size, 1.0
        self.parts: list[list[torch.Tensor]] = []
        self.generator = torch.Generator().manual_seed(seed)

    def add(self, logits: torch.Tensor, labels: torch.Tensor, image: int) -> None:
        """Pixels of an image: (N, K) and (N,)."""
        self.parts += self._thinned([[logits, labels, torch.full_like(labels, image)]], self.share)
        while sum(logits.numel() for logits, *_ in self.parts) > self.size:
            self.thin(self.share / 2)

    def thin(self, share: float) -> None:
        """Keeps a pixel with the smaller chance `share`, from now on and of those that are here."""
        self.parts = self._thinned(self.parts, share / self.share)
        self.share = share

    def _thinned(self, parts: list, share: float) -> list[list[torch.Tensor]]:
        thinned = []
        for part in parts:
            kept = (torch.rand(len(part[1]), generator=self.generator) < share).nonzero()[:, 0]
            thinned.append([values[kept.to(values.device)].cpu() for values in part])
        return thinned


@torch.no_grad()
def calibrate(
    model: nn.Module,
    processor,
    dataset: Dataset,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    num_workers: int = 0,
    progress: bool = True,
    sampled_logits: int = SAMPLED_LOGITS,
) -> Calibration:
    """Looks at confidences and truth, at the images' own size.

    The images should be others than those of the training, on which every model is too sure of itself. Under
    `torch.distributed` each process takes every n-th image, and all get the same result.

    Args:
        model: in evaluation mode.
        processor: of this package; stays as it is.
        dataset: as in `hf_segtx.inference.evaluate`.
        scales, flip: as in `hf_segtx.inference.segment`; a temperature suits the views that it was fitted with.
        num_workers: processes that read images, in each process.
        sampled_logits: at most, that the temperature is fitted to.

    Raises:
        ValueError: if the processor is none of this package, or no pixel is valid.
    """
    if not isinstance(processor, SegmentationProcessing):
        raise ValueError(
            f"{type(processor).__name__} has no temperature; calibration is for image processors of this package"
        )
    follow(processor, model)
    rank, processes = (distributed.get_rank(), distributed.get_world_size()) if is_distributed() else (0, 1)
    before, sample = Reliability(), _Sample(sampled_logits // processes, rank)
    loader = evaluation_dataloader(dataset, num_workers=num_workers, process_index=rank, num_processes=processes)
    shown = {"desc": "calibration", "unit": "image", "disable": not progress or rank > 0, "leave": False}
    bar = tqdm(loader, total=len(dataset) // processes, **shown)
    for number, batch in enumerate(bar):
        for image, truth in zip(batch["images"], batch["labels"], strict=True):  # none, if it cannot be read
            row = 0
            for block in probability_blocks(model, processor, image, scales, flip):
                end = row + len(block.label_map)
                labels = truth[row:end].to(block.label_map.device).long()
                valid, row = labels != processor.ignore_index, end
                confidence = block.calibrated(processor.temperature).amax(0)
                before.add(confidence[valid], (block.label_map == labels)[valid])
                sample.add(block.log_probabilities()[:, valid].T.float(), labels[valid], number * processes + rank)
    before = _total(gathered(before))
    if not before.pixels.sum():
        raise ValueError("no valid pixel in the data; a model is calibrated with labelled images")
    samples = gathered(sample)
    for each in samples:
        each.thin(min(other.share for other in samples))
    logits, labels, images = map(torch.cat, zip(*chain(*(each.parts for each in samples)), strict=True))
    numbers, after = images.unique(), Reliability()
    is_late = images >= numbers[len(numbers) // 2]
    halves = [is_late, ~is_late] if len(numbers) > 1 else [is_late]  # a single image is its own other half
    for fitted, measured in zip(halves, reversed(halves), strict=True):
        temperature = fitted_temperature(logits[fitted], labels[fitted])
        confidence, found = (logits[measured] / temperature).softmax(1).max(1)
        after.add(confidence, found == labels[measured])
    return Calibration(before, after, fitted_temperature(logits, labels))


def _total(shares: list[Reliability]) -> Reliability:
    """The sum over all processes."""
    total = Reliability()
    for share in shares:
        total.pixels, total.hits = total.pixels + share.pixels, total.hits + share.hits
        total.confidence = total.confidence + share.confidence
    return total


def fitted_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The temperature, of those that a processor may have, with the smallest mean negative log-likelihood.

    That is convex in 1 / temperature, with the derivative E[z] - z_y: the mean of the logits z under the tempered
    softmax, less that of the true class; so bisection finds it.

    Shape:
        logits: (N, K); labels: (N,)
    """
    of_label = logits.gather(1, labels[:, None]).double().mean()
    low, high = (1 / bound for bound in reversed(TEMPERATURES))
    for _ in range(24):  # 100 ** (2 ** -24): seven digits
        middle = (low * high) ** 0.5
        expected = ((logits * middle).softmax(1) * logits).sum(1).double().mean()
        if expected < of_label:
            low = middle
        else:
            high = middle
    return (low * high) ** -0.5


def save_temperature(folder: str | Path, temperature: float) -> None:
    """Puts it into a saved image processor, of which all else stays as it is."""
    file = Path(folder) / "preprocessor_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) | {"temperature": round(temperature, 4)}
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    unfinished.replace(file)
