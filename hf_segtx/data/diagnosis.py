"""Checks of a data set, in words, before anything is trained on it: what the command `segtx check` prints.

    SegmentationDataset -> examine (every file, in processes) -> Report -> diagnose -> findings with their cures

`checks.check_data` is the short form that runs before every training: it refuses what cannot be trained on.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..visualization.label_maps import FAINT, GAP, PAPER, TEXT_SIZE, legend, overlay, text_font
from .annotations import Overlap, describe_overlap, overlap_of
from .checks import NUMBERED_ANEW, masks_of_255, numbered_anew, palette_conflict, shown_colors
from .dataset import SegmentationDataset
from .labels import Labels, flip_permutation


HASH_SIDE = 16  # an image's fingerprint says of 16 x 16 places whether it gets brighter to the right
# Bits of 256 in which two images may differ and be called the same. Measured on 102 photographs: saved again at half
# the size 13 at most, as JPEG of quality 40 15, as a thumbnail of 160x120 14; different ones 19 and more (median 121).
SAME_IMAGE = 18
ALIGNED_SAMPLES = 32  # of a split, whose masks are held against their images
LARGEST_SHIFT = 32  # pixels that a mask is moved by in each direction to see where it fits best
# Masks are called shifted or mirrored if they fit so many times as well there, and so well (see `alignment`). Measured,
# 3 pixels or more away: CamVid, ADE20K, Cityscapes, LIP and VOC fit less well than where they are, three images of
# LoveDA 1.5 times as well, but only by 0.27; CamVid's masks moved by 8 pixels 1.7 times and more, by 0.7 and more.
BETTER = 1.5
FITS = 0.35
RARE = 0.0001  # share of the pixels below which a class is called rare


@dataclass
class Sample:
    """What there is to say about one image and its mask.

    Args:
        error: what reading or mapping it says, or None.
        size: (H, W) of the image, None if it cannot be read.
        values, counts: (n,) the raw ids, or colours as 0xRRGGBB, in the mask and the pixels of each.
        colored: whether the mask holds colours.
        pixels: (num_ids + 1,) of each train id, the last ignored; zeros if the mask breaks the contract.
        shown: the colour in the mask's palette of each value in it; empty without a palette.
        moments: (2, C) mean and mean square of the image over its pixels, in units of 0-1.
        fingerprint: (256,) bool; None for an image without contrast.
        shifts, mirrored: what `alignment` returns; None if not asked for, or without borders.
    """

    name: str
    pixels: np.ndarray
    error: str | None = None
    size: tuple[int, int] | None = None
    values: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    colored: bool = False
    shown: dict[int, tuple[int, ...]] = field(default_factory=dict)
    moments: np.ndarray | None = None
    fingerprint: np.ndarray | None = None
    shifts: np.ndarray | None = None
    mirrored: np.ndarray | None = None
    overlap: Overlap | None = None


class Finding(NamedTuple):
    """level: "error" (training would fail or learn nonsense), "warning" or "note"."""

    level: str
    text: str


class _Examined(Dataset):
    def __init__(self, dataset: SegmentationDataset):
        self.dataset = dataset
        self.aligned = set(np.linspace(0, len(dataset) - 1, ALIGNED_SAMPLES).round().astype(int).tolist())

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        torch.set_num_threads(1)
        return examine_sample(self.dataset, index, index in self.aligned)


def _as_it_is(sample: Sample) -> Sample:
    return sample


def examine(dataset: SegmentationDataset, split: str, num_workers: int = 0, progress: bool = True) -> "Report":
    """Reads every image and mask once, in `num_workers` processes."""
    loader = DataLoader(_Examined(dataset), batch_size=None, num_workers=num_workers, collate_fn=_as_it_is)
    samples = list(tqdm(loader, f"Reading {split}", disable=not progress))
    return Report(split, dataset.labels, samples)


def examine_sample(dataset: SegmentationDataset, index: int, align: bool = False) -> Sample:
    labels = dataset.labels
    sample = Sample(dataset.names(index)[1], np.zeros(labels.num_ids + 1, np.int64))
    try:
        files = dataset.files(index)
        read_image, mask, name = dataset.open_raw(index, files)
        sample.overlap = getattr(files[1], "overlap", None)
        raw = labels.ids_or_colors(mask)
        sample.colored = raw.ndim == 3
        if sample.colored:
            raw = raw[..., 0].astype(np.int64) << 16 | raw[..., 1].astype(np.int64) << 8 | raw[..., 2]
        sample.values, sample.counts = _unique(raw)
        sample.size, sample.moments, gray = _statistics(read_image())
        sample.fingerprint = fingerprint(gray)
        sample.shown = shown_colors(files[1], mask)
        if conflict := palette_conflict(dataset, index, sample.shown):
            raise ValueError(conflict)
        train = labels.map(mask, name)
        train = np.where(train == labels.ignore_index, labels.num_ids, train)
        sample.pixels = np.bincount(train.ravel(), minlength=labels.num_ids + 1)
        if align:
            sample.shifts, sample.mirrored = alignment(np.asarray(gray, np.float32), train)
    except ValueError as error:
        sample.error = str(error)
    return sample


def _statistics(image: Image.Image | torch.Tensor) -> tuple[tuple[int, int], np.ndarray, Image.Image]:
    """Size, mean and mean square of each channel, and the image in grey."""
    if isinstance(image, torch.Tensor):
        pixels = image.flatten(1).double() / 255
        moments = torch.stack([pixels.mean(1), pixels.square().mean(1)]).numpy()
        return tuple(image.shape[1:]), moments, Image.fromarray(image.float().mean(0).numpy())
    histogram = np.array(image.histogram()).reshape(-1, 256) / (image.height * image.width)  # faster than the pixels
    levels = np.arange(256) / 255
    moments = np.stack([histogram @ levels, histogram @ levels**2])
    return (image.height, image.width), moments, image.convert("L")


def _unique(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if raw.dtype in (np.uint8, np.uint16, bool):  # counting is faster than sorting
        counts = np.bincount(raw.ravel().astype(np.int64))
        values = np.flatnonzero(counts)
        return values, counts[values]
    return np.unique(raw, return_counts=True)


def fingerprint(gray: Image.Image) -> np.ndarray | None:
    """Difference hash of a grey image of 0-255: (256,) bool; None if there is nothing to see."""
    small = np.asarray(gray.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX), np.float32)
    return None if small.std() < 2 else (small[:, 1:] > small[:, :-1]).ravel()


def alignment(gray: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """How much the image changes at the borders of the mask, if the mask is moved or mirrored.

    Shape:
        gray, train: (H, W)
        returns: (65, 65) for shifts of the mask by -32 .. 32 pixels, down and to the right, and (4,) for the mask as it
            is, mirrored left to right, upside down, and both; in units of the deviation over the image, 0 its mean.
            None without borders.
    """
    down, right = np.abs(np.diff(gray, axis=0))[:, 1:], np.abs(np.diff(gray, axis=1))[1:]
    changes = down + right
    changes = np.minimum(changes, np.quantile(changes[::2, ::2], 0.98))  # a few glaring edges are not everything
    borders = (train[1:, 1:] != train[:-1, 1:]) | (train[1:, 1:] != train[1:, :-1])
    if borders.sum() < 50 or changes.std() < 1e-3 * (1 + gray.max()):
        return None, None
    changes = (changes - changes.mean()) / changes.std()
    views = (borders, borders[:, ::-1], borders[::-1], borders[::-1, ::-1])
    mirrored = np.array([changes[view].mean() for view in views])
    middle = tuple(slice(max(0, (side - 768) // 2), (side + 768) // 2) for side in borders.shape)  # is enough, and fast
    part, spectrum = borders[middle], np.fft.rfft2(changes[middle])
    fits = np.fft.irfft2(spectrum * np.conj(np.fft.rfft2(part)), part.shape) / max(1, part.sum())
    steps = np.arange(-LARGEST_SHIFT, LARGEST_SHIFT + 1)
    return fits[np.ix_(steps % part.shape[0], steps % part.shape[1])].astype(np.float32), mirrored


class Report:
    """What the samples of a split say together."""

    def __init__(self, split: str, labels: Labels, samples: list[Sample]):
        self.split = split
        self.labels = labels
        self.samples = samples
        pixels = np.stack([sample.pixels for sample in samples]) if samples else np.zeros((0, labels.num_ids + 1), int)
        self.class_pixels = pixels.sum(0)  # (num_ids + 1,), the last ignored
        self.class_images = (pixels > 0).sum(0)
        self.sizes = Counter(sample.size for sample in samples if sample.size)
        self.raw_pixels: Counter = Counter()  # raw id or colour -> pixels
        self.raw_images: Counter = Counter()
        self.colored = sum(sample.colored for sample in samples)
        self.masks = sum(len(sample.values) > 0 for sample in samples)  # that can be read
        self.has_colors = 2 * self.colored > self.masks  # the histogram is of masks of the more frequent kind
        for sample in samples:
            if sample.colored != self.has_colors:
                continue
            for value, count in zip(sample.values.tolist(), sample.counts.tolist()):
                self.raw_pixels[value] += count
                self.raw_images[value] += 1
        areas = [sample.size[0] * sample.size[1] for sample in samples if sample.size]
        moments = [sample.moments for sample in samples if sample.size]
        self.mean = self.std = None
        if areas:
            mean, square = np.average(moments, axis=0, weights=areas)
            self.mean, self.std = mean.tolist(), np.sqrt(np.maximum(square - mean**2, 0)).tolist()

    def train_id(self, value: int) -> int | None:
        """Of a raw id or colour; None if the contract does not know it."""
        if self.has_colors:
            return (self.labels.color_to_train or {}).get((value >> 16, value >> 8 & 255, value & 255))
        return self.labels.mapping.get(value)

    @property
    def unknown(self) -> list[int]:
        """Raw ids or colours outside the contract, the most frequent first."""
        return [value for value, _ in self.raw_pixels.most_common() if self.train_id(value) is None]


def diagnose(reports: list[Report]) -> list[Finding]:
    """What to do something about, the worst first."""
    findings = [finding for report in reports for finding in _diagnose_masks(report)]
    for report in reports:
        findings += _diagnose_files(report) + _diagnose_alignment(report) + _diagnose_classes(report)
        overlap, count = overlap_of(report.samples)
        if count:
            text = f"of the {report.split} masks {describe_overlap(overlap, count)}"
            findings.append(Finding("warning" if overlap.other_class or overlap.filled else "note", text))
    if len(reports) == 2:
        findings += _diagnose_pair(*reports)
    if permutation := flip_permutation(reports[0].labels.id2label):
        names = reports[0].labels.names
        pairs = [f"{names[a]} and {names[b]}" for a, b in enumerate(permutation) if a < b]
        findings.append(Finding("note", f"where training mirrors an image, these change places: {_some(pairs, 5)}"))
    return sorted(findings, key=lambda finding: ("error", "warning", "note").index(finding.level))


def _some(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _diagnose_masks(report: Report) -> list[Finding]:
    """Values in the masks that the contract does not know, and what they probably are."""
    labels, split, total = report.labels, report.split, sum(report.raw_pixels.values())
    unknown = report.unknown
    known = sorted(raw for raw, train_id in labels.mapping.items() if train_id != labels.ignore_index)
    findings = []
    if 0 < report.colored < report.masks:
        text = f"{report.colored} of {report.masks} {split} masks hold colours, the others ids: make them alike"
        findings.append(Finding("warning", text))
    if report.has_colors and labels.color_to_train is None:
        text = (
            f"{report.colored} of {report.masks} {split} masks are RGB pictures with {len(report.raw_pixels)} "
            'colours, but the classes have none: give each class its "color" in classes.json, or save masks of ids'
        )
        return [*findings, Finding("error", text)]
    if unknown:
        share = sum(report.raw_pixels[value] for value in unknown) / total
        files = [sample.name for sample in report.samples if np.isin(sample.values, unknown).any()]
        values = _some([_value(value, report) for value in unknown], 8)
        what = (
            f"{share:.2%} of the pixels of {split} have {'colours' if report.has_colors else 'values'} outside the "
            f"classes ({values}; in {_some(files)}): "
        )
        if not report.has_colors and labels.raw_to_train is None and unknown == [labels.num_labels]:
            what += (
                f"ids seem shifted by one: {known[0]} .. {known[-1]} are expected and {unknown[0]} occurs. If 0 means "
                "unlabelled, use do_reduce_labels; else a class name is missing"
            )
        elif len(unknown) > 8 and share < 0.2:
            what += (
                "many rare values between the classes come from smoothed edges or JPEG; export the masks again as PNG, "
                "without anti-aliasing, resized with nearest neighbour only"
            )
        else:
            what += "correct the masks, or list the values in classes.json, with ignore: true where they do not count"
        findings.append(Finding("error", what))
    elif not report.has_colors and set(report.raw_pixels) == {0, 255} and labels.mapping[255] == labels.ignore_index:
        if labels.mapping[0] != labels.ignore_index:  # else every pixel is ignored, which is said as such
            text = (
                f"all {split} masks hold 0 and 255 only, and 255 means ignored, so only "
                f"{labels.id2label[labels.mapping[0]]!r} could be learned: name two classes (255 is then the second), "
                'or list {"id": 255, "name": ...} in classes.json'
            )
            findings.append(Finding("error", text))
    elif count := masks_of_255(labels, [set(s.values.tolist()) for s in report.samples if not s.colored]):
        text = (
            f"{count} of {report.masks} {split} masks hold 0 and 255 only, the others no 255, which is ignored: if it "
            f"means {labels.names[-1]!r} there, write one value for it in all masks"
        )
        findings.append(Finding("warning", text))
    if conflict := numbered_anew(sample.shown for sample in report.samples):
        findings.append(Finding("error", f"the {split} masks: {conflict}, {NUMBERED_ANEW}"))
    zero, last = report.raw_pixels[0] / max(1, total), max(known)
    if (
        not report.has_colors
        and labels.mapping.get(0) == labels.ignore_index
        and zero > 0.2
        and last not in report.raw_pixels
    ):
        text = (
            f"{zero:.0%} of the pixels of {split} are 0, which is ignored, and {last}, the last class, never occurs: "
            "if ids count from 0 here, every class is shifted by one; omit do_reduce_labels"
        )
        findings.append(Finding("warning", text))
    return findings


def _value(value: int, report: Report) -> str:
    return f"#{value:06x}" if report.has_colors else str(value)


def _diagnose_files(report: Report) -> list[Finding]:
    findings = []
    unknown = set(report.unknown)
    broken = [s.error for s in report.samples if s.error and not unknown.intersection(s.values.tolist())]
    if broken:
        text = f"{len(broken)} of {len(report.samples)} {report.split} samples cannot be used: "
        findings.append(Finding("error", text + "; ".join(broken[:5]) + ("; ..." if len(broken) > 5 else "")))
    if len(report.sizes) > 1:
        heights, widths = zip(*report.sizes)
        text = (
            f"the {report.split} images have {len(report.sizes)} sizes, {min(heights)} .. {max(heights)} pixels high "
            f"and {min(widths)} .. {max(widths)} wide"
        )
        findings.append(Finding("note", text))
    return findings


def _diagnose_alignment(report: Report) -> list[Finding]:
    """Masks of the whole split that lie beside what they show."""

    def better(fits: np.ndarray, here: int) -> int | None:
        """The column of (N, K) that is the best one, if that is clear: by four standard errors."""
        best = int(fits.mean(0).argmax())
        gains = fits[:, best] - fits[:, here]
        is_clear = gains.mean() > 4 * gains.std(ddof=1) / math.sqrt(len(gains))
        is_more = fits[:, best].mean() > max(FITS, BETTER * fits[:, here].mean())
        return best if is_clear and is_more else None

    samples = [sample for sample in report.samples if sample.shifts is not None]
    if len(samples) < 5:
        return []
    shifts, mirrors = (np.stack(fits) for fits in zip(*((s.shifts.ravel(), s.mirrored) for s in samples)))
    mirrored = better(mirrors, 0)
    if mirrored and mirrors.mean(0).max() > shifts.mean(0).max():
        how = ("", "mirrored left to right", "upside down", "turned by 180 degrees")[mirrored]
        text = f"the {report.split} masks look {how}: their borders fit the images much better so; turn the masks"
        return [Finding("error", text)]
    count = 2 * LARGEST_SHIFT + 1
    place = better(shifts, count * count // 2)
    if place is None:
        return []
    down, right = LARGEST_SHIFT - place // count, LARGEST_SHIFT - place % count
    if max(abs(down), abs(right)) < 3:  # borders that are drawn a little outside or inside
        return []
    text = (
        f"the {report.split} masks look shifted against their images, by {abs(down)} pixels "
        f"{'down' if down > 0 else 'up'} and {abs(right)} to the {'right' if right > 0 else 'left'}: export them again "
        "at the size of the images, without a margin or a crop"
    )
    return [Finding("error", text)]


def _diagnose_classes(report: Report) -> list[Finding]:
    counts, names = report.class_pixels[:-1], list(report.labels.id2label.values())
    total, ignored = report.class_pixels.sum(), report.class_pixels[-1]
    if total == 0:
        return []
    findings = []
    if ignored == total:
        findings.append(
            Finding("error", f"every pixel of {report.split} is ignored: check the ids in the classes' file")
        )
    elif ignored > total / 2:
        findings.append(Finding("warning", f"{ignored / total:.0%} of the pixels of {report.split} are ignored"))
    if absent := [name for name, count in zip(names, counts) if count == 0]:
        text = f"{len(absent)} of {len(names)} classes are in no {report.split} mask: {_some(absent, 10)}; " + (
            "they cannot be learned" if report.split == "training" else "their IoU is not defined, and left out"
        )
        findings.append(Finding("warning", text))
    if rare := [f"{name} ({count / total:.4%})" for name, count in zip(names, counts) if 0 < count < RARE * total]:
        findings.append(Finding("note", f"{len(rare)} classes are rare in {report.split}: {_some(rare, 5)}"))
    empty = [s.name for s in report.samples if s.error is None and s.pixels[:-1].sum() == 0]
    if empty and ignored < total:
        text = f"{len(empty)} {report.split} masks are ignored whole: {_some(empty)}; remove them to save time"
        findings.append(Finding("note", text))
    return findings


def _diagnose_pair(training: Report, validation: Report) -> list[Finding]:
    findings = []
    pairs = same_images(training.samples, validation.samples)
    if pairs:
        shown = [f"{training.samples[i].name} and {validation.samples[j].name}" for i, j in pairs[:3]]
        count = len({j for _, j in pairs})
        text = (
            f"{count} of {len(validation.samples)} validation images are in the training data, too, perhaps resized or "
            f"saved again, so the score will be too good: {'; '.join(shown)}; remove them from one of the two"
        )
        findings.append(Finding("warning", text))
    names = list(training.labels.id2label.values())
    learned, scored = training.class_pixels[:-1] > 0, validation.class_pixels[:-1] > 0
    if missing := [name for name, here, there in zip(names, learned, scored) if there and not here]:
        text = (
            f"validation has classes that training does not show: {_some(missing, 10)}; split the data in another way"
        )
        findings.append(Finding("warning", text))
    return findings


def same_images(first: list[Sample], second: list[Sample]) -> list[tuple[int, int]]:
    """Indices (of `first`, of `second`) of pictures that are the same up to size, quality and small changes.

    Time and memory: one matrix product; a block of 1024 by the number of samples in `first`, of float32.
    """
    places = [[i for i, sample in enumerate(samples) if sample.fingerprint is not None] for samples in (first, second)]
    if not all(places):
        return []
    signs = [
        np.stack([samples[i].fingerprint for i in indices]).astype(np.float32) * 2 - 1
        for samples, indices in zip((first, second), places)
    ]
    pairs = []
    for start in range(0, len(signs[1]), 1024):
        agreement = signs[0] @ signs[1][start : start + 1024].T  # bits that agree minus bits that differ
        for i, j in zip(*np.nonzero(agreement >= HASH_SIDE**2 - 2 * SAME_IMAGE)):
            pairs.append((places[0][i], places[1][start + j]))
    return pairs


def tables(reports: list[Report]) -> str:
    """Histogram of the classes and of the raw values, with the share of the pixels and the number of images of each."""
    labels = reports[0].labels
    names = [*labels.id2label.values(), "(ignored)"]
    width = max(len(name) for name in names)
    head = "".join(f"  {report.split + ', pixels':>20} {'images':>7}" for report in reports)
    lines = [f"{'id':>5} {'class':{width}}{head}"]
    for train_id, name in enumerate(names):
        cells = (_cell(r.class_pixels[train_id], r.class_pixels.sum(), r.class_images[train_id]) for r in reports)
        number = train_id if train_id < labels.num_ids else labels.ignore_index
        lines.append(f"{number:>5} {name:{width}}{''.join(cells)}")
    lines += ["", f"{'value':>9} {'becomes':>9}{head}"]
    values = sorted(set().union(*(report.raw_pixels for report in reports)))
    values = sorted(values, key=lambda value: -sum(report.raw_pixels[value] for report in reports))[:300]
    for value in sorted(values):
        train_id = reports[0].train_id(value)
        becomes = {None: "unknown", labels.ignore_index: "ignored"}.get(train_id, train_id)
        cells = (_cell(r.raw_pixels[value], sum(r.raw_pixels.values()), r.raw_images[value]) for r in reports)
        lines.append(f"{_value(value, reports[0]):>9} {becomes:>9}{''.join(cells)}")
    lines.append("")
    for report in reports:
        if report.mean is not None:
            mean, std = (", ".join(f"{value:.4f}" for value in values) for values in (report.mean, report.std))
            (height, wide), count = report.sizes.most_common(1)[0]
            lines.append(
                f"{report.split}: {len(report.samples)} images, {count} of them {wide}x{height}; mean {mean}; std {std}"
            )
    return "\n".join(lines)


def _cell(pixels: int, total: int, images: int) -> str:
    return f"  {pixels / max(1, total):>19.3%}  {images:>7}"


def as_json(reports: list[Report], findings: list[Finding]) -> dict:
    """All numbers, for a file."""
    return {
        "findings": [finding._asdict() for finding in findings],
        "splits": {
            report.split: {
                "images": len(report.samples),
                "sizes": {f"{width}x{height}": count for (height, width), count in report.sizes.most_common()},
                "mean": report.mean,
                "std": report.std,
                "classes": [
                    {
                        "id": i,
                        "name": name,
                        "pixels": int(report.class_pixels[i]),
                        "images": int(report.class_images[i]),
                    }
                    for i, name in enumerate(report.labels.id2label.values())
                ],
                "ignored_pixels": int(report.class_pixels[-1]),
                "values": {
                    _value(value, report): {"pixels": report.raw_pixels[value], "images": report.raw_images[value]}
                    for value in sorted(report.raw_pixels)
                },
                "errors": [sample.error for sample in report.samples if sample.error],
            }
            for report in reports
        },
    }


def _show_all(shows: np.ndarray, count: int) -> list[int]:
    """`count` rows of (N, K) that together have as many columns as possible; when they have all, evenly spread ones."""
    chosen, missing = [], np.ones(shows.shape[1], bool)
    while len(chosen) < count and (gains := (shows & missing).sum(1)).any():
        chosen.append(int(gains.argmax()))
        missing &= ~shows[chosen[-1]]
    others = [i for i in range(len(shows)) if i not in chosen]
    places = np.linspace(0, len(others) - 1, min(count - len(chosen), len(others))).round().astype(int)
    return sorted([*chosen, *(others[place] for place in places)])


def overlays(dataset: SegmentationDataset, report: Report, count: int = 16, width: int = 320) -> Image.Image | None:
    """`count` images under their masks, four a row, chosen so that they show as many classes as possible.

    Returns:
        None if not one sample is in order.
    """
    good = [i for i, sample in enumerate(report.samples) if sample.error is None]
    if not good:
        return None
    chosen = [good[i] for i in _show_all(np.stack([report.samples[i].pixels[:-1] > 0 for i in good]), count)]
    labels, names = report.labels, list(report.labels.id2label.values())
    palette = labels.colors
    cells, present = [], set()
    for index in chosen:
        item = dataset[index]
        image = item["image"]
        if isinstance(image, torch.Tensor):  # deep, or of many channels: the first one
            image = Image.fromarray(image[0].clamp(0, 255).byte().numpy())
        picture = overlay(image.convert("RGB"), item["label"], palette, 0.55, labels.ignore_index)
        cells.append(picture.resize((width, max(1, round(picture.height * width / picture.width)))))
        present.update(np.flatnonzero(report.samples[index].pixels[:-1]).tolist())
    rows = [cells[start : start + 4] for start in range(0, len(cells), 4)]
    title = round(1.8 * TEXT_SIZE)
    total_width = GAP + len(rows[0]) * (width + GAP)
    key = legend(names, palette, sorted(present), total_width)
    height = sum(max(cell.height for cell in row) + title for row in rows) + key.height + GAP
    sheet = Image.new("RGB", (total_width, height), PAPER)
    draw, font = ImageDraw.Draw(sheet), text_font(TEXT_SIZE - 2)
    y = GAP // 2
    for row_number, row in enumerate(rows):
        for column, cell in enumerate(row):
            x = GAP + column * (width + GAP)
            name = report.samples[chosen[4 * row_number + column]].name.rsplit("/", 1)[-1]
            draw.text((x, y + title / 2), name[-42:], fill=FAINT, font=font, anchor="lm")
            sheet.paste(cell, (x, y + title))
        y += max(cell.height for cell in row) + title
    sheet.paste(key, (0, y + GAP // 2))
    return sheet
