"""Scale, crop, flip and colours of training samples, against slow formulas."""

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image
from small_data import PROCESSOR, write_sample
from torchvision.transforms.v2 import functional as F

from hf_segtx.data import SegmentationDataset
from hf_segtx.data.augmentation import TrainingTransform
from hf_segtx.data.folders import folder_records
from hf_segtx.data.labels import Labels, flip_permutation
from hf_segtx.models.image_processing_segtx import SegFormerImageProcessor


def blocks(height=96, width=128, side=16):
    """An image (H, W, 3) of coloured blocks and the label map that says which: red 255 and 0 for labels 1 and 0."""
    rows, columns = np.indices((height, width)) // side
    label = ((rows * 7 + columns * 3) % 5 % 2).astype(np.uint8)
    return np.repeat(label[..., None] * 255, 3, axis=-1), label


def augmented(transform, image, label, seed=0):
    """Pixels (C, h, w) before normalization and labels (h, w) of one sample."""
    batch = transform.collate([transform.crop(image, label, np.random.default_rng(seed))])
    return batch["pixel_values"][0].permute(2, 0, 1), batch["labels"][0]


@pytest.mark.parametrize("seed", range(8))
def test_image_and_mask_stay_aligned(seed):
    transform = TrainingTransform(PROCESSOR, (60, 80), (0.4, 2.0), photometric="none")
    batch = transform.collate([transform.crop(*blocks(), np.random.default_rng(seed))])
    pixels, labels = batch["pixel_values"][0].permute(2, 0, 1), batch["labels"][0]
    valid = labels != 255
    assert pixels.shape == (3, 60, 80) and labels.shape == (60, 80)

    def wrong(shift, axis):
        return ((pixels[0] > 127).roll(shift, axis) != labels)[valid].float().mean()

    # Where blocks meet, bilinear and nearest round differently; still, every shift by a pixel must fit much worse.
    shifted = min(wrong(shift, axis) for shift in (-1, 1) for axis in (0, 1))
    assert wrong(0, 0) < 0.6 * shifted
    assert (transform.finish(batch)["pixel_values"][0][:, ~valid] == 0).all()  # padding


@pytest.mark.parametrize("as_pil", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_scaled_crop_matches_resizing_the_whole_image(dtype, as_pil):
    """torchvision's slow way: resize all of it, then crop, then flip."""
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 48, 64)).astype(np.uint8))
    image = F.gaussian_blur(image, [5, 5])
    mask = torch.arange(48 * 64).view(48, 64).remainder(200).numpy().astype(dtype)
    array = image.permute(1, 2, 0).contiguous().numpy()
    array = Image.fromarray(array) if as_pil else array
    whole = F.resize(image, [96, 128], antialias=True)
    doubled = torch.from_numpy(mask).repeat_interleave(2, 0).repeat_interleave(2, 1)
    flips = set()
    for seed in range(6):
        transform = TrainingTransform(PROCESSOR, (40, 40), (2, 2), photometric="none")
        random = np.random.default_rng(seed)
        (top, left, bottom, right), size = transform.draw(mask, random)
        assert size == [40, 40] and bottom - top == right - left == 20
        flip = random.random() < 0.5
        pixels, labels = augmented(transform, array, mask, seed)
        rows, columns = slice(2 * top, 2 * top + 40), slice(2 * left, 2 * left + 40)
        expected_pixels, expected = whole[:, rows, columns], doubled[rows, columns]
        if flip:
            expected_pixels, expected = expected_pixels.flip(-1), expected.flip(-1)
        difference = (pixels.int() - expected_pixels.int()).abs()
        assert difference[:, 1:-1, 1:-1].max() <= 1  # rounding; the rim has no neighbours outside of the crop
        assert torch.equal(labels, expected)
        flips.add(flip)
    assert flips == {False, True}


