"""The fused upsampling against F.interpolate followed by F.cross_entropy or argmax, with all their options."""

import contextlib
import importlib.util
import os

import pytest
import torch
import torch.nn.functional as F
from tiny import CASES
from torch.utils.checkpoint import checkpoint

from hf_segtx.models import upsampling
from hf_segtx.models.upsampling import upsampled_argmax, upsampled_cross_entropy


SIZES = [  # (h, w) -> (H, W)
    ((4, 5), (16, 20)),
    ((7, 9), (23, 31)),
    ((8, 8), (3, 5)),
    ((5, 6), (5, 6)),
    ((1, 1), (7, 5)),
    ((1, 4), (9, 1)),
    ((10, 3), (13, 40)),
]
# the pair and we round sums of up to 40 products differently: some 1e-7 of the largest value in float32
CLOSE = {torch.float32: {"rtol": 1e-5, "atol": 2e-6}, torch.float64: {"rtol": 1e-10, "atol": 1e-12}}


def example(size_in=(6, 7), size_out=(24, 28), classes=5, dtype=torch.float32, batch=2, ignored=255):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(batch, classes, *size_in, dtype=dtype, generator=generator)
    labels = torch.randint(max(classes, 2), (batch, *size_out), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = ignored
    return logits.requires_grad_(), labels


def upsample(logits, size, align_corners=False):
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)


def plain_cross_entropy(logits, labels, align_corners=False, ignore_index=255, **options):
    pixels = upsample(logits, labels.shape[1:], align_corners)
    return F.cross_entropy(pixels, labels.long(), ignore_index=ignore_index, **options)


def assert_same_loss(logits, ours, plain):
    torch.testing.assert_close(ours, plain, **CLOSE[logits.dtype])
    gradients = [torch.autograd.grad(3 * loss, logits)[0] for loss in (ours, plain)]
    torch.testing.assert_close(*gradients, **CLOSE[logits.dtype])


@contextlib.contextmanager
def small_blocks(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(upsampling, "BLOCK_NUMEL_CPU", 300)
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("size_in", "size_out"), SIZES)
def test_loss_matches_interpolate_and_cross_entropy(size_in, size_out, align_corners, dtype, monkeypatch):
    for classes in (3, 17):  # the two layouts
        logits, labels = example(size_in, size_out, classes, dtype)
        labels[:, 0, 0] = 1  # one valid pixel at least, or the plain loss is NaN
        for weights in (None, torch.linspace(0, 2, classes)):
            for smoothing in (0.0, 0.1):
                options = {"align_corners": align_corners, "label_smoothing": smoothing}
                plain_weights = weights if weights is None else weights.to(dtype)
                plain = plain_cross_entropy(logits, labels, weight=plain_weights, **options)
                ours = upsampled_cross_entropy(logits, labels, class_weights=weights, **options)
                assert_same_loss(logits, ours, plain)
        with small_blocks(monkeypatch):
            ours = upsampled_cross_entropy(logits, labels, align_corners=align_corners)
            assert_same_loss(logits, ours, plain_cross_entropy(logits, labels, align_corners))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("size_in", "size_out"), SIZES)
