"""The losses against the same formulas on full-size logits, with gradients by autograd."""

import math
import types
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from hf_segtx import losses
from hf_segtx.losses import class_weights_from_counts, parse_loss
from hf_segtx.models import upsampling


SIZES = [((4, 5), (16, 20)), ((7, 9), (23, 31)), ((8, 8), (3, 5)), ((1, 4), (9, 1))]  # (h, w) -> (H, W)
# sums of some 1e3 terms in another order
CLOSE = {torch.float32: {"rtol": 2e-5, "atol": 2e-6}, torch.float64: {"rtol": 1e-9, "atol": 1e-12}}


def example(size_in=(6, 7), size_out=(24, 28), classes=5, dtype=torch.float64, absent=None):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, classes, *size_in, dtype=dtype, generator=generator)
    labels = torch.randint(max(classes, 2), (2, *[-(-n // 4) for n in size_out]), generator=generator)
    labels = labels.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, : size_out[0], : size_out[1]]  # regions
    labels[labels == absent] = 0
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    return logits.requires_grad_(), labels


def config(**settings):
    return types.SimpleNamespace(semantic_loss_ignore_index=255, auxiliary_loss_weight=0.4, **settings)


# ------------------------------------------------------------------------------------- slow formulas, full-size logits


def full_size(logits, labels, align_corners):
    """Probabilities (P, K), their logarithms (P, K) and labels (P,) of the valid pixels."""
    logits = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=align_corners)
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    valid = labels != 255
    log_probabilities = logits.log_softmax(1).permute(0, 2, 3, 1)[valid]
    return log_probabilities.exp(), log_probabilities, labels[valid]


def slow_pixel_loss(per_pixel):
    def loss(logits, labels, align_corners, class_weights=None):
        _, logs, label = full_size(logits, labels, align_corners)
        weights = torch.ones(logs.shape[1]).to(logs) if class_weights is None else class_weights.to(logs)
        picked = logs[torch.arange(len(label)), label]
        return (weights[label] * per_pixel(picked, labels)).sum() / weights[label].sum()

    return loss


def boundary_factors(labels, width=3, weight=5.0):
    """Pixel by pixel: whether another class lies in the square of 2 * width + 1 pixels around it."""
    factors = []
    for image in labels:
        for i, j in (image != 255).nonzero().tolist():
            around = image[max(i - width, 0) : i + width + 1, max(j - width, 0) : j + width + 1]
            factors.append(weight if len(set(around[around != 255].tolist())) > 1 else 1.0)
    return torch.tensor(factors)


def slow_dice(logits, labels, align_corners):
    probabilities, _, label = full_size(logits, labels, align_corners)
    terms = []
    for k in label.unique():
        p, y = probabilities[:, k], (label == k).to(probabilities)
        terms.append(1 - 2 * (p * y).sum() / (p.sum() + y.sum()))
    return sum(terms) / len(terms)


def slow_lovasz(logits, labels, align_corners):
    """Algorithm 1 of the paper: the Jaccard loss of every set of the n largest errors."""
    probabilities, _, label = full_size(logits, labels, align_corners)
    terms = []
    for k in label.unique():
        y = label == k
        errors, order = torch.where(y, 1 - probabilities[:, k], probabilities[:, k]).sort(descending=True)
        sorted_y = y[order].double()
        wrong = torch.arange(len(y))[:, None] >= torch.arange(len(y))  # (n, P): row n holds the n + 1 largest errors
        intersection = (sorted_y * ~wrong).sum(1)
        union = sorted_y.sum() + ((1 - sorted_y) * wrong).sum(1)
        jaccard = 1 - intersection / union
        terms.append((errors * jaccard.diff(prepend=jaccard.new_zeros(1)).to(errors)).sum())
    return sum(terms) / len(terms)


def slow_rmi(logits, labels, align_corners, bce_share=0.5, radius=3, stride=3):
    """The paper's equations image by image and class by class, with openseg's constants; pooled and cut by loops."""
    logits = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=align_corners)
    valid, half = labels != 255, stride // 2
    bce = rmi = 0
    for image, label, shown in zip(logits, labels, valid, strict=True):
        for k, logit in enumerate(image, start=len(image) == 1):
            truth = ((label == k) & shown).to(logits)
            bce = bce + F.binary_cross_entropy_with_logits(logit[shown], truth[shown], reduction="sum") / valid.sum()
            points = []
            for values in (truth, logit.sigmoid() * shown):
                rows, columns = (range(0, side - stride + half * 2 + 1, stride) for side in values.shape)
                pooled = [
                    [values[max(i - half, 0) : i - half + stride, max(j - half, 0) : j - half + stride].max()
                     for j in columns] for i in rows
                ]  # fmt: skip
                for y in range(radius):  # a number of each region
                    for x in range(radius):
                        regions = [row[x : len(row) - radius + 1 + x] for row in pooled[y : len(rows) - radius + 1 + y]]
                        points.append(torch.stack(sum(regions, [])).double())
            size, points = radius**2, torch.stack(points)
            covariance = torch.cov(points, correction=0) * points.shape[1]
            y, yp, p = covariance[:size, :size], covariance[:size, size:], covariance[size:, size:]
            identity = 1e-3 * torch.eye(size, dtype=torch.float64)
            left = y - yp @ torch.linalg.inv(p + identity) @ yp.T + identity
            rmi = rmi + (0.5 * torch.logdet(left) / size - 0.5 * math.log(1e-3)) / len(labels)
    return bce_share * bce + (1 - bce_share) * rmi


SHARP = {"focal": "focal(gamma=0.5)"}  # infinite slope at probability 1
SLOW = {
    "ce": slow_pixel_loss(lambda log_p, labels: -log_p),
    "focal": slow_pixel_loss(lambda log_p, labels: -((1 - log_p.exp()) ** 2) * log_p),
    "boundary": slow_pixel_loss(lambda log_p, labels: -boundary_factors(labels).to(log_p) * log_p),
    "dice": slow_dice,
    "lovasz": slow_lovasz,
    "rmi": slow_rmi,
}


def assert_same(ours, slow, logits):
    torch.testing.assert_close(ours, slow.to(ours), **CLOSE[logits.dtype])
    gradients = [torch.autograd.grad(3 * loss, logits, retain_graph=True)[0] for loss in (ours, slow)]
    torch.testing.assert_close(*gradients, **CLOSE[logits.dtype])


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("size_in", "size_out"), SIZES)
@pytest.mark.parametrize("name", SLOW)
def test_matches_the_formula_on_full_size_logits(name, size_in, size_out, align_corners, monkeypatch):
    for classes, dtype in ((1, torch.float64), (3, torch.float64), (17, torch.float32)):  # 17: the other layout
        logits, labels = example(size_in, size_out, classes, dtype, absent=2)
        labels[:, 0, 0] = 1
        if name == "rmi" and min(size_out) < 7:
            with pytest.raises(ValueError, match="smaller than a region of radius 3; give larger crops"):
                parse_loss(name)(logits, labels, config())
            continue
        slow = SLOW[name](logits, labels, align_corners)
        monkeypatch.setattr(upsampling, "BLOCK_NUMEL_CPU", 300 if classes == 3 else 2**18)  # many blocks, and one
        assert_same(parse_loss(name)(logits, labels, config(align_corners=align_corners)), slow, logits)


