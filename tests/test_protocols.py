"""The authors' ways to show images in evaluation, each against a slow reference: sizes, small images, averages, BGR."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import CASES
from transformers import pipeline

from hf_segtx import SegFormerImageProcessor
from hf_segtx.data.augmentation import TrainingTransform
from hf_segtx.data.scenes import SceneDataset
from hf_segtx.evaluation import set_protocol
from hf_segtx.inference import load_model, predict, protocol, resized_image, segment
from hf_segtx.large_images import segment_large
from hf_segtx.models.image_processing_segtx import SegFormerImageProcessorPil, resized_size
from hf_segtx.models.sliding_windows import enlarged_size
from hf_segtx.training.arguments import Arguments, check_arguments
from hf_segtx.training.setup import base_size
from hf_segtx.training.setup import set_protocol as set_arguments


UNPADDED = {"size_divisor": None, "minimum_size": None}  # as the code that these are compared with
SCALES = (0.5, 0.75, 1.0, 1.25)


@pytest.fixture
def checkpoint(tmp_path):
    """A tiny SegFormer, saved with its processor, that predicts several classes."""
    torch.manual_seed(0)
    model = CASES["segformer"].make_model()
    model.decode_head.classifier.weight.data.mul_(50)
    model.save_pretrained(tmp_path / "model")
    SegFormerImageProcessor(size={"shortest_edge": 64}, **UNPADDED).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def scene(height, width):
    return SceneDataset(1, seed=5, size=(height, width))[0]["image"]


def slow_windows(model, pixels, window, stride, target):
    """Logits (K, H, W) of resized pixels (3, h, w): windows one by one, counted, and resized to the image."""
    height, width = pixels.shape[1:]
    pixels = F.pad(pixels, (0, max(window - width, 0), 0, max(window - height, 0)))
    total, count = 0, torch.zeros(pixels.shape[1:])
    for top in [*range(0, max(height - window, 0), stride), max(height - window, 0)]:
        for left in [*range(0, max(width - window, 0), stride), max(width - window, 0)]:
            cut = slice(None), slice(top, top + window), slice(left, left + window)
            logits = F.interpolate(model(pixels[cut][None]).logits, (window, window), mode="bilinear")[0]
            if isinstance(total, int):
                total = torch.zeros(len(logits), *pixels.shape[1:])
            total[cut] += logits
            count[cut[1:]] += 1
    return F.interpolate((total / count)[None, :, :height, :width], target, mode="bilinear")[0]


def slow_segment(shown, model, target, window, stride):
    """Mean softmax (K, H, W) over scales and flips; `shown` makes the pixels of a scale."""
    parts = []
    for scale in SCALES:
        for mirrored in (False, True):
            pixels = shown(scale)
            logits = slow_windows(model, pixels.flip(2) if mirrored else pixels, window, stride, target)
            parts.append((logits.flip(2) if mirrored else logits).softmax(0))
    return torch.stack(parts).mean(0)


# --------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("backend", [SegFormerImageProcessor, SegFormerImageProcessorPil])
def test_sides_are_stretched_to_multiples(backend):
    """SegFormer on ADE20K. Oracle: the next multiple by counting, then one resize to that size."""
    processor = backend(size={"shortest_edge": 64, "longest_edge": 150}, stretch_divisor=32, **UNPADDED)
    for height, width in [(75, 100), (100, 75), (64, 64), (50, 300), (97, 131)]:
        kept = resized_size(height, width, processor.size)
        wanted = [next(side for side in range(edge, edge + 32) if side % 32 == 0) for edge in kept]
        image = scene(height, width)
        pixels = processor(image, return_tensors="pt")["pixel_values"]
        assert list(pixels.shape[2:]) == wanted
        as_said = backend(size={"height": wanted[0], "width": wanted[1]})(image, return_tensors="pt")["pixel_values"]
        assert torch.equal(pixels, as_said)


@torch.no_grad()
def test_stretched_images_give_label_maps_of_the_whole_image(checkpoint, tmp_path):
    model, processor = load_model(checkpoint)
    set_protocol(processor, image_size=[64, 150], stretch_divisor=32)
    processor.save_pretrained(tmp_path)
    processor = load_model(checkpoint, processor_name_or_path=tmp_path)[1]
    assert processor.stretch_divisor == 32 and "stretched up to multiples of 32" in protocol(processor)
    image = scene(75, 100)
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    assert pixels.shape[2:] == (64, 96)
    wanted = F.interpolate(model(pixels).logits, (75, 100), mode="bilinear")[0].argmax(0)
    assert (predict(model, processor, [image])[0] == wanted).float().mean() > 0.999  # ties at rounding
    masks = pipeline("image-segmentation", model=model, image_processor=processor)(image)
    for each in masks:
        mask = torch.from_numpy(np.array(each["mask"]) > 0)
        label = model.config.label2id[each["label"]]
        assert (mask == (wanted == label)).float().mean() > 0.999
    for scale, size in [(0.5, (32, 64)), (1.25, (96, 128))]:  # 32x43 and 80x107 pixels
        assert resized_image(processor, image, scale).shape[1:] == size


@pytest.mark.parametrize("height, width", [(512, 683), (1024, 2048), (333, 500), (500, 375), (90, 700)])
def test_bounds_of_scales_are_rounded_down(height, width):
    """mmcv: each bound times the factor as an integer, then the ratio is kept within them."""
    processor = SegFormerImageProcessor(size={"shortest_edge": 145, "longest_edge": 289}, **UNPADDED)
    image = Image.new("RGB", (width, height))
    for tenths in range(3, 21):
        short, long = 145 * tenths // 10, 289 * tenths // 10
        factor = min(short / min(height, width), long / max(height, width))
        wanted = tuple(int(side * factor + 0.5) for side in (height, width))
        assert resized_image(processor, image, tenths / 10).shape[1:] == wanted


# -------------------------------------------------------------------------------------------------------- small images


def test_enlarged_sizes_match_a_search():
    """No side below the window's, and one of them equal to it; the ratio kept but for less than a pixel."""
    random = np.random.default_rng(0)
    for _ in range(500):
        size, window = random.integers(1, 100, 2).tolist(), random.integers(1, 100, 2).tolist()
        found = enlarged_size(tuple(size), window)
        if min(np.subtract(size, window)) >= 0:
            assert found == tuple(size)
            continue
        factor = max(window[0] / size[0], window[1] / size[1])
        assert min(np.subtract(found, window)) == 0
        assert all(
            side * factor - 1 - 1e-9 <= out <= side * factor + 1e-9 for side, out in zip(size, found, strict=True)
        )


