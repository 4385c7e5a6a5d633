"""Losses of bilinearly upsampled logits, none of which holds the full-size logits `(B, K, H, W)`; sums of them by name.

    model.loss_function = parse_loss("ce + 0.5*focal(gamma=3)", label_smoothing=0.1)

| name     | what it is                                                                         | mean over            |
|----------|------------------------------------------------------------------------------------|----------------------|
| ce       | cross-entropy with class weights and label smoothing                               | valid pixels         |
| ohem     | cross-entropy of hard pixels (online hard example mining, arXiv 1604.03540)        | hard pixels          |
| focal    | -(1 - p) ** gamma * log(p), p the label's probability (arXiv 1708.02002, Eq. 4)    | valid pixels         |
| boundary | cross-entropy with a larger weight beside other classes                            | valid pixels         |
| dice     | 1 - 2 sum(p y) / (sum(p) + sum(y)), y whether it is the label (arXiv 1606.04797)   | classes in the batch |
| lovasz   | Lovasz-softmax, the convex extension of 1 - IoU (arXiv 1705.08790)                 | classes in the batch |
| rmi      | region mutual information with binary cross-entropy (arXiv 1910.12037)             | valid pixels, images |

Ignored pixels take no part in any; a batch without valid pixels gives 0 and a gradient of 0. One class (K = 1) is a
sigmoid, that is two classes with logits 0 and x, in all losses: Dice and Lovasz count the background as well, as mean
IoU does here; in RMI each class is a sigmoid of its own, and there is the one class alone. The means over pixels are
weighted with the class weights, as in `F.cross_entropy`; a step of several micro-batches, weighted with their shares of
that sum, is exactly one large batch for ce, focal and boundary. The other four look at all pixels of a batch or of an
image together, so there each micro-batch of each process counts as a batch of its own.

How the memory is saved: the pixel losses are functions of one map, the log-probability of the labels (B, H, W), whose
backward pass computes the probabilities a second time, block by block (see models/upsampling.py). Dice, Lovasz and RMI
take the classes one at a time, the first two only those in the batch.

Letters: B images, K classes, (h, w) size of the logits, (H, W) of the labels, N cells of a block, S pixels of a cell.
"""

import math
import re
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from transformers import PreTrainedConfig

from .models.upsampling import check_label_maps, check_labels, pixel_blocks, two_classes, upsampled_cross_entropy