@pytest.mark.parametrize("classes", [1, 2, 17])
def test_label_map_matches_interpolate_and_argmax(size_in, size_out, align_corners, classes, monkeypatch):
    logits = example(size_in, size_out, classes)[0].detach()
    for sharpness in (0, 6):  # many candidates a cell, and mostly one
        logits[:, -1, : size_in[0] // 2] += sharpness
        pixels = upsample(logits, size_out, align_corners)
        pixels = torch.cat([torch.zeros_like(pixels), pixels], dim=1) if classes == 1 else pixels
        best = pixels.topk(2, dim=1).values
        unique = best[:, 0] - best[:, 1] > 1e-5  # rounding of values up to 20 in float32
        ours = upsampled_argmax(logits, size_out, align_corners=align_corners)
        assert ours.dtype == torch.int64 and unique.float().mean() > 0.9
        assert torch.equal(ours[unique], pixels.argmax(1)[unique])
        with small_blocks(monkeypatch):
            assert torch.equal(upsampled_argmax(logits, size_out, align_corners=align_corners), ours)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("classes", [1, 2, 17])
def test_places_match_cropped_interpolation(align_corners, classes):
    """A part of the image at any size: what is left of the whole one at eight times its size after cropping."""
    logits = example((6, 7), (24, 28), classes)[0].detach()
    whole = upsample(logits, (41, 49) if align_corners else (48, 56), align_corners)  # 8 pixels from logit to logit
    extent = (4, 5) if align_corners else (4.5, 5)
    size = (25, 33) if align_corners else (36, 40)
    cropped = whole[:, :, : size[0], : size[1]]
    places = [upsampling.positions(*pair, align_corners) for pair in zip(extent, size, strict=True)]
    torch.testing.assert_close(upsampling.logits_at(logits, *places), cropped, **CLOSE[torch.float32])
    everywhere = [upsampling.positions(*pair, align_corners) for pair in zip((6, 7), whole.shape[2:], strict=True)]
    torch.testing.assert_close(upsampling.logits_at(logits, *everywhere), whole, **CLOSE[torch.float32])
    mirrored = upsampling.logits_at(logits, places[0], places[1].flip(0))
    torch.testing.assert_close(mirrored, cropped.flip(3), **CLOSE[torch.float32])
    wanted = torch.cat([torch.zeros_like(cropped), cropped], dim=1) if classes == 1 else cropped
    best = wanted.topk(2, dim=1).values
    unique = best[:, 0] - best[:, 1] > 1e-5  # rounding of values up to 20 in float32
    assert torch.equal(upsampling.argmax_at(logits, *places)[unique], wanted.argmax(1)[unique])
    some = [places[0][7:8], places[1][3::5]]  # any places, in ascending order
    wanted, unique = (each[:, 7:8, 3::5] for each in (wanted.argmax(1), unique))
    assert torch.equal(upsampling.argmax_at(logits, *some)[unique], wanted[unique])


@pytest.mark.parametrize("classes", [3, 17])
@pytest.mark.parametrize("size_out", [(8, 12), (5, 7)])
def test_gradient_matches_finite_differences(classes, size_out):
    logits, labels = example((2, 3), size_out, classes, torch.float64, batch=1)
    weights = torch.linspace(0.5, 2, classes, dtype=torch.float64)

    def loss(logits):
        return upsampled_cross_entropy(logits, labels, class_weights=weights, label_smoothing=0.1)

    assert torch.autograd.gradcheck(loss, logits)


def test_all_ignored_gives_zero_loss_and_gradient():
    logits, labels = example()
    for smoothing in (0.0, 0.1):
        loss = upsampled_cross_entropy(logits, torch.full_like(labels, 255), label_smoothing=smoothing)
        assert loss.item() == 0 and torch.autograd.grad(loss, logits)[0].count_nonzero() == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("ignore_index", [255, -100, 2])
def test_ignore_index_of_any_value_and_labels_of_any_integer_type(ignore_index, dtype):
    logits, labels = example(ignored=2)
    if not (dtype == torch.uint8 and ignore_index == -100):
        labels[labels == 2] = ignore_index
    plain = plain_cross_entropy(logits, labels, ignore_index=ignore_index)
    assert_same_loss(logits, upsampled_cross_entropy(logits, labels.to(dtype), ignore_index=ignore_index), plain)


def test_one_class_matches_binary_cross_entropy():
    logits, labels = example(classes=1)
    valid = labels != 255
    pixels = upsample(logits, labels.shape[1:])[:, 0]
    plain = F.binary_cross_entropy_with_logits(pixels[valid], labels[valid].float())
    assert_same_loss(logits, upsampled_cross_entropy(logits, labels), plain)


@pytest.mark.parametrize("classes", [5, 17])
@pytest.mark.parametrize("size_out", [(24, 28), (23, 27)])
def test_extreme_logits_neither_overflow_nor_underflow(size_out, classes):
    logits, labels = example(size_out=size_out, classes=classes)
    logits = (500 * logits).detach()
    plain = plain_cross_entropy(logits.double(), labels).float()
    torch.testing.assert_close(upsampled_cross_entropy(logits, labels), plain, rtol=1e-5, atol=0)  # rounding of logits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(dtype):
    logits, labels = example()
    half = logits.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):  # must not reach the inside
        ours = upsampled_cross_entropy(half, labels, label_smoothing=0.1)
        label_map = upsampled_argmax(half, (24, 28))
        places = [upsampling.positions(*pair, False) for pair in ((6, 24), (7, 28))]
        assert torch.equal(upsampling.argmax_at(half, *places), label_map)
    exact = half.detach().float().requires_grad_()
    plain = plain_cross_entropy(exact, labels, label_smoothing=0.1)
    torch.testing.assert_close(ours, plain, **CLOSE[torch.float32])
    gradient, plain_gradient = torch.autograd.grad(ours, half)[0], torch.autograd.grad(plain, exact)[0]
    torch.testing.assert_close(gradient, plain_gradient.to(dtype), rtol=1e-2, atol=1e-6)  # one rounding
    assert torch.equal(label_map, upsampled_argmax(exact, (24, 28)))