@pytest.mark.parametrize("size", [(60, 100), (100, 60), (70, 70), (40, 300)], ids=str)
@torch.no_grad()
def test_enlarged_images_match_segmenters_inference(checkpoint, size):
    """Segmenter: resized within both bounds; a short side below the window is then enlarged to it. Up to 1e-5."""
    model, processor = load_model(checkpoint)
    set_protocol(processor, "slide", [64], [48], image_size=[70, 140], small_images="enlarge")
    plain = SegFormerImageProcessor(**UNPADDED)
    image = scene(*size)

    def shown(scale):
        bounds = {"shortest_edge": int(70 * scale), "longest_edge": int(140 * scale)}
        pixels = plain(image, size=bounds, return_tensors="pt")["pixel_values"]
        height, width = pixels.shape[2:]
        if min(height, width) >= 64:
            return pixels[0]
        larger = (64, int(width / height * 64)) if height < width else (int(height / width * 64), 64)
        return F.interpolate(pixels, larger, mode="bilinear")[0]

    options = {"scales": SCALES, "flip": True, "return_scores": True}
    found = segment(model, processor, [image], **options)[0].probabilities
    torch.testing.assert_close(found, slow_segment(shown, model, size, 64, 48), rtol=0, atol=1e-5)

    # The processor, the pipeline and `predict` do the same at the one scale.
    wanted = slow_windows(model, shown(1), 64, 48, size).argmax(0)
    inputs = processor(image, return_tensors="pt")
    (seen,) = processor.post_process_semantic_segmentation(model(**inputs), [size])
    assert (seen == wanted).float().mean() > 0.999  # ties at rounding
    assert (predict(model, processor, [image])[0] == wanted).float().mean() > 0.999


