"""Mean IoU against the way of evaluate (histograms of every image) and torchmetrics' JaccardIndex, if installed.

    OMP_NUM_THREADS=2 python benchmarks/metrics.py

Prints images a second, ratios and peak additional memory for 512x683 maps of 150 classes: maps of regions, as a model
predicts them, and pure noise, the worst case. Predictions are int64 tensors, as post-processing returns them, or uint8.
Then boundary IoU beside the way of its authors, who erode the mask of one class after the other (here by two
maximum filters; the maps show over 100 classes each, most photographs ten), and the milliseconds of all scores of
`hf_segtx.error_analysis`.
"""

import math
import statistics

import numpy as np
import torch
from measure import interleave, machine, peak_additional_memory, ratio

from hf_segtx.error_analysis import BoundaryIoU, ImageScores, SizeIoU
from hf_segtx.metrics import MeanIoU


HEIGHT, WIDTH, CLASSES, IMAGES = 512, 683, 150, 8


def regions(rng: np.random.Generator, side: int, probability: float = 1.0) -> np.ndarray:
    """(H, W) random ids in squares of `side` pixels; -1 for the squares that are left out."""
    shape = (HEIGHT // side + 1, WIDTH // side + 1)
    ids = np.where(rng.random(shape) < probability, rng.integers(0, CLASSES, shape), -1)
    return ids.repeat(side, 0).repeat(side, 1)[:HEIGHT, :WIDTH]


def label_maps(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and reference: a fifth of the prediction is wrong in patches of 8 (noise: 1) pixels, 5 % is void."""
    reference = regions(rng, side)
    wrong = regions(rng, min(side, 8), 0.2)
    prediction = np.where(wrong < 0, reference, wrong)
    return prediction, np.where(regions(rng, min(side, 16), 0.05) < 0, reference, 255).astype(np.uint8)


def histogram_mean_iou(predictions, references) -> float:
    """The algorithm of evaluate's `mean_iou`: three histograms of the valid pixels of each image, summed."""
    totals = np.zeros((3, CLASSES))
    for prediction, reference in zip(predictions, references, strict=True):
        prediction, reference = prediction.numpy(), reference.numpy()
        valid = reference != 255
        prediction, reference = prediction[valid], reference[valid]
        for total, ids in zip(totals, (prediction[prediction == reference], prediction, reference), strict=True):
            total += np.histogram(ids, bins=CLASSES, range=(0, CLASSES - 1))[0]
    common, predicted, true = totals
    with np.errstate(invalid="ignore"):
        return np.nanmean(common / (predicted + true - common))


def eroded_boundary_iou(predictions, references) -> float:
    """Boundary IoU with the masks of the classes that a map shows eroded one by one."""
    distance = max(1, round(0.02 * math.hypot(HEIGHT, WIDTH)))
    counts = torch.zeros(2, CLASSES)
    for prediction, reference in zip(predictions, references, strict=True):
        maps = (prediction.long().where(reference != 255, 255), reference.long())
        for label in torch.cat([label_map.unique() for label_map in maps]).unique().tolist():
            if label == 255:
                continue
            bands = []
            for label_map in maps:
                near = torch.nn.functional.pad((label_map != label).float(), [distance] * 4, value=1.0)[None]
                for window in ((2 * distance + 1, 1), (1, 2 * distance + 1)):
                    near = torch.nn.functional.max_pool2d(near, window, 1)
                bands.append((label_map == label) & (near[0] > 0))
            counts[0, label] += (bands[0] & bands[1]).sum()
            counts[1, label] += (bands[0] | bands[1]).sum()
    return float((counts[0] / counts[1]).nanmean())


def error_analysis(predictions, references) -> None:
    """Prints the second table."""
    metrics = [BoundaryIoU(CLASSES), SizeIoU(CLASSES), ImageScores(CLASSES)]
    seconds = interleave(
        {type(m).__name__: lambda m=m: m.add_batch(predictions=predictions, references=references) for m in metrics},
        rounds=7,
    )
    print("\nmilliseconds an image: ", end="")
    print(", ".join(f"{name} {1e3 * statistics.median(times) / IMAGES:.1f}" for name, times in seconds.items()))
    ours = BoundaryIoU(CLASSES)

    def boundary_iou():
        ours.add_batch(predictions=predictions[:1], references=references[:1])
        return ours.compute()["mean_boundary_iou"]

    variants = {"ours": boundary_iou, "one by one": lambda: eroded_boundary_iou(predictions[:1], references[:1])}
    values = [function() for function in variants.values()]
    assert np.allclose(values, values[0], rtol=1e-5), values  # sums in float32
    times = ratio(interleave(variants, 3), "ours", "one by one")
    print(f"boundary IoU is {times:.0f} times as fast as with one class after the other")


def main():
    print(machine())
    rng = np.random.default_rng(0)
    metric = MeanIoU(num_labels=CLASSES)
    print(f"{'maps':8} {'predictions':12} {'variant':14} images/s   ours is faster by   peak additional MiB")
    for kind, side in (("regions", 40), ("noise", 1)):
        for dtype in (torch.int64, torch.uint8):
            pairs = [label_maps(rng, side) for _ in range(IMAGES)]
            predictions = [torch.from_numpy(prediction).to(dtype) for prediction, _ in pairs]
            references = [torch.from_numpy(reference) for _, reference in pairs]
            variants = {
                "ours": lambda p=predictions, r=references: metric.compute(predictions=p, references=r)["mean_iou"],
                "evaluate's way": lambda p=predictions, r=references: histogram_mean_iou(p, r),
            }
            try:
                from torchmetrics import JaccardIndex
            except ImportError:
                pass
            else:
                jaccard = JaccardIndex("multiclass", num_classes=CLASSES, ignore_index=255)

                def torchmetrics_iou(p=predictions, r=references, jaccard=jaccard):
                    jaccard.reset()
                    for prediction, reference in zip(p, r, strict=True):
                        jaccard.update(prediction, reference)
                    return jaccard.compute()

                variants["torchmetrics"] = torchmetrics_iou
            values = [float(function()) for function in variants.values()]
            assert np.allclose(values, values[0], rtol=1e-5), values  # torchmetrics divides in float32
            seconds = interleave(variants, rounds=7)
            for name, function in variants.items():
                rate = IMAGES / statistics.median(seconds[name])
                memory = peak_additional_memory(function) / 2**20
                times = ratio(seconds, "ours", name)
                print(f"{kind:8} {str(dtype)[6:]:12} {name:14} {rate:8.0f} {times:15.1f}x {memory:15.1f}")
    pairs = [label_maps(rng, 40) for _ in range(IMAGES)]
    error_analysis(*([torch.from_numpy(label_map) for label_map in maps] for maps in zip(*pairs, strict=True)))


if __name__ == "__main__":
    main()