def test_left_and_right_change_places_in_flipped_images():
    """Against a slow loop over the pixels; half of the seeds flip."""
    names = ["Background", "Left-arm", "Face", "Right-arm", "Left-shoe", "Right-shoe"]
    permutation = flip_permutation(dict(enumerate(names)))
    random = np.random.default_rng(0)
    label = random.choice([0, 1, 2, 3, 4, 5, 255], (12, 17)).astype(np.uint8)
    image = random.integers(0, 256, (12, 17, 3)).astype(np.uint8)
    flips = 0
    for seed in range(20):
        transform = TrainingTransform(PROCESSOR, (12, 17), (1, 1), flip_permutation=permutation)
        pixels, labels = augmented(transform, image, label.copy(), seed)
        if is_flipped := not np.array_equal(pixels.permute(1, 2, 0), image):
            assert np.array_equal(pixels.permute(1, 2, 0), image[:, ::-1])
        for row, column in np.ndindex(12, 17):
            value = int(label[row, 16 - column if is_flipped else column])
            if is_flipped and value != 255 and names[value][:4] == "Left":
                value = names.index(names[value].replace("Left", "Right"))
            elif is_flipped and value != 255 and names[value][:5] == "Right":
                value = names.index(names[value].replace("Right", "Left"))
            assert labels[row, column] == value
        flips += is_flipped
    assert 5 < flips < 15


def test_labels_are_resized_as_torch_does_it_exactly():
    """NEAREST_EXACT, at all sorts of factors."""
    label = np.random.default_rng(0).integers(0, 200, (37, 53)).astype(np.uint8)
    image = np.zeros((37, 53, 3), np.uint8)
    for seed in range(20):
        transform = TrainingTransform(PROCESSOR, (90, 90), (0.3, 2.0), flip_probability=0)
        (top, left, bottom, right), size = transform.draw(label, np.random.default_rng(seed))
        _, labels = augmented(transform, image, label, seed)
        crop = torch.from_numpy(label)[None, top:bottom, left:right]
        expected = F.resize(crop, size, interpolation=F.InterpolationMode.NEAREST_EXACT)[0]
        assert torch.equal(labels[: size[0], : size[1]], expected)
        assert (labels[size[0] :] == 255).all() and (labels[:, size[1] :] == 255).all()


def test_crop_of_a_small_image_takes_all_of_it():
    transform = TrainingTransform(PROCESSOR, (40, 40), scale_range=(0.5, 0.5))
    box, size = transform.draw(np.zeros((30, 100), np.uint8), np.random.default_rng(0))
    assert size == [15, 40] and (box[2] - box[0], box[3] - box[1]) == (30, 80)


def test_base_size_keeps_the_ratio():
    base = {"shortest_edge": 512, "longest_edge": 2048}
    transform = TrainingTransform(PROCESSOR, (1000, 1000), scale_range=(1, 1), base_size=base)
    for size, expected in (((100, 200), [512, 1000]), ((300, 150), [1000, 512]), ((100, 1000), [205, 1000])):
        assert transform.draw(np.zeros(size, np.uint8), np.random.default_rng(0))[1] == expected


def test_no_class_fills_more_than_three_quarters_of_a_crop():
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 1
    mask[:8] = 255
    image = np.zeros((64, 64, 3), np.uint8)

    def shares(max_share):
        transform = TrainingTransform(PROCESSOR, (24, 24), (1, 1), max_share=max_share)
        for seed in range(200):
            _, labels = augmented(transform, image, mask, seed)
            yield float(torch.bincount(labels[labels != 255], minlength=2).max() / (labels != 255).sum())

    # 28 of 41 positions break the rule, so that all ten tries do in 2 % of the cases: 4 of 200.
    assert sum(share > 0.75 for share in shares(1.0)) > 100
    assert sum(share > 0.75 for share in shares(0.75)) < 10