@pytest.mark.parametrize("size", [(60, 100), (100, 60), (40, 300)], ids=str)
@torch.no_grad()
def test_scales_with_a_free_longest_edge_match_setrs_inference(checkpoint, size):
    """SETR: at several scales the short side is the scaled bound, at least the window; the long side is free."""
    model, processor = load_model(checkpoint)
    set_protocol(processor, "slide", [64], [48], image_size=[75, 140], small_images="resize")
    plain = SegFormerImageProcessor(**UNPADDED)
    image = scene(*size)

    def shown(scale):
        short = max(64, int(75 * scale))
        height, width = (int(side * short / min(size) + 0.5) for side in size)
        return plain(image, size={"height": height, "width": width}, return_tensors="pt")["pixel_values"][0]

    options = {"scales": SCALES, "flip": True, "return_scores": True}
    found = segment(model, processor, [image], **options)[0].probabilities
    torch.testing.assert_close(found, slow_segment(shown, model, size, 64, 48), rtol=0, atol=1e-5)

    # One scale keeps both bounds, and what is smaller than a window is padded.
    pixels = plain(image, size={"shortest_edge": 75, "longest_edge": 140}, return_tensors="pt")["pixel_values"][0]
    wanted = slow_windows(model, pixels, 64, 48, size).softmax(0)
    found = segment(model, processor, [image], return_scores=True)[0].probabilities
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("minimum_size", [29, 60])
@torch.no_grad()
def test_windows_end_where_small_images_end_as_in_mmsegmentation(checkpoint, minimum_size):
    """`slide_inference` shows a crop that is as small as the image; below what a network takes it is padded."""
    model, processor = load_model(checkpoint)
    set_protocol(processor, "slide", [64], [48], image_size=[75, 140], small_images="cut")
    processor.minimum_size = minimum_size
    plain = SegFormerImageProcessor(**UNPADDED)
    images = [scene(60, 100), scene(100, 60), scene(40, 120)]

    def logits(pixels, target):
        height, width = pixels.shape[1:]
        edges = tuple(min(64, max(side, minimum_size)) for side in (height, width))
        pixels = F.pad(pixels, (0, max(edges[1] - width, 0), 0, max(edges[0] - height, 0)))
        total, count = torch.zeros(model.config.num_labels, *pixels.shape[1:]), torch.zeros(pixels.shape[1:])
        for top in [*range(0, max(height - edges[0], 0), 48), max(height - edges[0], 0)]:
            for left in [*range(0, max(width - edges[1], 0), 48), max(width - edges[1], 0)]:
                cut = slice(None), slice(top, top + edges[0]), slice(left, left + edges[1])
                total[cut] += F.interpolate(model(pixels[cut][None]).logits, edges, mode="bilinear")[0]
                count[cut[1:]] += 1
        return F.interpolate((total / count)[None, :, :height, :width], target, mode="bilinear")[0]

    def shown(image, scale):
        bounds = {"shortest_edge": int(75 * scale), "longest_edge": int(140 * scale)}
        return plain(image, size=bounds, return_tensors="pt")["pixel_values"][0]

    maps = predict(model, processor, images)
    for image, label_map in zip(images, maps, strict=True):
        target = (image.height, image.width)
        wanted = torch.stack([logits(shown(image, scale), target).softmax(0) for scale in SCALES]).mean(0)
        found = segment(model, processor, [image], scales=SCALES, return_scores=True)[0].probabilities
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
        inputs = processor(image, return_tensors="pt")
        (seen,) = processor.post_process_semantic_segmentation(model(**inputs), [target])
        wanted = logits(shown(image, 1), target).argmax(0)
        for each in (label_map, seen):
            assert (each == wanted).float().mean() > 0.999  # ties at rounding
    with pytest.raises(ValueError, match="process the images one by one"):
        processor(images, return_tensors="pt")


@torch.no_grad()
def test_large_images_end_the_windows_too(checkpoint, tmp_path):
    model, processor = load_model(checkpoint)
    set_protocol(processor, "slide", [64], [48], small_images="cut")
    processor.do_resize = False
    image = scene(50, 150)
    written = segment_large(model, processor, np.array(image), tmp_path / "out.npy", progress=False)
    assert (torch.from_numpy(np.array(written)).long() == predict(model, processor, [image])[0]).float().mean() > 0.999


def test_labels_are_enlarged_like_images():
    labels = np.arange(40 * 50, dtype=np.int32).reshape(40, 50) % 200
    processor = SegFormerImageProcessor(do_resize=False, window_size=64, small_images="enlarge", do_normalize=False)
    inputs = processor(Image.fromarray(np.zeros((40, 50, 3), np.uint8)), labels, return_tensors="pt")
    assert inputs["windows"][:, 1:3].tolist() == [[0, 0], [0, 16]]
    whole = F.interpolate(torch.from_numpy(labels)[None, None].float(), (64, 80), mode="nearest-exact")[0, 0].long()
    assert torch.equal(inputs["labels"][0], whole[:, :64]) and torch.equal(inputs["labels"][1], whole[:, 16:])


