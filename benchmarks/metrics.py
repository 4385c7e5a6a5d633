"""Mean IoU against the way of evaluate (histograms of every image) and torchmetrics' JaccardIndex, if installed.

    OMP_NUM_THREADS=2 python benchmarks/metrics.py

Prints images a second, ratios and peak additional memory for 512x683 maps of 150 classes: maps of regions, as a model
predicts them, and pure noise, the worst case. Predictions are int64 tensors, as post-processing returns them, or uint8.
"""

import statistics

import numpy as np
import torch
from measure import interleave, peak_additional_memory, ratio

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


def main():
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


if __name__ == "__main__":
    main()