@pytest.mark.parametrize("strides", ["channels_last", "sliced", "transposed"])
def test_strides_do_not_change_the_result(strides):
    logits, labels = example(size_out=(18, 21))
    other = {
        "channels_last": lambda: logits.detach().contiguous(memory_format=torch.channels_last),
        "sliced": lambda: logits.detach().repeat(1, 2, 1, 2)[:, :5, :, :7],
        "transposed": lambda: logits.detach().mT.contiguous().mT,
    }[strides]().requires_grad_()
    ours, expected = upsampled_cross_entropy(other, labels), upsampled_cross_entropy(logits, labels)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(torch.autograd.grad(ours, other), torch.autograd.grad(expected, logits))
    assert torch.equal(upsampled_argmax(other, (18, 21)), upsampled_argmax(logits, (18, 21)))


def test_bad_input_gets_a_clear_error():
    logits, labels = example()
    for label in (5, -1, 254):
        labels[0, 3, 3] = label
        with pytest.raises(ValueError, match=rf"label {label} is neither in \[0, 5\) nor the ignore index 255"):
            upsampled_cross_entropy(logits, labels)
    with pytest.raises(ValueError, match="do not fit logits"):
        upsampled_cross_entropy(logits, labels[:1])
    for fractions in (labels / 255, labels.double()):  # the second would be right, but how would anyone know
        with pytest.raises(ValueError, match=r"labels are torch.float(32|64); give class ids as integers"):
            upsampled_cross_entropy(logits, fractions)
    with pytest.raises(ValueError, match="class_weights"):
        upsampled_cross_entropy(logits, labels, class_weights=torch.ones(4))


def test_full_size_logits_are_never_allocated():
    logits, labels = example((32, 32), (128, 128), classes=100, batch=8)

    def largest_allocation(function):
        with torch.profiler.profile(profile_memory=True) as profile:
            function()
        return max(event.self_cpu_memory_usage for event in profile.events())

    numel = labels.numel() * 100
    assert largest_allocation(lambda: plain_cross_entropy(logits, labels)) >= 4 * numel  # so this does measure it
    blocks = 4 * 2 * upsampling.BLOCK_NUMEL_CPU  # two of them at most
    assert largest_allocation(lambda: upsampled_cross_entropy(logits, labels).backward()) <= blocks < numel
    assert largest_allocation(lambda: upsampled_argmax(logits, (128, 128))) <= blocks / 2


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(use_reentrant):
    logits, labels = example()
    checkpoint(upsampled_cross_entropy, logits, labels, use_reentrant=use_reentrant).backward()
    (expected,) = torch.autograd.grad(plain_cross_entropy(logits, labels), logits)
    torch.testing.assert_close(logits.grad, expected, **CLOSE[torch.float32])


def test_no_gradient_is_computed_without_need(monkeypatch):
    logits, labels = example()
    arguments = (logits.detach(), labels, torch.ones(5), 255, 0.0, False)
    assert [upsampling._summed_loss(*arguments, needed)[2].numel() for needed in (False, True)] == [0, logits.numel()]
    needed, summed_loss = [], upsampling._summed_loss
    monkeypatch.setattr(upsampling, "_summed_loss", lambda *given: needed.append(given[-1]) or summed_loss(*given))
    with torch.no_grad():
        assert not upsampled_cross_entropy(logits, labels).requires_grad
    assert upsampled_cross_entropy(logits.detach(), labels) == upsampled_cross_entropy(logits, labels)
    assert needed == [False, False, True]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_without_graph_breaks_equals_eager(backend):
    torch._dynamo.reset()
    logits, labels = example()
    loss = torch.compile(upsampled_cross_entropy, fullgraph=True, backend=backend)
    plain = plain_cross_entropy(logits, labels, label_smoothing=0.1)
    assert_same_loss(logits, loss(logits, labels, label_smoothing=0.1), plain)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss(logits, labels), upsampled_cross_entropy(logits, labels))
    with pytest.raises(ValueError, match="label 7"):
        loss(logits, labels.clamp(max=7), label_smoothing=0.1)
    label_map = torch.compile(lambda logits: upsampled_argmax(logits, (24, 28)), fullgraph=True, backend=backend)
    assert torch.equal(label_map(logits), upsampled_argmax(logits, (24, 28)))


def test_operators_satisfy_torch_library():
    logits, labels = example()
    torch.library.opcheck(upsampling._summed_loss, (logits, labels, torch.ones(5), 255, 0.1, False, True))
    torch.library.opcheck(upsampling._label_map, (logits.detach(), 24, 28, False))