def test_large_images_that_are_smaller_than_a_window_are_not_padded_unseen(checkpoint, tmp_path):
    model, processor = load_model(checkpoint)
    set_protocol(processor, "slide", [64], small_images="enlarge")
    processor.do_resize = False
    with pytest.raises(ValueError, match="small_images is 'enlarge'.*64"):
        segment_large(model, processor, np.zeros((50, 100, 3), np.uint8), tmp_path / "out.npy")


# ------------------------------------------------------------------------------------------------------ averages, BGR


@pytest.mark.parametrize("align_corners", [True, False])
@torch.no_grad()
def test_logits_of_scales_and_flips_are_added_up_as_in_openseg(checkpoint, align_corners):
    """The image at its own size is padded; this is mirrored, and resized for each scale; the logits are brought to the
    size of the padded image, added up, and what belongs to padding is left out.
    """
    model, processor = load_model(checkpoint)
    model.config.align_corners = align_corners
    processor.do_resize, processor.size_divisor, processor.averaging = False, 8, "logits"
    assert "logits averaged over scales" in protocol(processor, flip=True)
    image, total = scene(70, 90), 0
    pixels = SegFormerImageProcessor(do_resize=False, **UNPADDED)(image, return_tensors="pt")["pixel_values"]
    pixels = F.pad(pixels, (0, 6, 0, 2))
    options = {"mode": "bilinear", "align_corners": align_corners}
    for scale in (0.5, 1, 1.3):
        for mirrored in (False, True):
            shown = pixels.flip(3) if mirrored else pixels
            shown = F.interpolate(shown, (int(72 * scale), int(96 * scale)), **options)
            logits = F.interpolate(model(shown).logits, (72, 96), **options)[0]
            total = total + (logits.flip(2) if mirrored else logits)[:, :70, :90]
    options = {"scales": (0.5, 1, 1.3), "flip": True, "return_scores": True}
    found = segment(model, processor, [image], **options)[0]
    torch.testing.assert_close(found.probabilities, (total / 6).softmax(0), rtol=0, atol=1e-5)