def parse_loss(
    text: str = "ce",
    *,
    class_weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    auxiliary_weights: Sequence[float] | None = None,
    mean_over: str = "valid",
) -> Callable[..., torch.Tensor]:
    """A weighted sum of losses, such as "ce + 0.5*lovasz", to be set as `model.loss_function`.

    The sum is that of the main logits; auxiliary heads are trained with cross-entropy, as in the papers.

    Args:
        text: names from the table above with their factors, and with settings of their functions where those have
            some: "ohem(threshold=0.7, min_kept=1e5)", "focal(gamma=3)", "boundary(weight=2, width=5)".
        class_weights: (K,) (two if K = 1), of the pixels in ce, ohem, focal, boundary.
        label_smoothing: share of the target spread over all classes in ce, ohem and the auxiliary heads, in [0, 1].
        auxiliary_weights: factor of each auxiliary head's loss; default: the configuration's for all.
        mean_over: "valid" pixels, or "all" of a batch, of which ignored ones count as 0 (mmsegmentation's default);
            for cross-entropy without `class_weights`.

    Returns:
        a function (logits (B, K, h, w), labels (B, H, W), config, auxiliary_logits=()) -> scalar.

    Raises:
        ValueError: if the text is not such a sum, a name is not known, or a setting has no effect.
    """
    terms = []
    for term in map(str.strip, text.split("+")):
        match = re.fullmatch(r"(?:(\d+\.?\d*(?:e-?\d+)?)\s*\*\s*)?(\w+)(?:\((.*)\))?", term)
        if match is None or match[2] not in LOSSES:
            raise ValueError(
                f"{term!r} in the loss {text!r} is not known; write a sum of {', '.join(LOSSES)}, each with a factor "
                "if it is not 1, such as 'ce + 0.5*lovasz'"
            )
        settings, known = {}, SETTINGS.get(match[2], {})
        for setting in filter(None, (match[3] or "").split(",")):
            name, _, value = (part.strip() for part in setting.partition("="))
            if name not in known or not re.fullmatch(r"\d+\.?\d*(e-?\d+)?", value):
                takes = " and ".join(f"{name}=NUMBER" for name in known) or "no settings"
                raise ValueError(f"{setting.strip()!r} in the loss {text!r}: {match[2]} takes {takes}")
            kind, least, most = known[name]
            if name in settings or not least <= float(value) <= most or float(value) != kind(float(value)):
                number = "a whole number" if kind is int else "a number"
                raise ValueError(f"{term!r} in the loss {text!r}: {name} is {number} of {least} .. {most}, given once")
            settings[name] = kind(float(value))
        if float(match[1] or 1) > 1e6:
            raise ValueError(f"{term!r} in the loss {text!r}: a factor is at most 1e6; give a smaller one")
        if float(match[1] or 1) == 0:
            raise ValueError(f"{term!r} in the loss {text!r} would do nothing; omit it, or give a factor above 0")
        terms.append((float(match[1] or 1), match[2], settings))
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; it is a share of the target, between 0 and 1")
    if label_smoothing and not any(name in ("ce", "ohem") for _, name, _ in terms):
        raise ValueError(f"the loss {text!r} takes no label_smoothing, only ce and ohem do; add one or set it to 0")
    if class_weights is not None and not bool(((class_weights >= 0) & class_weights.isfinite()).all()):
        raise ValueError(f"class_weights are {class_weights.tolist()}; give finite numbers, at least 0, one per class")
    if mean_over not in ("valid", "all"):
        raise ValueError(f"mean_over is {mean_over!r}; give 'valid' or 'all' (pixels)")
    if mean_over == "all" and (class_weights is not None or any(name != "ce" for _, name, _ in terms)):
        raise ValueError(f"the mean of the loss over all pixels is for ce without weights of classes, not {text!r}")
    smoothing = {"label_smoothing": label_smoothing, "class_weights": class_weights}
    weighted = {"class_weights": class_weights}
    of_all = {"ce": smoothing, "ohem": smoothing, "focal": weighted, "boundary": weighted}
    main = [(factor, LOSSES[name], of_all.get(name, {}) | settings) for factor, name, settings in terms]
    rest = {"auxiliary": smoothing, "auxiliary_weights": auxiliary_weights, "mean_over": mean_over}
    return partial(_sum_of_losses, main=main, **rest)


def _sum_of_losses(
    logits: torch.Tensor,
    labels: torch.Tensor,
    config: PreTrainedConfig,
    auxiliary_logits: Sequence[torch.Tensor] = (),
    *,
    main: list[tuple[float, Callable, dict]],
    auxiliary: dict,
    auxiliary_weights: Sequence[float] | None,
    mean_over: str,
) -> torch.Tensor:
    if auxiliary_weights is None:
        auxiliary_weights = [getattr(config, "auxiliary_loss_weight", 0.4)] * len(auxiliary_logits)
    if len(auxiliary_weights) != len(auxiliary_logits):
        raise ValueError(f"{len(auxiliary_weights)} auxiliary weights for {len(auxiliary_logits)} heads; give one each")
    resize = {
        "ignore_index": config.semantic_loss_ignore_index,
        "align_corners": getattr(config, "align_corners", False),
    }
    loss = sum(factor * function(logits, labels, **resize, **settings) for factor, function, settings in main)
    for factor, head_logits in zip(auxiliary_weights, auxiliary_logits, strict=True):
        loss = loss + factor * upsampled_cross_entropy(head_logits, labels, **resize, **auxiliary)
    if mean_over == "all":
        loss = loss * (labels != config.semantic_loss_ignore_index).float().mean()
    return loss


