"""Which parts of a picture a class rests on: a grey patch slides over it, and the class's probability falls or not.

Zeiler and Fergus, ECCV 2014, Section 4.2. Needs no gradients and no knowledge of the network; costs a prediction for
each place of the patch.

Shapes: M classes, K classes of the model; (H, W) the picture, (h, w) its logits.
"""

from collections.abc import Sequence
from itertools import islice, product

import numpy as np
import torch


SHARE = 8  # the patch's side is this part of the picture's shorter side
BATCH_SIZE = 8


@torch.no_grad()
def occlusion(
    model, pixel_values: torch.Tensor, classes: Sequence[int], masks: torch.Tensor, side: int | None = None
) -> np.ndarray:
    """How much the mean probability of each class over its mask falls where a patch covers the picture.

    The patch has the mean colour of the data and moves by half its side, the last time up to the border. The value of a
    pixel is the mean over the patches that cover it.

    Args:
        model: in evaluation mode, on the device of the pixels.
        classes: of each map, counted as the logits are.
        side: of the patch in pixels; by default an eighth of the shorter side.

    Shape:
        pixel_values: (1, C, H, W), normalised, so that 0 is the mean
        masks: (M, h, w) bool, none of them empty
        returns: (M, H, W) float32, below 0 where the class gains
    """
    height, width = pixel_values.shape[2:]
    side = min(side or max(1, min(height, width) // SHARE), height, width)
    starts = ([*range(0, length - side, max(1, side // 2)), length - side] for length in (height, width))
    places, masks = product(*starts), masks.float()
    whole = _scores(model(pixel_values).logits, classes, masks)  # (1, M)
    falls = np.zeros((len(classes), height, width), np.float32)
    count = np.zeros((height, width), np.float32)
    while some := list(islice(places, BATCH_SIZE)):
        covered = pixel_values.repeat(len(some), 1, 1, 1)
        for picture, (top, left) in zip(covered, some, strict=True):
            picture[:, top : top + side, left : left + side] = 0
        for fall, (top, left) in zip((whole - _scores(model(covered).logits, classes, masks)).cpu(), some, strict=True):
            falls[:, top : top + side, left : left + side] += fall.numpy()[:, None, None]
            count[top : top + side, left : left + side] += 1
    return falls / count


def _scores(logits: torch.Tensor, classes: Sequence[int], masks: torch.Tensor) -> torch.Tensor:
    """(B, K, h, w) -> (B, M); one logit is a sigmoid."""
    logits = logits.float()
    probabilities = (logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1))[:, list(classes)]
    return (probabilities * masks).sum((2, 3)) / masks.sum((1, 2))