def test_every_position_is_taken_if_any_class_may_fill_a_crop():
    """The rule that no class may fill a crop, against a slow loop that draws as often as it says; void alone, too."""
    random = np.random.default_rng(0)
    for seed in range(100):
        mask = random.choice([0, 0, 0, 0, 1, 255], (20, 30)).astype(np.uint8) if seed % 4 else np.full((20, 30), 255)
        for max_share in (0.5, 0.8, 1.0):
            draws = np.random.default_rng(seed)
            draws.uniform(1, 1)
            for _ in range(10 if max_share < 1 else 1):
                top, left = draws.integers(20 - 6 + 1), draws.integers(30 - 8 + 1)
                valid = [value for value in mask[top : top + 6, left : left + 8].flat if value != 255]
                if valid and max(valid.count(0), valid.count(1)) <= max_share * len(valid):
                    break
            transform = TrainingTransform(PROCESSOR, (6, 8), (1, 1), max_share=max_share)
            assert transform.draw(mask, np.random.default_rng(seed))[0] == (top, left, top + 6, left + 8)


def test_steps_of_the_scale_ratios_and_squashing_match_slow_formulas():
    """HRNet-OCR's factors 0.5, 0.6, ..., 2.1; openseg's ratio of width to height; an image squashed to a square."""
    label, steps = np.zeros((40, 60), np.uint8), set()
    for seed in range(100):
        draw = np.random.default_rng(seed)
        factor = [number / 10 for number in range(5, 22)][draw.integers(17)]
        steps.add(factor)
        stepped = TrainingTransform(PROCESSOR, (500, 500), (0.5, 2.1, 0.1))
        assert stepped.draw(label, np.random.default_rng(seed))[1] == [round(40 * factor), round(60 * factor)]

        draw = np.random.default_rng(seed)
        factor, ratio = draw.uniform(0.5, 1.5), draw.uniform(0.9, 1.1)
        size = [max(1, round(47 * factor * (1 / ratio) ** 0.5)), max(1, round(47 * factor * ratio**0.5))]
        squashed = TrainingTransform(
            PROCESSOR, (500, 500), (0.5, 1.5), aspect_range=(0.9, 1.1), base_size={"height": 47, "width": 47}
        )
        box, drawn_size = squashed.draw(label, np.random.default_rng(seed))
        assert box == (0, 0, 40, 60) and np.abs(np.subtract(drawn_size, size)).max() == 0
        assert max(drawn_size[0] / 40, drawn_size[1] / 60) <= squashed.largest_scale(40, 60) + 0.5 / 40
    assert steps == {number / 10 for number in range(5, 22)}  # both ends