@pytest.mark.parametrize("name", SLOW)
def test_matches_the_formula_with_every_pixel_valid_and_with_one(name):
    for classes in (2, 3):
        logits, labels = example(classes=classes)
        single = torch.full_like(labels, 255)
        single[1, 10, 10] = 1
        for seen in (labels.masked_fill(labels == 255, classes - 1), single):
            assert_same(parse_loss(name)(logits, seen, config()), SLOW[name](logits, seen, False), logits)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_gradient_matches_finite_differences(name):
    for classes in (1, 3):
        logits, labels = example((2, 3), (8, 12), classes)
        loss = parse_loss({"ohem": "ohem(min_kept=20)", "focal": "focal(gamma=1.5)"}.get(name, name))
        assert torch.autograd.gradcheck(partial(loss, labels=labels, config=config()), logits)


@pytest.mark.parametrize("name", losses.LOSSES)
@pytest.mark.parametrize("classes", [1, 5, 17])
def test_all_ignored_gives_zero_loss_and_gradient(name, classes):
    logits, labels = example(classes=classes)
    loss = parse_loss(SHARP.get(name, name))(logits, torch.full_like(labels, 255), config())
    assert loss.item() == 0 and torch.autograd.grad(loss, logits)[0].count_nonzero() == 0


@pytest.mark.parametrize("name", ["ce", "focal", "boundary"])
def test_class_weights_match_the_weighted_mean(name):
    for classes in (1, 5):
        logits, labels = example(classes=classes)
        weights = torch.linspace(0, 2, max(classes, 2))
        ours = parse_loss(name, class_weights=weights)(logits, labels, config())
        assert_same(ours, SLOW[name](logits, labels, False, weights), logits)
        for count in (1, 7):
            with pytest.raises(ValueError, match="class_weights have shape"):
                parse_loss(name, class_weights=torch.ones(count))(logits, labels, config())