def ohem_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    threshold: float = 0.9,
    min_kept: int = 131072,
    class_weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = 255,
    align_corners: bool = False,
) -> torch.Tensor:
    """Cross-entropy of hard pixels alone: online hard example mining (arXiv 1604.03540) as HRNet-OCR does it.

    Hard are pixels whose label has a probability below `threshold`, but at least the `min_kept` hardest of the batch.

    Args:
        threshold: probability, in (0, 1]; the default is HRNet-OCR's
        min_kept: pixels of a micro-batch; likewise
        class_weights, label_smoothing, ignore_index, align_corners: as in `upsampled_cross_entropy`

    Shape:
        logits: (B, K, h, w)
        labels: (B, H, W), class ids or the ignore index
    """
    resize = {"ignore_index": ignore_index, "align_corners": align_corners}
    probability = label_log_probability(logits.detach(), labels, **resize).exp()
    ignored = labels == ignore_index
    hardest = probability.masked_fill(ignored, torch.inf).flatten().sort().values
    # As in the authors' code: the probability of the pixel after the `min_kept` hardest, if there are so many.
    last = (ignored.numel() - ignored.sum() - 1).clamp(min=0, max=min_kept)
    bound = hardest.index_select(0, last.view(1)).clamp(min=threshold)
    hard = labels.masked_fill(probability >= bound, ignore_index)
    return upsampled_cross_entropy(logits, hard, class_weights=class_weights, label_smoothing=label_smoothing, **resize)


def focal_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    gamma: float = 2.0,
    class_weights: torch.Tensor | None = None,
    ignore_index: int = 255,
    align_corners: bool = False,
) -> torch.Tensor:
    """Mean of (1 - p) ** gamma * -log(p) over valid pixels, p the label's probability (arXiv 1708.02002, Eq. 4, 5).

    Args:
        gamma: how fast easy pixels lose weight; 0 is cross-entropy

    Shape:
        logits: (B, K, h, w)
        labels: (B, H, W), class ids or the ignore index
        class_weights: (K,)
    """
    log_probability = label_log_probability(logits, labels, ignore_index=ignore_index, align_corners=align_corners)
    wrong = (-torch.expm1(log_probability)).clamp(min=torch.finfo(log_probability.dtype).tiny)  # 0 ** (gamma - 1) = inf
    loss = wrong.pow(gamma) * -log_probability
    return _pixel_mean(loss, labels, logits.shape[1], class_weights, ignore_index)


def boundary_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    weight: float = 5.0,
    width: int = 3,
    class_weights: torch.Tensor | None = None,
    ignore_index: int = 255,
    align_corners: bool = False,
) -> torch.Tensor:
    """Cross-entropy in which pixels near a boundary between two classes count `weight` times, others once.

    The sum is divided by the number of valid pixels (by their class weights), so it is larger than cross-entropy.

    Args:
        width: largest distance (pixels, horizontally and vertically) to a pixel of another class; ignored pixels make
            no boundary.

    Shape:
        logits: (B, K, h, w)
        labels: (B, H, W), class ids or the ignore index
        class_weights: (K,)
    """
    ignored = labels == ignore_index
    ids = labels.unsqueeze(1).float()  # exact for ids up to 2 ** 24
    ends = [
        F.max_pool2d(sign * ids.masked_fill(ignored.unsqueeze(1), -sign * torch.inf), 2 * width + 1, 1, width)
        for sign in (1, -1)
    ]
    near = (ends[0] != -ends[1]).squeeze(1)  # the largest and the smallest id around
    log_probability = label_log_probability(logits, labels, ignore_index=ignore_index, align_corners=align_corners)
    loss = -log_probability * torch.where(near, weight, 1.0)
    return _pixel_mean(loss, labels, logits.shape[1], class_weights, ignore_index)