def test_a_squashed_crop_shows_what_resizing_the_whole_image_shows():
    """torchvision's slow way, crops of an image that is twice as high and half as wide."""
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 48, 64)).astype(np.uint8))
    image = F.gaussian_blur(image, [5, 5])
    array, mask = image.permute(1, 2, 0).contiguous().numpy(), np.zeros((48, 64), np.uint8)
    whole = F.resize(image, [96, 32], antialias=True)
    options = {"base_size": {"height": 96, "width": 32}, "flip_probability": 0, "photometric": "none"}
    transform = TrainingTransform(PROCESSOR, (40, 16), (1, 1), **options)
    for seed in range(20):
        (top, left, bottom, right), size = transform.draw(mask, np.random.default_rng(seed))
        assert size == [40, 16] and (bottom - top, right - left) == (20, 32)
        if left % 2:
            continue  # half a pixel of the squashed image
        pixels, _ = augmented(transform, array, mask, seed)
        expected = whole[:, 2 * top : 2 * top + 40, left // 2 : left // 2 + 16]
        assert (pixels.int() - expected.int())[:, 1:-1, 2:-2].abs().max() <= 1  # rounding; not the rim


def test_share_of_mirrored_images():
    """2000 draws: three standard deviations are 0.027 at a share of 0.2."""
    image = np.arange(6, dtype=np.uint8)[None, :, None].repeat(3, 2)
    for share in (0.0, 0.2, 1.0):
        transform = TrainingTransform(PROCESSOR, (1, 6), (1, 1), flip_probability=share, photometric="none")
        flips = [augmented(transform, image, np.zeros((1, 6), np.uint8), seed)[0][0, 0, 0] == 5 for seed in range(2000)]
        assert abs(np.mean(flips) - share) <= 0.027


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_brightness_is_one_shift_of_all_channels(strength):
    """Against a slow formula with the drawn number; all of the 21 numbers come up."""
    image, shifts = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8), set()
    options = {"flip_probability": 0, "photometric": "brightness", "photometric_strength": strength}
    transform = TrainingTransform(PROCESSOR, (4, 5), (1, 1), **options)
    mean, std = (255 * np.array(values) for values in (PROCESSOR.image_mean, PROCESSOR.image_std))
    for seed in range(200):
        shift = int(np.random.default_rng(seed).integers(-10, 11))
        matrix = transform.colors(np.random.default_rng(seed), 3)
        assert np.array_equal(matrix[:, :3], np.eye(3)) and np.allclose(matrix[:, 3], strength * shift, atol=1e-5)
        shifts.add(shift)
    assert shifts == set(range(-10, 11))
    batch = transform.collate([transform.crop(image, np.zeros((4, 5), np.uint8), np.random.default_rng(3))])
    shift = batch["colors"][0, 0, 3].item()
    assert shift != 0
    expected = (np.clip(image + shift, 0, 255) - mean) / std
    result = transform.finish(batch)["pixel_values"][0].permute(1, 2, 0).numpy()
    assert np.abs(result - expected).max() < 1e-4  # float32


def test_strength_is_a_factor_of_every_change():
    for seed in range(100):
        full, half = (
            TrainingTransform(PROCESSOR, (4, 5), photometric_strength=strength).colors(np.random.default_rng(seed), 1)
            for strength in (1.0, 0.5)
        )
        brightness, contrast, _, _ = drawn(seed)
        for matrix, strength in ((full, 1.0), (half, 0.5)):
            gain = 1 + 0.5 * strength * contrast
            assert np.allclose(matrix, [[gain, gain * 32 * strength * brightness]], atol=1e-4)


def drawn(seed):
    """Brightness, contrast, saturation and hue in [-1, 1] that `TrainingTransform.colors` draws."""
    chances, values = np.random.default_rng(seed).random((2, 4))
    return [2 * value - 1 if chance < 0.5 else 0 for chance, value in zip(chances, values, strict=True)]


def test_colors_match_colorsys():
    """Against the standard library's YIQ, pixel by pixel, with the drawn numbers."""
    image = np.random.default_rng(0).integers(60, 190, (4, 5, 3))
    transform = TrainingTransform(PROCESSOR, (4, 5))
    for seed in range(20):
        matrix = transform.colors(np.random.default_rng(seed), 3)
        out = image @ matrix[:, :3].T + matrix[:, 3]
        brightness, contrast, saturation, hue = drawn(seed)
        turn = np.exp(1j * np.radians(36 * hue)) * (1 + 0.5 * saturation)
        for row, column in np.ndindex(4, 5):
            luma, i, q = colorsys.rgb_to_yiq(*image[row, column].tolist())
            chroma = complex(i, q) * turn
            expected = np.array(yiq_to_rgb(luma, chroma.real, chroma.imag)) + 32 * brightness
            expected = expected * (1 + 0.5 * contrast)
            # colorsys rounds its YIQ coefficients to two digits, 255 * 0.02 = 5 at most
            assert np.abs(out[row, column] - expected).max() < 5


def yiq_to_rgb(luma, i, q):
    """colorsys.yiq_to_rgb without its limits to [0, 1]."""
    inverse = np.linalg.inv(np.array([colorsys.rgb_to_yiq(*unit) for unit in np.eye(3)]).T)
    return inverse @ [luma, i, q]