def test_ohem_matches_the_mean_over_the_hardest_pixels():
    logits, labels = example()
    probabilities, logs, label = full_size(logits, labels, False)
    picked = torch.arange(len(label)), label
    for threshold, min_kept in ((0.3, 10), (1e-6, 100), (1e-6, 10**6)):
        # kept: below the threshold, or below the pixel after the `min_kept` hardest
        bound = max(threshold, probabilities[picked].sort().values[min(min_kept, len(label) - 1)].item())
        slow = -logs[picked][probabilities[picked] < bound].mean()
        loss = parse_loss(f"ohem(threshold={threshold}, min_kept={min_kept})")
        assert_same(loss(logits, labels, config()), slow, logits)
    single = torch.full_like(labels, 255)
    single[1, 10, 10] = 1  # none comes after it, so it is its own bound
    assert parse_loss("ohem(threshold=1e-6)")(logits, single, config()) == 0


def test_sum_with_auxiliary_heads_matches_its_terms():
    logits, labels = example()
    heads = [2 * logits[..., :3], logits[..., 2:] - 1]
    weights = torch.linspace(0.5, 2, 5)

    def cross_entropy(logits):
        logits = F.interpolate(logits, labels.shape[1:], mode="bilinear")
        return F.cross_entropy(logits, labels, weights.to(logits), ignore_index=255, label_smoothing=0.1)

    text = " 0.5*lovasz+ce + 2e-1 * dice"
    settings = {"class_weights": weights, "label_smoothing": 0.1}
    main = cross_entropy(logits) + 0.5 * slow_lovasz(logits, labels, False) + 0.2 * slow_dice(logits, labels, False)
    ours = parse_loss(text, **settings)(logits, labels, config(), heads)
    assert_same(ours, main + 0.4 * cross_entropy(heads[0]) + 0.4 * cross_entropy(heads[1]), logits)
    ours = parse_loss(text, **settings, auxiliary_weights=[1.0, 0.1])(logits, labels, config(), heads)
    assert_same(ours, main + cross_entropy(heads[0]) + 0.1 * cross_entropy(heads[1]), logits)
    without = types.SimpleNamespace(semantic_loss_ignore_index=255)  # says no weight: the papers' 0.4
    assert_same(
        parse_loss()(logits, labels, without, heads[:1]), parse_loss()(logits, labels, config(), heads[:1]), logits
    )
    with pytest.raises(ValueError, match="1 auxiliary weights for 2 heads"):
        parse_loss(text, auxiliary_weights=[1.0])(logits, labels, config(), heads)