def dice_loss(
    logits: torch.Tensor, labels: torch.Tensor, *, ignore_index: int = 255, align_corners: bool = False
) -> torch.Tensor:
    """Mean over the classes in the batch of 1 - 2 sum(p y) / (sum(p) + sum(y)) (arXiv 1606.04797, without squares).

    The sums go over all valid pixels of the batch; p is a class's probability, y whether it is the label.

    Shape:
        logits: (B, K, h, w)
        labels: (B, H, W), class ids or the ignore index
    """
    return _mean_over_classes(logits, labels, "dice", ignore_index, align_corners)


def lovasz_softmax(
    logits: torch.Tensor, labels: torch.Tensor, *, ignore_index: int = 255, align_corners: bool = False
) -> torch.Tensor:
    """Lovasz-softmax over the classes in the batch (arXiv 1705.08790, Eq. 8 to 11; Algorithm 1).

    The Jaccard index is that of all valid pixels of the batch, not of each image.

    Shape:
        logits: (B, K, h, w)
        labels: (B, H, W), class ids or the ignore index
    """
    return _mean_over_classes(logits, labels, "lovasz", ignore_index, align_corners)


def region_mutual_information(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    bce_share: float = 0.5,
    radius: int = 3,
    stride: int = 3,
    ignore_index: int = 255,
    align_corners: bool = False,
) -> torch.Tensor:
    """Binary cross-entropy and region mutual information, each class a sigmoid of its own (arXiv 1910.12037).

    The labels of a class in an image, 0 or 1, and its probabilities are two maps, made smaller by max-pooling. All
    their regions of radius x radius values are points of D = radius ** 2 numbers; with the points about their mean as
    columns of Y and P,

        M = Y Y' - Y P' (P P' + e I)^-1 P Y'        what is left of Y after the best linear prediction from P
        RMI = log(det(M / e + I)) / (2 D)           0 where that is nothing, and for classes that are not in the image

        bce_share * mean over valid pixels(sum over classes(BCE)) + (1 - bce_share) * mean over images(sum(RMI))

    Details are those of the authors' code as openseg.pytorch uses it: sums in M instead of means, e = 0.001, ignored
    pixels have label and probability 0. They omit 1 / e, which adds a constant to the loss.

    Args:
        bce_share: share of binary cross-entropy, in [0, 1]
        radius: side of a region, in pooled pixels
        stride: side of the squares of pixels that are pooled

    Shape:
        logits: (B, K, h, w)
        labels: (B, H, W), class ids or the ignore index

    Raises:
        ValueError: if a setting is out of its bounds, or the labels are smaller than a region.
    """
    if not (0 <= bce_share <= 1 and radius >= 1 and stride >= 1):
        raise ValueError(
            f"bce_share {bce_share}, radius {radius}, stride {stride}: a share lies in [0, 1], and the others are at "
            "least 1"
        )
    check_label_maps(labels, logits)
    pooled = [(side + stride // 2 * 2 - stride) // stride + 1 for side in labels.shape[1:]]
    if min(pooled) < radius:
        raise ValueError(
            f"labels of {labels.shape[1]}x{labels.shape[2]} pixels are {pooled[0]}x{pooled[1]} with a stride of "
            f"{stride}, smaller than a region of radius {radius}; give larger crops, or a smaller radius or stride"
        )
    settings = bce_share, radius, stride, ignore_index, align_corners
    with_gradient = torch.is_grad_enabled() and logits.requires_grad
    with torch.autocast(logits.device.type, enabled=False):
        return _rmi_loss(logits, labels, *settings, with_gradient)[0]


LOSSES = {
    "ce": upsampled_cross_entropy,
    "ohem": ohem_cross_entropy,
    "focal": focal_loss,
    "boundary": boundary_cross_entropy,
    "dice": dice_loss,
    "lovasz": lovasz_softmax,
    "rmi": region_mutual_information,
}
# What the text of `parse_loss` can set: its type, the least and the most.
SETTINGS = {
    "ohem": {"threshold": (float, 1e-6, 1), "min_kept": (int, 0, 10**12)},
    "focal": {"gamma": (float, 0, 100)},
    "boundary": {"weight": (float, 0, 10**6), "width": (int, 1, 1000)},
    "rmi": {"bce_share": (float, 0, 1), "radius": (int, 1, 100), "stride": (int, 1, 100)},
}


def class_weights_from_counts(pixel_counts: torch.Tensor) -> torch.Tensor:
    """Weights that raise rare classes, 1 / ln(1.02 + share of the pixels) (ENet, arXiv 1606.02147, Section 5.1).

    They lie between 1.4 (a class that covers everything) and 50.5 (one that does not occur).

    Shape:
        pixel_counts: (K,), of the training labels, without ignored pixels
        returns: (K,), float32

    Raises:
        ValueError: if there are no pixels.
    """
    counts = torch.as_tensor(pixel_counts, dtype=torch.float64)
    if not counts.sum() > 0:
        raise ValueError("there are no labelled pixels to compute class weights from; check labels and ignore index")
    return (1.02 + counts / counts.sum()).log().reciprocal().float()


def label_log_probability(
    logits: torch.Tensor, labels: torch.Tensor, *, ignore_index: int, align_corners: bool
) -> torch.Tensor:
    """Logarithm of the probability that upsampled logits give each pixel's label; 0 at ignored pixels.

    Computed in float32 at least, also under autocast. The gradient cannot be differentiated again.

    Shape:
        logits: (B, K, h, w), any float type and strides
        labels: (B, H, W), any integer type, class ids or the ignore index
        returns: (B, H, W), float32, or float64 for float64 logits

    Raises:
        ValueError: if shapes do not fit, labels are no integers, or, on the CPU, a label is neither a class nor
            `ignore_index`.
    """
    logits = two_classes(logits)
    check_label_maps(labels, logits)
    with torch.autocast(logits.device.type, enabled=False):
        return _pass_over_pixels(logits, labels, None, ignore_index, align_corners, True)


def _pixel_mean(loss: torch.Tensor, labels: torch.Tensor, classes: int, class_weights, ignore_index: int):
    """Mean of a map (B, H, W) over the valid pixels, weighted with the weights of their labels; 0 if there are none."""
    valid = labels != ignore_index
    if class_weights is None:
        weight = valid.to(loss.dtype)
    else:
        if class_weights.shape != (max(classes, 2),):
            raise ValueError(
                f"class_weights have shape {tuple(class_weights.shape)}, not ({max(classes, 2)},); pass one per class"
            )
        weight = class_weights.to(loss)[labels.long().masked_fill(~valid, 0)] * valid
    return (weight * loss).sum() / weight.sum().clamp(min=torch.finfo(loss.dtype).tiny)


# ------------------------------------------------------------------------------------------------------- operators


@torch.library.custom_op("hf_segtx::label_log_probability", mutates_args=())
def _pass_over_pixels(
    logits: torch.Tensor,
    labels: torch.Tensor,
    map_gradient: torch.Tensor | None,
    ignore_index: int,
    align_corners: bool,
    of_label: bool,
) -> torch.Tensor:
    """Each pixel's logit of its label minus log(sum(exp(all logits))), 0 if ignored: (B, H, W).

    Given the gradient of that map, the gradient of the logits instead, (B, K, h, w). Not `of_label`: without the first
    of the two terms.
    """
    dtype, ignored = torch.promote_types(logits.dtype, torch.float32), labels == ignore_index
    if map_gradient is None:
        result, gradient = torch.empty(labels.shape, dtype=dtype, device=logits.device), None
    else:
        result = gradient = torch.empty_like(logits, dtype=dtype)
        map_gradient = map_gradient.masked_fill(ignored, 0)
    for block in pixel_blocks(logits, labels, ignore_index, align_corners, gradient):
        upsampled, axis = block.upsampled, block.axis
        if map_gradient is None:
            if of_label:
                log_probabilities = torch.log_softmax(upsampled, axis, out=block.buffer)
                pixels = log_probabilities.gather(axis, block.index_of_label())
            else:
                pixels = -upsampled.logsumexp(axis)
            result[block.index, block.rows] = pixels.flatten().index_select(0, block.position).view(-1, labels.shape[2])
            continue
        probabilities = torch.softmax(upsampled, axis, out=block.buffer)
        if of_label:
            label = block.index_of_label()
            probabilities.scatter_add_(axis, label, probabilities.new_full((), -1.0).expand_as(label))
        scale = probabilities.new_zeros(block.label.numel())  # slots without pixel: 0
        scale.scatter_(0, block.position, -map_gradient[block.index, block.rows].flatten())
        block.set_gradient(scale.view_as(block.label), probabilities)
    return result if map_gradient is not None else result.masked_fill_(ignored, 0)


@_pass_over_pixels.register_fake
def _(logits, labels, map_gradient, ignore_index, align_corners, of_label):
    dtype = torch.promote_types(logits.dtype, torch.float32)
    if map_gradient is None:
        return torch.empty(labels.shape, dtype=dtype, device=logits.device)
    return torch.empty_like(logits, dtype=dtype)


def _save_inputs(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])
    ctx.settings = inputs[3:]


def _pixels_backward(ctx, map_gradient):
    logits, labels = ctx.saved_tensors
    return _pass_over_pixels(logits, labels, map_gradient, *ctx.settings).to(logits.dtype), *[None] * 5


_pass_over_pixels.register_autograd(_pixels_backward, setup_context=_save_inputs)


def _mean_over_classes(logits, labels, kind: str, ignore_index: int, align_corners: bool) -> torch.Tensor:
    logits = two_classes(logits)
    check_label_maps(labels, logits)
    with_gradient = torch.is_grad_enabled() and logits.requires_grad
    with torch.autocast(logits.device.type, enabled=False):
        return _region_loss(logits, labels, kind, ignore_index, align_corners, with_gradient)[0]


@torch.library.custom_op("hf_segtx::region_loss", mutates_args=())
def _region_loss(
    logits: torch.Tensor, labels: torch.Tensor, kind: str, ignore_index: int, align_corners: bool, with_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dice or Lovasz-softmax (), and its gradient (B, K, h, w), empty unless asked for.

    Both are functions of each class's probability map alone. With g_k the gradient of that of class k, and s the sum
    of g_k p_k over the classes, the gradient of the logit z_k is p_k (g_k - s).
    """
    size, align = labels.shape[1:], align_corners
    dtype = torch.promote_types(logits.dtype, torch.float32)
    ignored = labels == ignore_index
    normalizer = _pass_over_pixels(logits, labels, None, ignore_index, align, False).masked_fill_(ignored, -torch.inf)
    counts = labels.long().masked_fill(ignored, logits.shape[1]).flatten().bincount(minlength=logits.shape[1] + 1)
    present = counts[:-1].nonzero().flatten().tolist()

    def upsample(k: int) -> torch.Tensor:  # (B, H, W)
        return F.interpolate(logits[:, k : k + 1].to(dtype), size, mode="bilinear", align_corners=align).squeeze(1)

    def downsample(pixels: torch.Tensor) -> torch.Tensor:  # (B, h, w)
        shape = (len(logits), 1, *logits.shape[2:])
        return torch.ops.aten.upsample_bilinear2d_backward(pixels.unsqueeze(1), size, shape, align).squeeze(1)

    loss = normalizer.new_zeros(())
    weighted = torch.zeros_like(normalizer)  # s
    gradient = torch.zeros_like(logits, dtype=dtype) if with_gradient else loss.new_empty(0)
    for k in present:
        of_class = labels == k
        probability = (upsample(k) + normalizer).exp_()  # 0 at ignored pixels
        class_loss, class_gradient = REGION_LOSSES[kind](probability.flatten(), of_class.flatten())
        loss += class_loss / len(present)
        if with_gradient:
            product = class_gradient.view_as(probability).mul_(probability).div_(len(present))
            weighted += product
            gradient[:, k] = downsample(product)
    if with_gradient:
        gradient += _pass_over_pixels(logits, labels, weighted, ignore_index, align, False)  # -p_k s, of all classes
    return loss, gradient


def _dice_of_class(probability: torch.Tensor, of_class: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and its gradient of a class, from its probabilities (P,), 0 if ignored, and where it is the label (P,)."""
    overlap, total = (probability * of_class).sum(), probability.sum() + of_class.sum()
    return 1 - 2 * overlap / total, 2 * (overlap / total - of_class.to(total)) / total


def _lovasz_of_class(probability: torch.Tensor, of_class: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of Lovasz-softmax. Ignored pixels come last, where the errors and with them their weights are 0."""
    errors = (of_class.to(probability) - probability).abs_()
    # The bits of positive floats are ordered as they are; sorting integers is several times as fast on a CPU.
    bits = torch.int32 if errors.dtype == torch.float32 else torch.int64
    order = (errors.new_full((), 2.0).view(bits) - errors.view(bits)).sort().indices  # descending errors
    of_class_sorted = of_class.index_select(0, order)
    found = of_class_sorted.cumsum(0, dtype=torch.int32)
    missing = (found[-1] - found).to(errors)  # what is left of the intersection if all up to here are wrong
    union = torch.arange(1, len(found) + 1, device=found.device).to(errors) + missing
    # By how much 1 - intersection / union rises from pixel to pixel; differences of that itself would cancel.
    rise = torch.where(of_class_sorted, 1 / union, missing / (union * (union - 1)))
    rise = torch.empty_like(rise).scatter_(0, order, rise)
    return errors @ rise, torch.where(of_class, -rise, rise)


REGION_LOSSES = {"dice": _dice_of_class, "lovasz": _lovasz_of_class}


EPSILON = 1e-3  # openseg's; the paper's code has half of it


@torch.library.custom_op("hf_segtx::rmi_loss", mutates_args=())
def _rmi_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    bce_share: float,
    radius: int,
    stride: int,
    ignore_index: int,
    align_corners: bool,
    with_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """RMI with binary cross-entropy (), and its gradient (B, K, h, w), empty unless asked for."""
    images, classes, *shape = logits.shape
    dtype = torch.promote_types(logits.dtype, torch.float32)
    valid, ids = labels != ignore_index, max(classes, 2)
    if labels.is_cpu and valid.any():
        check_labels(labels[valid], ids, ignore_index)
    slots = torch.arange(images, device=labels.device).view(-1, 1, 1) * (ids + 1)
    counts = (labels.long().masked_fill(~valid, ids) + slots).flatten().bincount(minlength=images * (ids + 1))
    is_present = counts.view(images, -1).T.tolist()  # [class][image]
    loss = torch.zeros((), dtype=torch.float64, device=logits.device)
    gradient = torch.zeros_like(logits, dtype=dtype) if with_gradient else loss.new_empty(0, dtype=dtype)
    share_of_pixel, share_of_image = bce_share / valid.sum().clamp(min=1).to(dtype), (1 - bce_share) / images
    for k in range(classes):
        upsampled = F.interpolate(
            logits[:, k : k + 1].to(dtype), labels.shape[1:], mode="bilinear", align_corners=align_corners
        ).squeeze(1)
        label = k if classes > 1 else 1
        of_class = (labels == label) & valid  # an ignore index may be a class's id
        truth = of_class.to(dtype)
        loss += share_of_pixel * F.binary_cross_entropy_with_logits(upsampled, truth, valid.to(dtype), reduction="sum")
        probability = upsampled.sigmoid_()
        pixels = (probability - truth) * valid * share_of_pixel
        if with_class := [index for index, count in enumerate(is_present[label]) if count]:
            known = (probability * valid)[with_class]
            class_loss, class_gradient = _rmi_of_class(known, of_class[with_class], radius, stride)
            loss += share_of_image * class_loss
            pixels[with_class] += share_of_image * class_gradient * known * (1 - known)
        if with_gradient:
            gradient[:, k] = torch.ops.aten.upsample_bilinear2d_backward(
                pixels.unsqueeze(1), labels.shape[1:], (images, 1, *shape), align_corners
            ).squeeze(1)
    return loss.to(dtype), gradient


def _rmi_of_class(
    probability: torch.Tensor, of_class: torch.Tensor, radius: int, stride: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of a class's RMI over images, and its gradient, from its probabilities (B, H, W) and whether it is the label.

    With W = Y P' (P P' + e I)^-1 and the rest R = Y - W P, M is R R' + e W W', which rounding cannot make indefinite,
    and the gradient of log(det(M + e I)) / 2 by P is -W' (M + e I)^-1 R. Logits that are not finite give such a loss.
    """
    pooling = {"kernel_size": stride, "padding": stride // 2}
    pooled, index = F.max_pool2d(probability.unsqueeze(1), **pooling, return_indices=True)
    regions = [
        F.unfold(maps.double(), radius) for maps in (pooled, F.max_pool2d(of_class.to(pooled).unsqueeze(1), **pooling))
    ]
    known, truth = (points - points.mean(2, keepdim=True) for points in regions)  # P and Y: (B, D, points)
    dimensions = radius**2
    ridge = EPSILON * torch.eye(dimensions, dtype=known.dtype, device=known.device)
    weights = torch.linalg.solve_ex(known @ known.mT + ridge, known @ truth.mT).result.mT
    rest = truth - weights @ known
    factor = torch.linalg.cholesky_ex(rest @ rest.mT + EPSILON * weights @ weights.mT + ridge).L
    loss = (factor.diagonal(dim1=1, dim2=2).log() - math.log(EPSILON) / 2).sum() / dimensions
    gradient = F.fold(weights.mT @ torch.cholesky_solve(rest, factor), pooled.shape[2:], radius) / -dimensions
    pixels = torch.zeros_like(probability).flatten(1)
    return loss, pixels.scatter_(1, index.flatten(1), gradient.flatten(1).to(pixels)).view_as(probability)


@_rmi_loss.register_fake
def _(logits, labels, bce_share, radius, stride, ignore_index, align_corners, with_gradient):
    return _fake_region_loss(logits, with_gradient)


@_region_loss.register_fake
def _(logits, labels, kind, ignore_index, align_corners, with_gradient):
    return _fake_region_loss(logits, with_gradient)


def _fake_region_loss(logits, with_gradient):
    dtype = torch.promote_types(logits.dtype, torch.float32)
    gradient = torch.empty_like(logits, dtype=dtype) if with_gradient else logits.new_empty(0, dtype=dtype)
    return logits.new_empty((), dtype=dtype), gradient


def _save_gradient(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])
    ctx.logits_dtype, ctx.others = inputs[0].dtype, [None] * (len(inputs) - 1)


def _region_backward(ctx, gradient_of_loss, _):
    (gradient,) = ctx.saved_tensors
    used = gradient_of_loss is not None
    return (gradient * gradient_of_loss).to(ctx.logits_dtype) if used else None, *ctx.others


_region_loss.register_autograd(_region_backward, setup_context=_save_gradient)
_rmi_loss.register_autograd(_region_backward, setup_context=_save_gradient)
