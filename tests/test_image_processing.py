"""Image processors: against transformers' SegFormer processor, PIL, mmcv's rule, and direct formulas."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from small_data import png
from transformers import SegformerImageProcessor, SegformerImageProcessorPil
from transformers.image_utils import SizeDict

from hf_segtx.data import read_image
from hf_segtx.models import image_processing_segtx as processing


BACKENDS = [processing.SegFormerImageProcessor, processing.SegFormerImageProcessorPil]
KEEP_RATIO = {"shortest_edge": 48, "longest_edge": 160}


@pytest.fixture(params=BACKENDS, ids=["torchvision", "pil"])
def backend(request):
    return request.param


def picture(height, width, channels=3):
    """A smooth picture with some noise, as photographs are: uint8 (height, width, channels)."""
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([127 + 100 * np.sin((channel + 1) * x / 17 + y / 23) for channel in range(channels)], -1)
    return (smooth + np.random.randint(0, 20, smooth.shape)).clip(0, 255).astype(np.uint8)


def label_map(height, width, labels=9):
    """Rectangles of labels 0 to `labels` - 1 and some 255: uint8 (height, width)."""
    coarse = np.random.randint(0, labels + 1, (height // 8 + 1, width // 8 + 1))
    fine = coarse.repeat(8, 0).repeat(8, 1)[:height, :width]
    return np.where(fine == labels, 255, fine).astype(np.uint8)


def output(*shape):
    return SimpleNamespace(logits=torch.randn(*shape))


# Preprocessing


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (processing.SegFormerImageProcessor, SegformerImageProcessor),
        (processing.SegFormerImageProcessorPil, SegformerImageProcessorPil),
    ],
    ids=["torchvision", "pil"],
)
def test_matches_transformers_segformer(ours, theirs):
    images = [Image.fromarray(picture(120, 171)), Image.fromarray(picture(700, 523))]
    maps = [Image.fromarray(label_map(120, 171)), Image.fromarray(label_map(700, 523))]
    wanted = theirs()(images, maps, do_reduce_labels=True, return_tensors="pt")
    seen = ours(size={"height": 512, "width": 512})(images, maps, do_reduce_labels=True, return_tensors="pt")
    # The same operations in the same order; only the rounding of a fused multiply-add may differ.
    torch.testing.assert_close(seen["pixel_values"], wanted["pixel_values"], rtol=0, atol=1e-6)
    assert torch.equal(seen["labels"], wanted["labels"])


def test_backends_agree():
    images = [picture(90, 131), picture(123, 60)]
    maps = [label_map(90, 131), label_map(123, 60)]
    first, second = (cls(size=KEEP_RATIO)(images, maps, return_tensors="pt") for cls in BACKENDS)
    # Both round the resized image to whole grey levels, each in its own way: one level is 1 / 255 / 0.225 = 0.018.
    torch.testing.assert_close(first["pixel_values"], second["pixel_values"], rtol=0, atol=0.019)
    assert torch.equal(first["labels"], second["labels"])


@pytest.mark.parametrize(
    "height, width, size, wanted",
    [  # by hand, as mmcv.imrescale(scale=(2048, 512)) does: factor, then int(edge * factor + 0.5)
        (512, 683, {"shortest_edge": 512, "longest_edge": 2048}, (512, 683)),
        (300, 500, {"shortest_edge": 512, "longest_edge": 2048}, (512, 853)),  # 500 * 512 / 300 = 853.33
        (375, 500, {"shortest_edge": 512, "longest_edge": 2048}, (512, 683)),  # 682.67 rounds up
        (100, 1000, {"shortest_edge": 512, "longest_edge": 2048}, (205, 2048)),  # bounded by 2048: 204.8
        (1, 5000, {"shortest_edge": 512, "longest_edge": 2048}, (1, 2048)),  # never 0
        (5000, 1, {"shortest_edge": 512, "longest_edge": 2048}, (2048, 1)),
        (300, 500, {"shortest_edge": 512}, (512, 853)),
        (300, 500, {"height": 64, "width": 32}, (64, 32)),
    ],
)
def test_resized_size_matches_mmcv_rule(height, width, size, wanted):
    assert processing.resized_size(height, width, SizeDict(**size)) == wanted


def test_unknown_size_is_refused(backend):
    for size in ({"height": 64}, {"width": 64}):
        with pytest.raises(ValueError, match="give height and width, or shortest_edge"):
            processing.resized_size(20, 30, SizeDict(**size))
    with pytest.raises(ValueError, match="shortest_edge"):
        backend(size={"longest_edge": 64})(picture(20, 30), return_tensors="pt")


@pytest.mark.parametrize("size", [(7, 11), (50, 64), (33, 90)])
def test_nearest_resize_matches_pil_and_torch(size):
    labels = label_map(47, 61)
    seen = processing.nearest_resize(torch.from_numpy(labels), size)
    assert np.array_equal(seen, Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))
    exact = F.interpolate(torch.from_numpy(labels)[None, None].float(), size, mode="nearest-exact")[0, 0]
    assert torch.equal(seen.float(), exact)


def test_batch_is_padded_right_and_bottom(backend):
    images, maps = [picture(60, 90), picture(90, 60)], [label_map(60, 90), label_map(90, 60)]
    processor = backend(size=KEEP_RATIO, size_divisor=32)
    batch = processor(images, maps, return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 3, 96, 96) and batch["labels"].shape == (2, 96, 96)
    for index, (height, width) in enumerate([(48, 72), (72, 48)]):
        alone = backend(size=KEEP_RATIO, size_divisor=None)(images[index], maps[index], return_tensors="pt")
        assert alone["pixel_values"].shape[-2:] == (height, width)
        assert torch.equal(batch["pixel_values"][index, :, :height, :width], alone["pixel_values"][0])
        assert torch.equal(batch["labels"][index, :height, :width], alone["labels"][0])
        for name, fill in (("pixel_values", 0), ("labels", 255)):
            assert (batch[name][index, ..., height:, :] == fill).all()
            assert (batch[name][index, ..., width:] == fill).all()


def test_no_padding_on_request(backend):
    processor = backend(size=KEEP_RATIO, do_pad=False)
    batch = processor([picture(60, 90), picture(90, 60)], [label_map(60, 90), label_map(90, 60)])
    kind = np.ndarray if backend is BACKENDS[1] else torch.Tensor
    assert all(isinstance(array, kind) for arrays in batch.values() for array in arrays)
    assert [tuple(image.shape) for image in batch["pixel_values"]] == [(3, 48, 72), (3, 72, 48)]


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint16, np.int64])
def test_reduced_labels(backend, dtype):
    labels = np.array([[0, 1, 2], [150, 254, 255]], dtype)
    processor = backend(do_resize=False, do_reduce_labels=True, size_divisor=None, minimum_size=None)
    reduced = processor(picture(2, 3), labels, return_tensors="pt")["labels"]
    assert reduced.dtype == torch.int64 and reduced.tolist() == [[[255, 0, 1], [149, 253, 255]]]
    torchs_own = np.full((2, 3), -100)  # what it ignores
    assert (processor(picture(2, 3), torchs_own, return_tensors="pt")["labels"] == 255).all()


def test_palette_masks_keep_their_index(backend):
    labels = label_map(16, 24)
    mask = Image.fromarray(labels, mode="L").convert("P")
    mask.putpalette([(17 * index) % 256 for index in range(768)])
    encoded = backend(do_resize=False, size_divisor=None, minimum_size=None)(picture(16, 24), mask, return_tensors="pt")
    assert np.array_equal(encoded["labels"][0], labels)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1"])
def test_pil_modes_become_rgb(backend, mode):
    image = Image.fromarray(picture(40, 30)).convert(mode)
    seen = backend(do_resize=False)(image, return_tensors="pt")["pixel_values"]
    wanted = backend(do_resize=False)(image.convert("RGB"), return_tensors="pt")["pixel_values"]
    assert torch.equal(seen, wanted)


def test_pixels_for_a_pipelines_batch_have_one_size(backend):
    processor = backend(do_resize=False, do_pad=False)
    assert processor.padding_value is None  # pipelines ask for it before they make a batch
    high, wide = (processor(picture(*size), return_tensors="pt")["pixel_values"] for size in ((50, 40), (40, 50)))
    assert type(torch.cat([high, high], 0)) is torch.Tensor
    for given, others in (([high, wide], (0,)), ((wide, high), ())):
        with pytest.raises(ValueError, match="images of 40x50 and 50x40 pixels in one batch"):
            torch.cat(given, *others)


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
@pytest.mark.parametrize("layout", ["numpy first", "numpy last", "torch first"])
def test_any_number_of_channels(backend, channels, layout):
    size = {"size": KEEP_RATIO, "size_divisor": None}
    processor = backend(**size, image_mean=[0.4] * channels, image_std=[0.2] * channels)
    image = picture(96, 144, channels)
    given = image if layout == "numpy last" else image.transpose(2, 0, 1)
    seen = processor(torch.from_numpy(given) if "torch" in layout else given, return_tensors="pt")["pixel_values"]
    # Each channel alone through the same processor with three channels.
    wanted = [
        backend(**size, image_mean=[0.4] * 3, image_std=[0.2] * 3)(
            image[..., channel : channel + 1].repeat(3, -1), return_tensors="pt"
        )["pixel_values"][0, 0]
        for channel in range(channels)
    ]
    assert seen.shape == (1, channels, 48, 72)
    torch.testing.assert_close(seen[0], torch.stack(wanted))


def test_float_images_are_not_rounded(backend):
    image = np.random.rand(3, 60, 80).astype(np.float32)
    processor = backend(size={"height": 30, "width": 40}, do_rescale=False, do_normalize=False)
    seen = processor(image, return_tensors="pt")["pixel_values"]
    wanted = F.interpolate(torch.from_numpy(image)[None], (30, 40), mode="bilinear", antialias=True)
    torch.testing.assert_close(seen, wanted, rtol=0, atol=1e-6)  # float32 rounding


def test_input_kinds_agree(backend):
    image = picture(50, 70)
    kinds = [Image.fromarray(image), image, image.transpose(2, 0, 1), torch.from_numpy(image).permute(2, 0, 1)]
    for format in ("PNG", "TIFF"):  # what was read from a file says so
        kinds.append(kinds[0].copy())
        kinds[-1].format = format
    processors = backend(size=KEEP_RATIO), backend(size=KEEP_RATIO, do_convert_rgb=False)
    first, *others = (each(kind, return_tensors="pt")["pixel_values"] for each in processors for kind in kinds)
    assert all(torch.equal(first, other) for other in others)
    assert type(first) is torch.Tensor
    settings = [{"size": KEEP_RATIO, "image_mean": mean, "image_std": mean} for mean in (0.4, [0.4] * 3)]
    for given in (image, image[..., :1]):
        one, three = (backend(**each)(given, return_tensors="pt")["pixel_values"] for each in settings)
        assert torch.equal(one, three)


def deep_kinds(values):
    """Integers (H, W) of 0 .. 65535 in the forms that people give."""
    wide = Image.fromarray(values.astype(np.int32))
    wide.format = "PNG"  # what Pillow before 11 makes of a PNG of 16 bits
    big_endian = Image.frombytes("I;16B", values.shape[::-1], values.astype(">u2").tobytes())
    yield from (Image.fromarray(values), big_endian, wide, values[..., None], values[None], values.astype(">u2")[None])
    yield from (
        values[::-1, ::-1][None, ::-1, ::-1],
        torch.from_numpy(values)[None],
        torch.from_numpy(values)[..., None],
    )


def test_16_bits_are_what_the_training_reader_makes_of_them(backend, tmp_path):
    """Grey: 65535 is 255, in every form; 100 is not white, as Pillow's conversion to RGB would have it."""
    values = np.random.randint(0, 65536, (40, 56)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "grey.png")
    settings = {"size": {"height": 20, "width": 28}, "return_tensors": "pt"}
    expected = backend()(read_image(tmp_path / "grey.png"), **settings)["pixel_values"]
    assert expected.std() > 0.2
    for given in (Image.open(tmp_path / "grey.png"), *deep_kinds(values)):
        assert torch.equal(backend()(given, **settings)["pixel_values"], expected)
    plain = backend(do_resize=False, do_pad=False, do_normalize=False)
    plain = plain(values[None], return_tensors="pt")["pixel_values"]
    assert (plain[0].double() - torch.from_numpy(values / 65535)).abs().max() < 1e-6  # float32 rounding
    (tmp_path / "rgb.png").write_bytes(png(np.stack([values, values // 2, values // 3], -1)))
    colors = read_image(tmp_path / "rgb.png")
    for given in (
        colors,
        np.stack([values, values // 2, values // 3], -1),
        torch.from_numpy(values)[None].repeat(3, 1, 1),
    ):
        result = backend()(given, **settings)["pixel_values"]
        assert (result[0, 0] - expected[0, 0]).abs().max() < 1e-6  # the red channel, normalised alike


@pytest.mark.parametrize("size", [(1, 40), (3, 40), (4, 40), (40, 1), (40, 3), (3, 3), (1, 1)])
def test_images_of_few_rows_or_columns_are_not_taken_for_channels(backend, size):
    image = picture(*size)
    processor = backend(do_resize=False, do_pad=False, do_normalize=False, do_rescale=False)
    for given in (Image.fromarray(image), image, torch.from_numpy(image.transpose(2, 0, 1))):
        (seen,) = processor(given)["pixel_values"]
        assert np.array_equal(seen, image.transpose(2, 0, 1))
    (seen,) = processor(image.transpose(2, 0, 1), input_data_format="channels_first")["pixel_values"]
    assert np.array_equal(seen, image.transpose(2, 0, 1))


def test_transparency_is_dropped_as_by_the_training_reader(backend, tmp_path):
    """Pillow's RGB of the same picture; a pipeline of transformers does so, too."""
    image = np.dstack([picture(20, 30), np.random.randint(0, 256, (20, 30))]).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    processor = backend(do_resize=False, do_pad=False)
    expected = processor(Image.fromarray(image[..., :3]), return_tensors="pt")["pixel_values"]
    kinds = [image, image.transpose(2, 0, 1), Image.fromarray(image), read_image(tmp_path / "a.png")]
    kinds += map(torch.from_numpy, kinds[:2])
    assert all(torch.equal(processor(kind, return_tensors="pt")["pixel_values"], expected) for kind in kinds)


@pytest.mark.parametrize("width", [3, 30])
def test_grey_arrays_of_two_axes_are_grey_pictures(backend, width):
    grey = picture(20, width)[..., 0]
    expected = backend()(Image.fromarray(grey), return_tensors="pt").pixel_values
    for given in (grey, torch.from_numpy(grey), [grey]):
        assert torch.equal(backend()(given, return_tensors="pt").pixel_values, expected)
    same = backend()(grey, grey, input_data_format="channels_first", return_tensors="pt")
    assert torch.equal(same.pixel_values, expected) and same.labels.shape[1:] == expected.shape[2:]


def test_pictures_in_colour_for_a_grey_model(backend):
    image = Image.fromarray(picture(20, 30))
    processor = backend(image_mean=[0.5], image_std=[0.5], do_resize=False, do_pad=False)
    expected = processor(image.convert("L"), return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(image, return_tensors="pt")["pixel_values"], expected)
    processor = backend(image_mean=[0.5] * 4, image_std=[0.5] * 4, do_resize=False, do_pad=False)
    expected = processor(np.asarray(image.convert("RGBA")), return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(image, return_tensors="pt")["pixel_values"], expected)
    with pytest.raises(ValueError, match="image of 1 channels"):
        backend(do_convert_rgb=False)(image.convert("L"))


def test_label_maps_of_all_kinds_are_the_ids(backend):
    ids = label_map(16, 24)
    two = (ids > 3).astype(np.uint8)
    grey = Image.fromarray(ids.astype(np.uint16))
    kinds = [
        grey,
        Image.frombytes("I;16B", ids.shape[::-1], ids.astype(">u2").tobytes()),
        Image.fromarray(ids.astype(np.int32)),
        Image.fromarray(ids.astype(np.float32)),
    ]
    kinds += [ids.astype(kind) for kind in (">u2", ">i4", "u4", "u8", "i8", "f2", ">f8")]
    kinds += [
        ids[..., None],
        ids[None],
        ids[None, None],
        torch.from_numpy(ids),
        torch.from_numpy(ids.astype(np.uint16))[None],
        ids[:, ::-1][:, ::-1],
    ]
    processor = backend(do_resize=False, do_pad=False)
    for given in kinds:
        labels = processor(picture(16, 24), given, return_tensors="pt")["labels"]
        assert labels.dtype == torch.int64 and np.array_equal(labels[0], ids)
    for given in (Image.fromarray(two > 0), two > 0, torch.from_numpy(two > 0)):
        assert np.array_equal(processor(picture(16, 24), given, return_tensors="pt")["labels"][0], two)
    assert processing.pil_numbers(Image.fromarray(two > 0)).dtype == np.uint8
    batch = np.stack([ids, two])
    for given in (batch, list(batch), torch.from_numpy(batch), [batch[0], Image.fromarray(two)], batch[:, None]):
        labels = processor([picture(16, 24)] * 2, given, return_tensors="pt")["labels"]
        assert np.array_equal(labels, batch)
    assert (processor(picture(16, 24), np.full((16, 24), -100), return_tensors="pt")["labels"] == -100).all()


@pytest.mark.parametrize(
    "given, words",
    [
        (Image.new("RGB", (30, 20)), ["mode RGB", "label ids", "map its colours"]),
        (Image.new("LA", (30, 20)), ["mode LA"]),
        (np.zeros((20, 30, 3), np.uint8), ["(20, 30, 3)", "RGB picture"]),
        (np.zeros((3, 20, 30), np.uint8), ["(3, 20, 30)", "RGB picture"]),
        (np.zeros((20, 30, 4), np.uint8), ["(20, 30, 4)", "RGB picture"]),
        (np.zeros((1, 1, 1, 20, 30), np.uint8), ["(1, 1, 1, 20, 30)"]),
        (np.zeros((20, 30, 7), np.uint8), ["(20, 30, 7)", "(20, 30) (height, width); give one map"]),
        (np.zeros((30, 20), np.uint8), ["(30, 20)", "its image (20, 30)"]),
        (np.full((20, 30), 2 / 255), ["fractions (first 0.00784314)", "ToTensor"]),
        (np.linspace(0.25, 1, 600).reshape(20, 30), ["fractions (first 0.25)"]),
        (np.full((20, 30), np.nan), ["fractions (first nan)"]),
        (np.full((20, 30), -1), ["holds -1", "255 (or -100)"]),
        (np.full((20, 30), -101), ["holds -101"]),
        (np.full((20, 30), "a"), ["<U1"]),
        ([[0] * 30] * 20, ["20 segmentation maps for 1 images"]),
    ],
    ids=lambda value: None if isinstance(value, list) else "",
)
def test_what_is_no_label_map_is_refused_with_the_cure(backend, given, words):
    with pytest.raises(ValueError) as raised:
        backend()(picture(20, 30), given, return_tensors="pt")
    assert all(word in str(raised.value) for word in words), str(raised.value)
    assert len(str(raised.value)) < 400


def test_two_maps_of_an_image_one_pixel_wide_are_refused():
    column = np.arange(20)[:, None]
    for given in (column, column[None], column[..., None]):
        assert np.array_equal(processing.label_map(given, (20, 1)), column)
    with pytest.raises(ValueError, match=r"\(2, 20, 1\), its image \(20, 1\)"):
        processing.label_map(np.stack([column, column]), (20, 1))


@pytest.mark.parametrize(
    "images, maps, cure",
    [
        (picture(20, 30), label_map(20, 31), "one map of label ids"),
        ([picture(20, 30)] * 2, [label_map(20, 30)], "one map of label ids"),
        ([picture(20, 30)] * 2, label_map(20, 30), "1 segmentation maps for 2 images"),
        (picture(20, 30), Image.fromarray(picture(20, 30)), "a picture of mode RGB, with 3 channels"),
        (picture(20, 30, 6), None, "set image_mean"),
        ([], None, r"images is \[\]; give at least one"),
        (None, None, "images is None; give at least one"),
    ],
    ids=["other size", "other number", "one map", "RGB mask", "channels", "empty list", "none"],
)
def test_bad_input_is_refused_with_the_cure(backend, images, maps, cure):
    with pytest.raises(ValueError, match=cure):
        backend()(images, maps, input_data_format="channels_last", return_tensors="pt")


SETTINGS = {  # taken, and refused
    "do_resize do_reduce_labels": ((True, False), (0, 1, "no", [True], [])),
    "size_divisor minimum_size stretch_divisor": ((1, 65536, None), (0, 65537, True, 2.0, [16])),
    "window_size window_stride": ((1, 65536, [1, 65536], (2, 3)), (0, 65537, [], [1, 2, 3], {"height": 3, "width": 3})),
    "size": ((1, 65536, [2, 3], {"shortest_edge": 2, "longest_edge": None}), (0, {}, {"height": 0, "width": 2}, "2")),
    "image_mean": ((0, -1e9, 1e9, [0.5] * 2**16), (1.1e9, -1.1e9, "0", [], [0, None], [0.5] * (2**16 + 1))),
    "image_std": ((1e-9, 1e9, (0.5,) * 2**16), (0, 1.1e9, [0.5, 0], [], [0.5] * (2**16 + 1))),
    "rescale_factor": ((1e-12, 1 / 255, 1e9), (0, 1.1e9, [1.0])),
    "resample": ((0, 5), (-1, 6, 2.0, [2])),
    "ignore_index": ((-(2**31), 2**31 - 1), (-(2**31) - 1, 2**31, 255.0, [255])),
    "temperature": ((0.1, 10), ([1.0],)),
    "small_images": (("pad", "cut", "enlarge", "resize"), ("crop", None)),
    "averaging": (("probabilities", "logits", "exp"), ("mean", None)),
    "auto_map": (({}, None), ("AutoImageProcessor",)),
}


@pytest.mark.parametrize("names", SETTINGS)
def test_ends_of_ranges_are_taken_and_nothing_beyond(names):
    for name in names.split():
        for value in SETTINGS[names][0]:
            processing.check_settings({name: value})
        for value in SETTINGS[names][1]:
            with pytest.raises(ValueError, match=f"^{name} is "):
                processing.check_settings({name: value})


# Post-processing


def reference_map(logits, padded, own, target, align_corners):
    """Label map (H, W) by NumPy: interpolates rows, then columns, at the place of each target pixel."""
    scores = logits.double().numpy()
    for axis in (1, 2):
        steps, whole, part, size = scores.shape[axis], padded[axis - 1], own[axis - 1], target[axis - 1]
        if align_corners:
            places = np.linspace(0, (part - 1) * (steps - 1) / (whole - 1), size)
        else:
            places = ((np.arange(size) + 0.5) * part / size * steps / whole - 0.5).clip(0, steps - 1)
        below = np.floor(places).astype(int).clip(0, steps - 2)
        shape = [1, 1, 1]
        shape[axis] = size
        share = (places - below).reshape(shape)
        scores = scores.take(below, axis) * (1 - share) + scores.take(below + 1, axis) * share
    return torch.from_numpy((scores[0] > 0).astype(int) if len(scores) == 1 else scores.argmax(0))


def agreement(first, second):
    return (first == second).double().mean().item()


@pytest.mark.parametrize("labels", [1, 7])
def test_post_processing_matches_interpolate(backend, labels):
    outputs, sizes = output(3, labels, 12, 16), [(48, 64), (48, 64), (45, 60)]
    maps = backend(size_divisor=None).post_process_semantic_segmentation(outputs, sizes)
    for logits, size, seen in zip(outputs.logits, sizes, maps, strict=True):
        assert seen.dtype == torch.int64 and seen.shape == size
        wanted = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)
        wanted = (wanted[0, 0] > 0).long() if labels == 1 else wanted[0].argmax(0)
        assert agreement(seen, wanted) > 0.999  # ties at rounding


@pytest.mark.parametrize(
    "settings, sizes, own, padded",
    [
        ({"do_resize": False}, [(40, 64), (64, 33)], [(40, 64), (64, 33)], (64, 64)),
        ({"do_resize": False}, [(50, 61)], [(50, 61)], (64, 64)),
        ({"do_resize": False, "size_divisor": 16}, [(50, 61)], [(50, 61)], (64, 64)),
        ({"size": KEEP_RATIO, "size_divisor": None}, [(60, 90), (90, 60)], [(48, 72), (72, 48)], (72, 72)),
        ({"size": KEEP_RATIO, "size_divisor": 32}, [(61, 97), (200, 123)], [(48, 76), (78, 48)], (96, 96)),
        ({"size": {"height": 30, "width": 50}, "size_divisor": 16}, [(17, 23)], [(30, 50)], (30, 50)),
        ({"size": KEEP_RATIO, "size_divisor": None}, [(61, 97), (61, 97)], [(48, 76), (48, 76)], (48, 76)),
    ],
)
@pytest.mark.parametrize("labels, align_corners", [(1, False), (5, False), (5, True)])
def test_padding_is_removed_exactly(backend, settings, sizes, own, padded, labels, align_corners):
    processor = backend(**settings, align_corners=align_corners)
    assert processor([picture(*size) for size in sizes], return_tensors="pt")["pixel_values"].shape[-2:] == padded
    outputs = output(len(sizes), labels, padded[0] // 4, padded[1] // 4)
    for result, logits, size, part in zip(
        processor.post_process_semantic_segmentation(outputs, sizes, return_segmentation_scores=True),
        outputs.logits,
        sizes,
        own,
        strict=True,
    ):
        wanted = reference_map(logits, padded, part, size, align_corners)
        assert agreement(result.segmentation, wanted) > 0.999  # ties at rounding
        assert result.segmentation_scores.shape == (labels, *size)
        scored = (result.segmentation_scores[0] > 0).long() if labels == 1 else result.segmentation_scores.argmax(0)
        assert agreement(scored, wanted) > 0.999


def test_post_processing_does_not_depend_on_the_batch(backend):
    """The same logits over the image's own pixels, alone and with a taller and wider image in the batch."""
    processor = backend(do_resize=False, size_divisor=None)
    logits = torch.randn(1, 4, 10, 16)
    (alone,) = processor.post_process_semantic_segmentation(SimpleNamespace(logits=logits), [(40, 64)])
    in_batch = F.pad(logits, (0, 4, 0, 10), mode="replicate").repeat(2, 1, 1, 1)
    first, _ = processor.post_process_semantic_segmentation(SimpleNamespace(logits=in_batch), [(40, 64), (80, 80)])
    assert torch.equal(first, alone)


def test_post_processing_without_target_sizes(backend):
    outputs = output(2, 5, 9, 13)
    maps = backend().post_process_semantic_segmentation(outputs)
    assert torch.equal(torch.stack(maps), outputs.logits.argmax(1))


def test_target_sizes_as_tensor_and_wrong_number(backend):
    outputs = output(2, 5, 9, 13)
    maps = backend().post_process_semantic_segmentation(outputs, torch.tensor([[20, 30], [40, 30]]))
    assert [tuple(label_map.shape) for label_map in maps] == [(20, 30), (40, 30)]
    with pytest.raises(ValueError, match="1 target sizes for 2 images"):
        backend().post_process_semantic_segmentation(outputs, [(20, 30)])
    for wrong in ((0, 10), (10.5, 10), (10,), 10, "10", (float("nan"), 10), (float("inf"), 10)):
        with pytest.raises(ValueError, match=r"target_sizes\[1\] is .*; give height and width in whole pixels"):
            backend().post_process_semantic_segmentation(outputs, [(20, 30), wrong])


# Windows


class EdgeModel(torch.nn.Module):
    """Logits at a quarter of the image that depend on neighbouring pixels, so that a window's border shows."""

    def __init__(self, labels):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, labels, 9, stride=4, padding=4)

    @torch.no_grad()
    def forward(self, pixel_values, windows=None):
        return SimpleNamespace(logits=self.conv(pixel_values), windows=windows)


def slow_windows(model, image, window, stride, target, align_corners):
    """Logits (K, H, W) of an image (3, h, w): slide_inference of mmsegmentation, but small images are padded."""
    height, width = image.shape[1:]
    image = F.pad(image, (0, max(window[1] - width, 0), 0, max(window[0] - height, 0)))
    total, count = 0, 0
    tops, lefts = (
        [*range(0, max(size - edge, 0), step), max(size - edge, 0)]
        for size, edge, step in zip((height, width), window, stride, strict=True)
    )
    for top in tops:
        for left in lefts:
            crop = image[None, :, top : top + window[0], left : left + window[1]]
            logits = F.interpolate(model(crop).logits, window, mode="bilinear", align_corners=align_corners)
            around = (left, image.shape[2] - left - window[1], top, image.shape[1] - top - window[0])
            total, count = total + F.pad(logits, around), count + F.pad(torch.ones_like(logits), around)
    merged = (total / count)[..., :height, :width]
    return F.interpolate(merged, target, mode="bilinear", align_corners=align_corners)[0]


@pytest.mark.parametrize(
    "settings, window, stride",
    [
        ({"do_resize": False, "window_size": 32}, (32, 32), (32, 32)),
        ({"do_resize": False, "window_size": 32, "window_stride": 24}, (32, 32), (24, 24)),
        ({"size": KEEP_RATIO, "window_size": [48, 64], "window_stride": [32, 20]}, (48, 64), (32, 20)),
        ({"size": KEEP_RATIO, "window_size": 96, "size_divisor": 32}, (96, 96), (96, 96)),  # larger than the image
    ],
)
@pytest.mark.parametrize("labels, align_corners", [(1, False), (5, False), (5, True)])
def test_windows_match_slow_loop(backend, settings, window, stride, labels, align_corners):
    images, sizes = [picture(60, 90), picture(81, 70)], [(60, 90), (81, 70)]
    model = EdgeModel(labels)
    processor = backend(**settings, align_corners=align_corners)
    inputs = processor(images, return_tensors="pt")
    assert inputs["pixel_values"].shape[1:] == (3, *window) and len(inputs["windows"]) == len(inputs["pixel_values"])
    maps = processor.post_process_semantic_segmentation(model(**inputs), sizes)
    scored = processor.post_process_semantic_segmentation(model(**inputs), sizes, return_segmentation_scores=True)
    for image, size, seen, result in zip(images, sizes, maps, scored, strict=True):
        resized = processor(image, window_size=None, size_divisor=None, return_tensors="pt")["pixel_values"][0]
        wanted = slow_windows(model, resized, window, stride, size, align_corners)
        # float32 rounding of values around 1
        torch.testing.assert_close(result.segmentation_scores, wanted, rtol=0, atol=1e-5)
        wanted = (wanted[0] > 0).long() if labels == 1 else wanted.argmax(0)
        assert seen.dtype == torch.int64 and agreement(seen, wanted) > 0.999  # ties at rounding
        assert torch.equal(result.segmentation, seen)


def test_labels_are_cut_like_images(backend):
    labels = label_map(50, 70)
    processor = backend(do_resize=False, do_rescale=False, do_normalize=False, window_size=64, window_stride=32)
    inputs = processor(np.repeat(labels[..., None], 3, -1), labels, return_tensors="pt")
    assert torch.equal(inputs["windows"][:, 1:3], torch.tensor([[0, 0], [0, 6]]))
    assert torch.equal(inputs["labels"][:, :50], inputs["pixel_values"][:, 0, :50].long())
    assert (inputs["labels"][:, 50:] == 255).all()


def test_windows_are_saved(backend, tmp_path):
    backend(window_size=[32, 64], window_stride=24).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["window_size"] == [32, 64] and saved["window_stride"] == 24
    processor = backend.from_pretrained(tmp_path)
    assert processor(picture(60, 90), return_tensors="pt")["pixel_values"].shape[1:] == (3, 32, 64)


def test_wrong_windows_are_refused_with_the_cure(backend):
    with pytest.raises(ValueError, match="at most the size"):
        backend(window_size=32, window_stride=33)(picture(60, 90))
    with pytest.raises(ValueError, match=r"model\(\*\*inputs\)"):
        backend(window_size=32).post_process_semantic_segmentation(output(1, 3, 8, 8), [(60, 90)])


# Saving and loading


@pytest.mark.parametrize("theirs", [SegformerImageProcessor, SegformerImageProcessorPil])
def test_loads_what_transformers_segformer_saved(backend, theirs, tmp_path):
    theirs(size={"height": 40, "width": 56}, do_reduce_labels=True, image_mean=[0.1, 0.2, 0.3]).save_pretrained(
        tmp_path
    )
    processor = backend.from_pretrained(tmp_path)
    assert dict(processor.size) == {"height": 40, "width": 56} and processor.do_reduce_labels
    image, labels = picture(90, 70), label_map(90, 70)
    wanted = theirs.from_pretrained(tmp_path)(image, labels, return_tensors="pt")
    seen = processor(image, labels, return_tensors="pt")
    torch.testing.assert_close(seen["pixel_values"], wanted["pixel_values"], rtol=0, atol=0.019)  # one grey level
    assert torch.equal(seen["labels"], wanted["labels"])


def test_loads_the_oldest_checkpoints(backend, tmp_path):
    """nvidia/segformer-* have the size as a number, and `reduce_labels`."""
    old = {"feature_extractor_type": "SegformerFeatureExtractor", "size": 512, "reduce_labels": True, "resample": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    processor = backend.from_pretrained(tmp_path)
    assert dict(processor.size) == {"height": 512, "width": 512} and processor.do_reduce_labels
    assert "reduce_labels" not in processor.to_dict()


@pytest.mark.parametrize(
    "name, mean, size_divisor, minimum_size",
    [
        ("SegFormer", [0.485, 0.456, 0.406], 32, 29),  # 1 + (29 - 1) // 4 are 8 rows, and attention reduces by 8
        ("SETR", [0.485, 0.456, 0.406], 16, None),
        ("Segmenter", [0.5, 0.5, 0.5], 16, None),
        ("OCRNet", [0.485, 0.456, 0.406], 32, None),
    ],
)
@pytest.mark.parametrize("suffix", ["", "Pil"])
def test_defaults_of_each_architecture(name, mean, size_divisor, minimum_size, suffix):
    processor = getattr(processing, f"{name}ImageProcessor{suffix}")()
    assert list(processor.image_mean) == mean and processor.size_divisor == size_divisor
    assert processor.minimum_size == minimum_size
    assert dict(processor.size) == {"shortest_edge": 512, "longest_edge": 2048}


def test_auto_map_names_both_backends(backend):
    processor = backend()
    processor.auto_map = {"AutoImageProcessor": f"image_processing_segtx.{backend.__name__}"}
    wanted = {
        "torchvision": "image_processing_segtx.SegFormerImageProcessor",
        "pil": "image_processing_segtx.SegFormerImageProcessorPil",
    }
    assert processor.to_dict()["auto_map"] == {"AutoImageProcessor": wanted}
    processor.auto_map = {"AutoImageProcessor": wanted}  # as it comes back from such a file
    assert processor.to_dict()["auto_map"] == {"AutoImageProcessor": wanted}


@pytest.mark.parametrize(
    "image", [torch.rand(3, 40, 60), np.random.default_rng(0).random((40, 60, 3))], ids=["CHW", "HWC"]
)
@pytest.mark.parametrize("processor_class", BACKENDS)
def test_fractions_are_refused_unless_they_are_not_rescaled(processor_class, image):
    """Dividing by 255 what `ToTensor` has divided already would make it black."""
    processor = processor_class(size={"height": 32, "width": 32})
    with pytest.raises(
        ValueError, match="image 1 holds fractions of 0 to 1, expected are 0 to 255; multiply it by 255"
    ):
        processor([255 * image, image], return_tensors="pt")
    fractions = processor(image, do_rescale=False, return_tensors="pt").pixel_values
    torch.testing.assert_close(fractions, processor(255 * image, return_tensors="pt").pixel_values)