def test_mean_over_all_pixels_matches_torchs_sum_over_their_number():
    """mmsegmentation's mean: ignored pixels count as 0, in auxiliary heads, too."""
    torch.manual_seed(0)
    logits, auxiliary = torch.randn(2, 5, 6, 7), torch.randn(2, 5, 6, 7)
    labels = torch.randint(0, 5, (2, 6, 7))
    labels[:, :2], labels[1] = 255, 255
    loss = parse_loss("ce", mean_over="all")(logits, labels, config(), (auxiliary,))
    sums = [F.cross_entropy(x, labels, ignore_index=255, reduction="sum") for x in (logits, auxiliary)]
    factor = config().auxiliary_loss_weight
    torch.testing.assert_close(loss, (sums[0] + factor * sums[1]) / labels.numel())
    for text, weights in (("ce + dice", None), ("ce + boundary", None), ("ce", torch.ones(5))):
        with pytest.raises(ValueError, match="mean of the loss over all pixels is for ce without"):
            parse_loss(text, class_weights=weights, mean_over="all")


def test_settings_in_the_text_match_the_formulas_with_them():
    logits, labels = example()
    focal = slow_pixel_loss(lambda log_p, labels: -((1 - log_p.exp()) ** 3) * log_p)
    boundary = slow_pixel_loss(lambda log_p, labels: -boundary_factors(labels, 1, 2.5).to(log_p) * log_p)
    ours = parse_loss("focal( gamma=3 ) + 0.5*boundary(width = 1,weight=2.5)")(logits, labels, config())
    assert_same(ours, focal(logits, labels, False) + 0.5 * boundary(logits, labels, False), logits)
    for share, radius, stride in ((0.3, 2, 4), (1.0, 3, 3), (0.0, 1, 1)):
        ours = parse_loss(f"rmi(bce_share={share}, radius={radius}, stride={stride})")(logits, labels, config())
        assert_same(ours, slow_rmi(logits, labels, False, share, radius, stride), logits)
    for setting in ({"bce_share": 2}, {"radius": 0}, {"stride": 0}):
        with pytest.raises(ValueError, match="a share lies in \\[0, 1\\], and the others are at"):
            losses.region_mutual_information(logits, labels, **setting)
    with pytest.raises(ValueError, match="bce_share -0.5"):
        losses.region_mutual_information(logits, labels, bce_share=-0.5)


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_regions_that_do_not_fit_are_refused(stride):
    logits = torch.zeros(1, 2, 1, 1)
    for side in range(1, 14):
        labels = torch.zeros(1, side, 40, dtype=torch.long)
        rows = F.max_pool2d(labels.float(), stride, padding=stride // 2).shape[1]
        if rows >= 3:
            losses.region_mutual_information(logits, labels, stride=stride)
            continue
        with pytest.raises(ValueError, match=f"labels of {side}x40 pixels are {rows}x[0-9]+ with a stride of {stride}"):
            losses.region_mutual_information(logits, labels, stride=stride)


def test_region_mutual_information_of_what_is_not_there():
    """Nothing for an image without a label and for a right answer; nothing is raised for logits that are not finite."""
    logits, labels = example()
    one = labels.clone()
    one[1] = 255
    rmi = parse_loss("rmi(bce_share=0)")
    found = rmi(logits, one, config())
    torch.testing.assert_close(2 * found, rmi(logits[:1], one[:1], config()))  # the mean over images
    assert torch.autograd.grad(found, logits)[0][1].eq(0).all()
    one[0] = 3  # everywhere
    certain = torch.where(torch.arange(5).view(1, -1, 1, 1) == 3, 40.0, -40.0).expand(2, 5, 6, 7)
    assert rmi(certain, one, config()) == 0
    assert rmi(logits * torch.nan, labels, config()).isnan()


@pytest.mark.parametrize(
    ("text", "takes"),
    [
        ("focal(alpha=1)", "focal takes gamma=NUMBER"),
        ("ce + boundary(width)", "boundary takes weight=NUMBER and width=NUMBER"),
        ("ohem(threshold=a)", "ohem takes threshold=NUMBER and min_kept=NUMBER"),
        ("dice(gamma=-1)", "dice takes no settings"),
    ],
)
def test_settings_that_are_not_known_get_a_clear_error(text, takes):
    with pytest.raises(ValueError, match=takes):
        parse_loss(text)


@pytest.mark.parametrize(
    "text", ["", "ce + ", "ce(", "focal gamma=2", "lovas", "-1*ce", "ce lovasz", "ce * 2", "1.2.3*ce", "2*"]
)
def test_what_is_no_sum_of_losses_gets_a_clear_error(text):
    with pytest.raises(ValueError, match="write a sum of ce, ohem, focal, boundary, dice, lovasz, rmi"):
        parse_loss(text)


def test_settings_without_effect_are_refused():
    for share in (-0.1, 2):
        with pytest.raises(ValueError, match=f"label_smoothing is {share}"):
            parse_loss(label_smoothing=share)
    parse_loss(text="ce", label_smoothing=1)
    with pytest.raises(ValueError, match="'dice' takes no label_smoothing, only ce"):
        parse_loss("dice", label_smoothing=0.1)


@pytest.mark.parametrize("name", ["ce", "focal", "boundary"])
def test_micro_batches_add_up_to_one_batch(name):
    """With the factors of examples/train.py: the sum of the class weights of their valid pixels over that of all."""
    logits, labels = example()
    labels[1, 4:] = 255
    weights = torch.linspace(0.5, 2, 5)
    loss = parse_loss(name, class_weights=weights)
    pixels = [weights[image[image != 255]].sum() for image in labels]
    parts = [loss(logits[i : i + 1], labels[i : i + 1], config()) * pixels[i] / sum(pixels) for i in range(2)]
    assert_same(sum(parts), loss(logits, labels, config()), logits)


def test_lovasz_is_exact_where_its_weights_are_small():
    """A rise of the Jaccard loss is about 1 / pixels: as a difference of float32 numbers it would be noise."""
    generator = torch.Generator().manual_seed(0)
    pixels = 2**20 + 1  # an odd number
    probability, of_class = torch.rand(pixels, generator=generator), torch.rand(pixels, generator=generator) < 0.9
    loss, gradient = losses._lovasz_of_class(probability, of_class)
    exact_loss, exact_gradient = losses._lovasz_of_class(probability.double(), of_class)
    torch.testing.assert_close(loss.double(), exact_loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_extreme_logits_stay_finite(name):
    logits, labels = example(dtype=torch.float32)
    extreme = (500 * logits).detach().requires_grad_()
    loss = parse_loss(SHARP.get(name, name))(extreme, labels, config())
    assert loss.isfinite() and torch.autograd.grad(loss, extreme)[0].isfinite().all()


@pytest.mark.parametrize("name", ["focal", "boundary", "dice", "lovasz", "rmi"])
def test_half_precision_logits_are_computed_in_float32(name):
    logits, labels = example(dtype=torch.float32)
    half = logits.detach().bfloat16().requires_grad_()
    exact = half.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):  # must not reach the inside
        loss = parse_loss(name)(half, labels, config())
    slow = SLOW[name](exact, labels, False).float()
    torch.testing.assert_close(loss, slow, **CLOSE[torch.float32])
    gradients = torch.autograd.grad(loss, half)[0], torch.autograd.grad(slow, exact)[0].bfloat16()
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-6)  # one rounding