def test_a_second_copy_of_the_module_can_be_loaded():
    """Beside a checkpoint on the Hub the file travels as remote code: also twice under one name, after a change."""
    logits, labels = example()
    expected = upsampled_cross_entropy(logits, labels)
    for _ in range(2):
        spec = importlib.util.spec_from_file_location("transformers_modules.copy_of.upsampling", upsampling.__file__)
        copy = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(copy)
        assert copy.upsampled_cross_entropy(logits, labels) == expected == upsampled_cross_entropy(logits, labels)


def _distributed_gradient(rank, folder):
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(os.path.join(folder, "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    logits, labels = example(ignored=1)
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Conv2d(5, 5, 3, padding=1))
    upsampled_cross_entropy(model(logits[rank : rank + 1].detach()), labels[rank : rank + 1]).backward()
    if rank == 0:
        torch.save(model.module.weight.grad, os.path.join(folder, "gradient.pt"))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_gradient_of_the_mean_loss(tmp_path):
    torch.multiprocessing.spawn(_distributed_gradient, (str(tmp_path),), nprocs=2)
    logits, labels = example(ignored=1)
    torch.manual_seed(0)
    model = torch.nn.Conv2d(5, 5, 3, padding=1)
    losses = [plain_cross_entropy(model(logits[i : i + 1].detach()), labels[i : i + 1]) for i in range(2)]
    (sum(losses) / 2).backward()
    torch.testing.assert_close(torch.load(tmp_path / "gradient.pt"), model.weight.grad, **CLOSE[torch.float32])


@pytest.mark.parametrize("classes", [3, 17])
def test_no_value_is_waited_for_on_a_gpu(classes):
    """A tensor on the meta device has no values: whatever asks for one, or for the number of some, raises."""
    logits = torch.empty(2, classes, 6, 7, device="meta")
    labels = torch.empty(2, 24, 28, dtype=torch.long, device="meta")
    loss = upsampling._summed_loss._init_fn(logits, labels, torch.ones(classes, device="meta"), 255, 0.1, False, True)
    assert [result.shape for result in loss] == [(), (), logits.shape]
    label_map = upsampling._best_class(logits, upsampling.Cells.of_size(logits, (24, 28), False))
    assert label_map.shape == labels.shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("classes", [3, 17])
def test_gpu_equals_cpu(classes):
    logits, labels = example(classes=classes)
    on_gpu = logits.detach().cuda().requires_grad_()
    ours, expected = upsampled_cross_entropy(on_gpu, labels.cuda()), upsampled_cross_entropy(logits, labels)
    torch.testing.assert_close(ours.cpu(), expected, **CLOSE[torch.float32])
    gradient, expected = torch.autograd.grad(ours, on_gpu)[0], torch.autograd.grad(expected, logits)[0]
    torch.testing.assert_close(gradient.cpu(), expected, **CLOSE[torch.float32])
    assert torch.equal(upsampled_argmax(on_gpu, (24, 28)).cpu(), upsampled_argmax(logits, (24, 28)))


@pytest.mark.parametrize("name", CASES)
def test_models_refuse_what_are_no_images(name):
    model, side = CASES[name].make_model(), CASES[name].image_size
    for shape, dtype in (((1, 4, side, side), None), ((3, side, side), None), ((1, 3, side, side), torch.uint8)):
        with pytest.raises(ValueError, match=r"pixel_values are torch.* expected are floats of shape \(B, 3, H, W\)"):
            model(torch.zeros(shape, dtype=dtype))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_models_refuse_labels_of_another_size(name, training):
    """Transposed ones, too; whichever way they are given."""
    side = CASES[name].image_size
    model, images = CASES[name].make_model().train(training), torch.randn(2, 3, side, 2 * side)
    for size in ((2 * side, side), (side, side)):
        labels = torch.zeros(2, *size, dtype=torch.long)
        message = rf"labels of shape \(2, {size[0]}, {size[1]}\) do not fit pixel_values .* {side}, {2 * side}\)"
        for inputs, named in (([images, labels], {}), ([images], {"labels": labels}),
                              ([], {"pixel_values": images, "labels": labels})):  # fmt: skip
            with pytest.raises(ValueError, match=message):
                model(*inputs, **named)
    assert model(images, labels=torch.zeros(2, side // 2 + 1, side, dtype=torch.long)).loss.isfinite()  # half as large
    maps, labels = model.backbone(images).feature_maps, torch.zeros(2, side, 2 * side, dtype=torch.long)
    assert model(images, labels=labels, feature_maps=maps).loss.isfinite()