def test_colors_are_applied_and_clipped_before_normalization():
    """Against a loop over the samples of a batch; rounding of float32 products up to 255 allows for 1e-4."""
    transform = TrainingTransform(PROCESSOR, (6, 7), (1, 1), flip_probability=0)
    images = np.random.default_rng(0).integers(0, 256, (12, 6, 7, 3)).astype(np.uint8)
    label = np.zeros((6, 7), np.uint8)
    batch = transform.collate(
        [transform.crop(image, label, np.random.default_rng(seed)) for seed, image in enumerate(images)]
    )
    mean, std = (255 * np.array(values) for values in (PROCESSOR.image_mean, PROCESSOR.image_std))
    for image, colors, result in zip(images, batch["colors"], transform.finish(batch)["pixel_values"], strict=True):
        colors = colors.double().numpy()
        expected = (np.clip(image @ colors[:, :3].T + colors[:, 3], 0, 255) - mean) / std
        assert np.abs(result.permute(1, 2, 0).numpy() - expected).max() < 1e-4


def test_colors_leave_greys_grey():
    levels = set()
    for seed in range(30):
        for channels in (1, 3, 5):
            transform = TrainingTransform(PROCESSOR, (4, 4))
            matrix = transform.colors(np.random.default_rng(seed), channels)
            values = matrix[:, :-1] @ np.full(channels, 100.0) + matrix[:, -1]
            assert np.abs(values - values[0]).max() < 0.01  # NTSC's coefficients have four digits
            levels.add(round(float(values[0])))
    assert len(levels) > 10 and 34 <= min(levels) and max(levels) <= 198  # (100 -+ 32) * (1 -+ 0.5)


@pytest.mark.parametrize("num_channels", [1, 3, 4, 6])
def test_normalization_equals_the_processors(num_channels):
    mean, std = ([value + 0.05 * channel for channel in range(num_channels)] for value in (0.4, 0.2))
    processor = SegFormerImageProcessor(image_mean=mean, image_std=std, do_resize=False, do_pad=False)
    image = torch.randint(0, 256, (num_channels, 10, 12), dtype=torch.uint8)
    sample = image.permute(1, 2, 0).numpy(), np.zeros((10, 12), np.uint8), np.random.default_rng(0)
    transform = TrainingTransform(processor, (10, 12), (1, 1), flip_probability=0, photometric="none")
    expected = processor(image, input_data_format="channels_first", return_tensors="pt")["pixel_values"][0]
    result = transform.finish(transform.collate([transform.crop(*sample)]))
    assert torch.equal(result["pixel_values"][0], expected)
    assert result["labels"].dtype == torch.int64
    transform = TrainingTransform(processor, (10, 12))
    transform.finish(transform.collate([transform.crop(*sample)]))  # every channel count goes through the colours, too


def test_jpegs_far_larger_than_needed_are_decoded_smaller(tmp_path):
    """And look like those that were decoded in full, then resized."""
    smooth = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(smooth).resize((333, 251), Image.Resampling.BICUBIC))
    write_sample(tmp_path, "a", smooth, np.zeros((251, 333), np.uint8), (".jpg", ".png"))
    dataset = SegmentationDataset(folder_records(tmp_path), Labels(names=("a", "b")))
    for short, long, decoded_height in ((100, 133, 126), (200, 266, 251)):
        base = {"shortest_edge": short, "longest_edge": long}
        transform = TrainingTransform(PROCESSOR, (50, 50), (0.3, 1.0), base_size=base, photometric="none")
        read_image, label = dataset.open(0, largest_scale=transform.largest_scale)
        image = read_image()
        assert image.height == decoded_height and label.shape == (251, 333)
        for seed in range(5):
            pixels, labels = augmented(transform, image, label, seed)
            expected, expected_labels = augmented(transform, dataset[0]["image"], dataset[0]["label"], seed)
            assert torch.equal(labels, expected_labels)
            # the edges of the crop are rounded to even pixels of the file, a shift by up to one pixel of 6 levels
            assert (pixels.float() - expected.float())[:, labels != 255].abs().mean() < 3