@pytest.mark.parametrize(("name", "operator"), [("dice", "_region_loss"), ("rmi", "_rmi_loss")])
def test_the_gradient_is_made_only_where_it_is_asked_for(name, operator, monkeypatch):
    logits, labels = example()
    asked, inner = [], getattr(losses, operator)
    monkeypatch.setattr(losses, operator, lambda *settings: asked.append(settings[-1]) or inner(*settings))
    for values, enabled in ((logits, True), (logits, False), (logits.detach(), True)):
        with torch.set_grad_enabled(enabled):
            parse_loss(name)(values, labels, config())
    assert asked == [True, False, False]


@pytest.mark.parametrize("strides", ["channels_last", "transposed"])
@pytest.mark.parametrize("name", ["focal", "lovasz", "rmi"])
def test_strides_and_label_types_do_not_change_the_result(name, strides):
    logits, labels = example()
    other = {
        "channels_last": lambda: logits.detach().contiguous(memory_format=torch.channels_last),
        "transposed": lambda: logits.detach().mT.contiguous().mT,
    }[strides]().requires_grad_()
    expected, ours = (parse_loss(name)(x, y, config()) for x, y in ((logits, labels), (other, labels.to(torch.uint8))))
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(torch.autograd.grad(ours, other), torch.autograd.grad(expected, logits))