@torch.no_grad()
def test_logits_of_windows_are_averaged_over_scales(checkpoint):
    model, processor = load_model(checkpoint)
    set_protocol(processor, "slide", [64], [48], image_size=[70, 140], averaging="logits")
    image, total = scene(60, 100), 0
    for scale in SCALES:
        bounds = {"shortest_edge": int(70 * scale), "longest_edge": int(140 * scale)}
        pixels = SegFormerImageProcessor(**UNPADDED)(image, size=bounds, return_tensors="pt")["pixel_values"][0]
        total = total + slow_windows(model, pixels, 64, 48, (60, 100)) / len(SCALES)
    found = segment(model, processor, [image], scales=SCALES, return_scores=True)[0].probabilities
    torch.testing.assert_close(found, total.softmax(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("window, align_corners", [(None, True), ((64, 80), True), ((64, 80), False)])
@torch.no_grad()
def test_exponentials_of_logits_are_averaged_as_in_hrnet_ocr(checkpoint, window, align_corners):
    """Per window and at its size: mean logits of both flips, exp; the mean over windows is resized and added up."""
    model, processor = load_model(checkpoint)
    model.config.id2label = {**model.config.id2label, 1: "left arm", 3: "right arm"}
    model.config.align_corners = align_corners
    set_protocol(processor, "slide" if window else None, window or (), window or (), [70, 140], averaging="exp")
    processor.small_images = "cut"
    image, size, total = scene(60, 100), (60, 100), 0
    for scale in SCALES:
        bounds = {"shortest_edge": int(70 * scale), "longest_edge": int(140 * scale)}
        pixels = SegFormerImageProcessor(**UNPADDED)(image, size=bounds, return_tensors="pt")["pixel_values"]
        height, width = pixels.shape[2:]
        edges = [min(height, window[0]), min(width, window[1])] if window else [height, width]
        added, count = torch.zeros(4, height, width), torch.zeros(height, width)
        for top in sorted({0, height - edges[0]}):
            for left in sorted({0, width - edges[1]}):
                cut = slice(top, top + edges[0]), slice(left, left + edges[1])
                crop = pixels[:, :, cut[0], cut[1]]
                first, second = (
                    F.interpolate(model(each).logits, edges, mode="bilinear", align_corners=align_corners)[0]
                    for each in (crop, crop.flip(3))
                )
                added[:, cut[0], cut[1]] += ((first + second.flip(2)[[0, 3, 2, 1]]) / 2).exp()
                count[cut] += 1
        total += F.interpolate((added / count)[None], size, mode="bilinear", align_corners=align_corners)[0]
    options = {"scales": SCALES, "flip": True, "return_scores": True}
    found = segment(model, processor, [image], **options)[0]
    torch.testing.assert_close(found.probabilities, total / total.sum(0), rtol=0, atol=1e-5)
    assert "exponentials of logits averaged" in protocol(processor, flip=True)


@pytest.mark.parametrize("backend", [SegFormerImageProcessor, SegFormerImageProcessorPil])
def test_bgr_is_the_reversed_image(backend):
    image = scene(40, 50)
    reversed_image = Image.fromarray(np.array(image)[..., ::-1].copy())
    bgr = backend(do_resize=False, do_flip_channel_order=True)(image, return_tensors="pt")
    assert torch.equal(
        bgr["pixel_values"], backend(do_resize=False)(reversed_image, return_tensors="pt")["pixel_values"]
    )


@pytest.mark.parametrize("photometric", ["none", "brightness", "full"])
def test_training_images_are_bgr_and_padded_with_black_like_the_processors(photometric):
    """Oracle: the same crop in RGB, colours changed there, then reversed and normalized by hand."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    processors = [SegFormerImageProcessor(do_flip_channel_order=order) for order in (False, True)]
    options = {"flip_probability": 0, "photometric": photometric}
    rgb = TrainingTransform(processors[0], (48, 56), (1, 1), **options)
    bgr = TrainingTransform(processors[1], (48, 56), (1, 1), padding="black", **options)
    image, labels = np.array(scene(40, 50)), np.zeros((40, 50), np.uint8)
    for seed in range(100):
        first, second = (
            each.finish(each.collate([each.crop(image, labels, np.random.default_rng(seed))]))["pixel_values"][0]
            for each in (rgb, bgr)
        )
        colours = first * std.view(3, 1, 1) + mean.view(3, 1, 1)
        colours[:, 40:], colours[:, :, 50:] = 0, 0
        wanted = (colours.flip(0) - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        torch.testing.assert_close(second, wanted, rtol=0, atol=1e-5)  # float32


# -------------------------------------------------------------------------------------------------- settings of a run


def test_arguments_reach_the_processor_that_is_saved(checkpoint, tmp_path):
    model, processor = load_model(checkpoint)
    arguments = Arguments(
        image_size=[520],
        base_size=[500, 600],
        stretch_divisor=32,
        size_divisor=8,
        channel_order="bgr",
        averaging="logits",
        eval_mode="slide",
        window_size=[64],
        small_images="enlarge",
    )
    check_arguments(arguments)
    processor.temperature = 1.5
    set_arguments(arguments, model, processor)
    assert processor.temperature is None  # it was that of other weights
    assert base_size(arguments, processor) == {"shortest_edge": 500, "longest_edge": 600}
    processor.save_pretrained(tmp_path)
    saved = SegFormerImageProcessor.from_pretrained(tmp_path)
    names = ("stretch_divisor", "size_divisor", "small_images", "averaging", "do_flip_channel_order")
    assert [getattr(saved, name) for name in names] == [32, 8, "enlarge", "logits", True]
    assert saved.size.shortest_edge == 520 and not saved.size.longest_edge


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"base_size": [600, 500]}, "the shortest edge, then the longest"),
        ({"base_size": [500], "image_size": [64], "resize_mode": "squash"}, "base_size is for images that keep"),
        ({"stretch_divisor": 32}, "stretch_divisor is for images that image_size resizes"),
        ({"small_images": "enlarge"}, "small_images enlarge is for eval_mode slide"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        check_arguments(Arguments(**settings))


def test_padding_that_the_network_cannot_take_is_refused():
    model = CASES["segmenter"].make_model()
    processor = CASES["segmenter"].row.processor().follow(model.config)
    with pytest.raises(ValueError, match="size_divisor 3 is no multiple of the model's patch_size"):
        set_arguments(Arguments(size_divisor=3), model, processor)


@pytest.mark.parametrize("name", ["small_images", "averaging"])
def test_unknown_choices_of_a_processor_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 'stretch'; give "):
        SegFormerImageProcessor(**{name: "stretch"})
