"""Triton's loss and label map against F.interpolate with F.cross_entropy or argmax, in its interpreter; and compiled.

The interpreter is chosen before Triton is imported, so the cases run in a process of their own: this file itself.
"""

import os
import subprocess
import sys

import pytest
import torch
from test_upsampling import CLOSE, assert_same_loss, example, plain_cross_entropy, upsample

from hf_segtx.models import upsampling
from hf_segtx.models.upsampling import upsampled_argmax, upsampled_cross_entropy


SMALL = [  # (h, w) -> (H, W), classes
    ((1, 3), (4, 7), 3),
    ((2, 2), (5, 8), 2),
]
ALL = [((3, 2), (2, 3), 5), ((1, 1), (3, 2), 4), ((1, 4), (9, 1), 2), ((2, 5), (8, 20), 9), ((4, 3), (5, 11), 17)]


def check_loss_and_label_map(size_in, size_out, classes, align_corners):
    logits, labels = example(size_in, size_out, classes, batch=1)
    labels[:, 0, 0] = 1  # one valid pixel at least, or the plain loss is NaN
    options = {"align_corners": align_corners, "label_smoothing": 0.1}
    weights = torch.linspace(0.5, 2, classes)
    ours = upsampled_cross_entropy(logits, labels, class_weights=weights, **options)
    assert_same_loss(logits, ours, plain_cross_entropy(logits, labels, weight=weights, **options))
    pixels = upsample(logits.detach(), size_out, align_corners)
    best = pixels.topk(2, dim=1).values
    unique = best[:, 0] - best[:, 1] > 1e-5  # rounding of values up to 20 in float32
    label_map = upsampled_argmax(logits, size_out, align_corners=align_corners)
    assert label_map.dtype == torch.int64 and unique.float().mean() > 0.9
    assert torch.equal(label_map[unique], pixels.argmax(1)[unique])


def check_one_class_in_bfloat16():
    """Also with other strides, labels of 8 bits, another ignore index."""
    logits, labels = example((2, 3), (4, 6), classes=1, ignored=7)
    valid = labels != 7
    half = logits.detach().mT.contiguous().mT.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):  # must not reach the inside
        ours = upsampled_cross_entropy(half, labels.to(torch.uint8).mT.contiguous().mT, ignore_index=7)
        label_map = upsampled_argmax(half, (4, 6))
    exact = half.detach().float().requires_grad_()
    pixels = upsample(exact, (4, 6))[:, 0]
    plain = torch.nn.functional.binary_cross_entropy_with_logits(pixels[valid], labels[valid].float())
    torch.testing.assert_close(ours, plain, **CLOSE[torch.float32])
    gradient, plain_gradient = torch.autograd.grad(ours, half)[0], torch.autograd.grad(plain, exact)[0]
    torch.testing.assert_close(gradient, plain_gradient.bfloat16(), rtol=1e-2, atol=1e-6)  # one rounding
    assert torch.equal(label_map, (pixels > 0).long())


def check_extremes():
    logits, labels = example((1, 2), (2, 4))
    logits = (500 * logits).detach()
    plain = plain_cross_entropy(logits.double(), labels).float()
    torch.testing.assert_close(upsampled_cross_entropy(logits, labels), plain, rtol=1e-5, atol=0)  # rounding of logits
    assert upsampled_cross_entropy(logits, torch.full_like(labels, 255)) == 0
    labels[0, 0, 0] = 5  # is no class
    assert upsampled_cross_entropy(logits, labels).isnan()
    twice = upsampled_cross_entropy(logits.double(), labels.clamp(max=4))  # not Triton's, which has 32 bits
    assert twice.dtype == torch.float64


def main(cases):
    from triton import language

    from hf_segtx.models import triton_kernels

    calls = dict.fromkeys(("summed_loss", "label_map"), 0)

    def counted(name, kernel):
        def run(*arguments):
            calls[name] += 1
            return kernel(*arguments)

        return run

    for name in calls:
        setattr(triton_kernels, name, counted(name, getattr(triton_kernels, name)))
    triton_kernels.COLUMNS, triton_kernels.TILE = language.constexpr(2), 16  # several parts and tiles of small maps
    for case in cases:
        for align_corners in (False, True):
            check_loss_and_label_map(*case, align_corners)
    assert calls == dict.fromkeys(calls, 2 * len(cases)), calls
    check_one_class_in_bfloat16()
    check_extremes()
    assert upsampling.USES_TRITON


def run_in_interpreter(which):
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "HF_SEGTX_TRITON": "1"}
    done = subprocess.run([sys.executable, __file__, which], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_small_maps_in_the_interpreter():
    run_in_interpreter("small")


@pytest.mark.slow
def test_all_maps_in_the_interpreter():
    run_in_interpreter("all")


@pytest.mark.slow
def test_compiles_for_a_gpu(tmp_path, monkeypatch):
    """What the interpreter does not ask for: equal types on all ways, and registers for everything."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    from hf_segtx.models import triton_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    geometry = ("i32",) * 5 + ("fp32",) * 5
    constants = triton_kernels._launch(torch.empty(16, 150, 128, 128, device="meta"), (512, 512), False)[2]
    of_loss = {"labels_pointer": "*i64", "class_weights_pointer": "*fp32", "gradient_pointer": "*fp32"}
    of_loss |= {"sums_pointer": "*fp32", "ignore_index": "i32", "smoothing": "fp32", "strides": ("i32",) * 11}
    of_label_map = {"result_pointer": "*i64", "strides": ("i32",) * 4}
    for kernel, signature, more in (
        (triton_kernels._loss_kernel, of_loss, {"WITH_GRADIENT": True}),
        (triton_kernels._label_map_kernel, of_label_map, {}),
    ):
        signature = signature | {"logits_pointer": "*bf16", "geometry": geometry}
        values = constants | more
        signature = {name: "constexpr" if name in values else signature[name] for name in kernel.arg_names}
        source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=values)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        assert ".target sm_90" in compiled.asm["ptx"] and compiled.asm["cubin"]


def test_without_triton_whoever_asks_for_it_is_told(monkeypatch):
    """And nobody else: not on a CPU."""
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "hf_segtx.models.triton_kernels", raising=False)
    monkeypatch.setattr(upsampling, "USES_TRITON", True)
    logits, labels = example(classes=3)
    assert upsampled_argmax(logits, (24, 28)).shape == labels.shape
    monkeypatch.setattr(upsampling, "TRITON_DEVICES", ("cpu",))
    with pytest.raises(ImportError, match="HF_SEGTX_TRITON=1 asks for Triton: `pip install triton`"):
        upsampled_argmax(logits, (24, 28))
    with pytest.raises(ImportError, match="pip install triton"):
        upsampled_cross_entropy(logits, labels)
    assert upsampled_argmax(logits.double(), (24, 28)).shape == labels.shape  # which no kernel computes
    monkeypatch.setattr(upsampling, "USES_TRITON", False)
    assert upsampled_argmax(logits, (24, 28)).shape == labels.shape


if __name__ == "__main__":
    main(SMALL if sys.argv[1] == "small" else ALL)