def test_ignore_index_of_any_value():
    logits, labels = example()
    other = labels.masked_fill(labels == 255, -100)
    settings = types.SimpleNamespace(semantic_loss_ignore_index=-100)
    for loss in (*map(parse_loss, losses.LOSSES), parse_loss("ohem(min_kept=20)"), parse_loss("ce", mean_over="all")):
        torch.testing.assert_close(loss(logits, other, settings), loss(logits, labels, config()))
    log_probability = losses.label_log_probability(logits, labels, ignore_index=255, align_corners=False)
    assert log_probability[labels == 255].count_nonzero() == 0


@pytest.mark.parametrize("name", losses.LOSSES)
def test_defaults_are_those_named(name):
    """255 ignored, corners not aligned; HRNet-OCR's 0.9 and 131072, the paper's gamma of 2, no smoothing."""
    named = {"ohem": {"threshold": 0.9, "min_kept": 131072, "label_smoothing": 0}, "ce": {"label_smoothing": 0}}
    named |= {"focal": {"gamma": 2}, "boundary": {"weight": 5, "width": 3}}
    named["rmi"] = {"bce_share": 0.5, "radius": 3, "stride": 3}
    logits, labels = example()
    settings = {"ignore_index": 255, "align_corners": False, **named.get(name, {})}
    assert losses.LOSSES[name](logits, labels) == losses.LOSSES[name](logits, labels, **settings)
    if name == "ohem":  # in the example all pixels are among the kept
        defaults = losses.ohem_cross_entropy.__kwdefaults__
        assert (defaults["threshold"], defaults["min_kept"]) == (0.9, 131072)


def test_bad_labels_get_a_clear_error():
    logits, labels = example()
    for name in losses.LOSSES:
        with pytest.raises(ValueError, match="label 7 is neither in"):
            parse_loss(name)(logits, labels.masked_fill(labels == 1, 7), config())
        with pytest.raises(ValueError, match="label -3 is neither in"):
            parse_loss(name)(logits, labels.masked_fill(labels == 1, -3), config())
        with pytest.raises(ValueError, match="do not fit logits"):
            parse_loss(name)(logits, labels[:1], config())
        with pytest.raises(ValueError, match="labels are torch.float32; give class ids as integers"):
            parse_loss(name)(logits, labels / 255, config())


@pytest.mark.parametrize("name", losses.LOSSES)
def test_full_size_logits_are_never_allocated(name):
    logits, labels = example((32, 32), (128, 128), classes=100, dtype=torch.float32)
    labels = torch.where(labels == 255, labels, labels % 10)  # fewer classes in the batch: a faster test
    logits, labels = logits.repeat(4, 1, 1, 1).detach().requires_grad_(), labels.repeat(4, 1, 1)

    def largest_allocation(function):
        with torch.profiler.profile(profile_memory=True) as profile:
            function()
        return max(event.self_cpu_memory_usage for event in profile.events())

    full = 4 * labels.numel() * 100
    blocks = 4 * 2 * upsampling.BLOCK_NUMEL_CPU  # two of them, or a few maps (B, H, W), or the gradient of the logits
    assert largest_allocation(lambda: parse_loss(name)(logits, labels, config()).backward()) <= blocks < full / 4


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_without_graph_breaks_equals_eager(backend):
    torch._dynamo.reset()
    logits, labels = example(dtype=torch.float32)
    loss = parse_loss("ce + ohem + focal + boundary + dice + 0.5*lovasz + rmi", class_weights=torch.linspace(0.5, 2, 5))
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    assert_same(compiled(logits, labels, config()), loss(logits, labels, config()), logits)


def test_operators_satisfy_torch_library():
    logits, labels = example(dtype=torch.float32)
    torch.library.opcheck(losses._pass_over_pixels, (logits, labels, None, 255, False, True))
    torch.library.opcheck(losses._region_loss, (logits, labels, "lovasz", 255, False, True))
    torch.library.opcheck(losses._rmi_loss, (logits, labels, 0.5, 3, 3, 255, False, True))
    # no gradient is asked for, so the second result is empty, in a compiled model, too
    for operator, settings in ((losses._region_loss, ("dice",)), (losses._rmi_loss, (0.5, 3, 3))):
        arguments = logits.detach(), labels, *settings, 255, False, False
        torch.library.opcheck(operator, arguments, test_utils="test_faketensor")
        assert operator(*arguments)[1].shape == (0,)


def test_weights_from_counts_match_enet():
    weights = class_weights_from_counts(torch.tensor([900, 100, 0]))
    assert weights.tolist() == pytest.approx([1 / math.log(1.02 + share) for share in (0.9, 0.1, 0)])
    assert class_weights_from_counts([0, 1])[1].item() == pytest.approx(1 / math.log(2.02))  # a single pixel is enough
    with pytest.raises(ValueError, match="no labelled pixels"):
        class_weights_from_counts(torch.zeros(3))
    with pytest.raises(ValueError, match="no labelled pixels"):
        class_weights_from_counts([math.nan, 1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", losses.LOSSES)
def test_gpu_equals_cpu(name):
    logits, labels = example(dtype=torch.float32)
    on_gpu = logits.detach().cuda().requires_grad_()
    loss = parse_loss(name)
    ours, expected = loss(on_gpu, labels.cuda(), config()), loss(logits, labels, config())
    torch.testing.assert_close(ours.cpu(), expected, **CLOSE[torch.float32])
    gradients = torch.autograd.grad(ours, on_gpu)[0].cpu(), torch.autograd.grad(expected, logits)[0]
    torch.testing.assert_close(*gradients, **CLOSE[torch.float32])


@pytest.mark.parametrize(
    "text",
    [
        "ohem(threshold=5)",
        "ohem(threshold=0)",
        "boundary(width=2.7)",
        "boundary(width=0)",
        "focal(gamma=1e400)",
        "focal(gamma=2,gamma=3)",
        "1e999*dice",
        "rmi(bce_share=2)",
    ],
)
def test_numbers_out_of_range_are_refused(text):
    with pytest.raises(ValueError, match="a number of|a whole number of|at most 1e6"):
        parse_loss(text)
    for weights in ([1.0, -1.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="class_weights are .*; give finite numbers, at least 0"):
            parse_loss("ce", class_weights=torch.tensor(weights))
    with pytest.raises(ValueError, match="mean_over is 'some'; give 'valid' or 'all'"):
        parse_loss("ce", mean_over="some")


def test_a_factor_of_nothing_is_refused():
    with pytest.raises(ValueError, match="'0\\*ce' in the loss '0\\*ce' would do nothing"):
        parse_loss("0*ce")
