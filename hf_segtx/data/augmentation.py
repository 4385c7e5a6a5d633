"""Random scale, crop, flip and colours of training samples, and batches of them.

Shapes: (H, W) image size, (h, w) crop size, C channels, B images per batch; labels are train ids of `Labels`.
"""

import cmath
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate


class TrainingTransform:
    """Random scale, crop, flip and colours: `crop` and `collate` in the loader's workers, `finish` on the device.

    The scale and the crop are drawn first; then only the pixels that the crop shows are converted and resized. They
    stay 8 bits deep until `finish` changes the colours and normalizes, so that a batch travels between processes, and
    to an accelerator, with 4 bytes a pixel instead of 20. `finish` pads with 0, the mean, as the processor does, or
    with black; and puts the channels into the processor's order.

    Random scale and crop as mmsegmentation's RandomResize and RandomCrop with `cat_max_ratio`: a crop with one class on
    more than `max_share` of its valid pixels is drawn again, ten times at most. Differs: the resize is antialiased, as
    in the processor, and does not look beyond the crop.

    "full" colours as mmsegmentation's PhotoMetricDistortion: brightness +-32, contrast x0.5-1.5, saturation x0.5-1.5
    and hue +-36 degrees, each with probability 0.5. Differs: saturation and hue scale and turn the chroma plane of YIQ
    instead of going through HSV, so that all four are one 3x3 matrix, and values are clipped once, at the end. Images
    without three channels get brightness and contrast only. "brightness" is openseg's: one whole number within +-10,
    for every image.

    Args:
        processor: image processor; its `rescale_factor`, `image_mean` and `image_std` are used.
        crop_size: (h, w) pixels of the result; smaller images are padded at the bottom and right.
        scale_range: bounds of the uniform random factor; a third number makes it one of those that many apart from the
            lower bound on, up to the upper one.
        aspect_range: bounds of a uniform random factor of the ratio of width to height, the area kept (openseg).
        base_size: what factor 1 means, in the words of a processor's `size`: {"shortest_edge", "longest_edge"}, the
            largest keep-ratio size within these pixels (the second may be missing); {"height", "width"}, exactly that;
            None, the image's own size.
        max_share: of one class in a crop; 1 for any.
        photometric: "none", "brightness" or "full" changes of the colours. "none" if the processor does not rescale:
            then the range is unknown.
        photometric_strength: factor of all these changes, in (0, 2].
        padding: "mean" or "black", of crops of smaller images.
        flip_permutation: class that each class is in a mirrored image ("left arm", "right arm"), of
            `hf_segtx.data.labels.flip_permutation`; None if all stay.
    """

    # rows: luma and two chroma axes of NTSC's YIQ
    YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    RGB = np.linalg.inv(YIQ)
    # what of a colour is luma, what is chroma, and that turned by 90 degrees
    LUMA = np.outer(RGB[:, 0], YIQ[0])
    CHROMA = RGB[:, 1:] @ YIQ[1:]
    TURNED_CHROMA = RGB[:, 1:] @ [[0, -1], [1, 0]] @ YIQ[1:]

    def __init__(
        self,
        processor,
        crop_size: tuple[int, int],
        scale_range: tuple[float, ...] = (0.5, 2.0),
        *,
        aspect_range: tuple[float, float] | None = None,
        base_size: Mapping[str, int] | None = None,
        max_share: float = 0.75,
        flip_probability: float = 0.5,
        photometric: str = "full",
        photometric_strength: float = 1.0,
        padding: str = "mean",
        ignore_index: int = 255,
        flip_permutation: Sequence[int] | None = None,
    ):
        # mean and std in units of pixels, computed as the processor does, so that the result is equal to the last bit
        self.white = 1.0 / processor.rescale_factor if getattr(processor, "do_rescale", True) else None
        unit = self.white or 1.0
        self.mean, self.std = (torch.tensor(x) * unit for x in (processor.image_mean, processor.image_std))
        self.crop_size = tuple(crop_size)
        self.scale_range = scale_range
        self.aspect_range = aspect_range
        self.base_size = base_size
        self.max_share = max_share
        self.flip_probability = flip_probability
        self.photometric = "none" if self.white is None else photometric
        self.photometric_strength = photometric_strength
        self.fill = torch.zeros_like(self.mean) if padding == "mean" else -self.mean / self.std
        self.is_bgr = getattr(processor, "do_flip_channel_order", False)
        self.ignore_index = ignore_index
        self.flip_permutation = None if flip_permutation is None else np.asarray(flip_permutation)

    def collate(self, crops: list[tuple], empty: Callable = torch.empty) -> dict:
        """A batch of `crop`'s results.

        Args:
            empty: makes the tensors.

        Shape:
            returns: "pixel_values" (B, h, w, C), 8 bits (float32 for deeper images), "labels" (B, h, w), "sizes" the
                height and width of each without its padding, and, if colours change, "colors" (B, C, C + 1)
        """
        shape, channels = (len(crops), *self.crop_size), crops[0][0].shape[-1]
        depth = functools.reduce(torch.promote_types, (pixels.dtype for pixels, _, _ in crops))
        batch = {
            "pixel_values": empty((*shape, channels), dtype=depth),
            "labels": empty(shape, dtype=crops[0][1].dtype),
            "sizes": [tuple(labels.shape) for _, labels, _ in crops],
        }
        for number, (pixels, labels, _) in enumerate(crops):
            height, width = labels.shape
            batch["pixel_values"][number, :height, :width] = pixels
            batch["labels"][number, :height, :width] = labels
            batch["labels"][number, height:] = self.ignore_index
            batch["labels"][number, :, width:] = self.ignore_index
        if self.photometric != "none":
            batch["colors"] = empty((len(crops), channels, channels + 1), dtype=torch.float32)
            batch["colors"].numpy()[:] = [colors for _, _, colors in crops]
        return batch

    def finish(self, batch: dict) -> dict[str, torch.Tensor]:
        """Colours and normalization, which is the processor's.

        Shape:
            batch: what `collate` returns
            returns: "pixel_values" (B, C, h, w) float32 and "labels" (B, h, w) int64, on the device of the batch
        """
        images, labels = batch["pixel_values"], batch["labels"]
        pixels = _large((len(images), images.shape[-1], *self.crop_size), torch.float32, images.device)
        mean, std, fill = (values.to(images.device).view(-1, 1, 1) for values in (self.mean, self.std, self.fill))
        for number, (height, width) in enumerate(batch["sizes"]):  # one by one: what is in between stays in the cache
            image, result = images[number], pixels[number]
            if "colors" in batch:
                offset, matrix = batch["colors"][number][:, -1:], batch["colors"][number][:, :-1]
                torch.addmm(offset, matrix, image.flatten(0, 1).float().T, out=result.flatten(1))
                result.clamp_(0, self.white)
            else:
                result.copy_(image.permute(2, 0, 1))
            if self.is_bgr:
                result.copy_(result.flip(0))
            result.sub_(mean).div_(std)
            result[:, height:] = fill
            result[:, :, width:] = fill
        return {"pixel_values": pixels, "labels": _large(labels.shape, torch.int64, labels.device).copy_(labels)}

    def _base_scales(self, height: int, width: int) -> tuple[float, float]:
        """What factor 1 means for the rows and the columns of an image of this size."""
        if self.base_size is None:
            return 1.0, 1.0
        if self.base_size.get("height"):
            return self.base_size["height"] / height, self.base_size["width"] / width
        scale = self.base_size["shortest_edge"] / min(height, width)
        if longest := self.base_size.get("longest_edge"):
            scale = min(scale, longest / max(height, width))
        return scale, scale

    def largest_scale(self, height: int, width: int) -> float:
        """The largest factor that an image of this size can be resized by; a JPEG need not be decoded larger."""
        low, high = self.aspect_range or (1, 1)
        return self.scale_range[1] * max(self._base_scales(height, width)) * math.sqrt(max(high, 1 / low))

    def _draw_scales(self, sides: tuple[int, int], random: np.random.Generator) -> list[float]:
        """Factors of rows and columns."""
        low, high, *step = self.scale_range
        if step:
            scale = low + step[0] * random.integers(math.floor((high - low) / step[0] + 1e-6) + 1)
        else:
            scale = random.uniform(low, high)
        stretch = math.sqrt(random.uniform(*self.aspect_range)) if self.aspect_range else 1.0
        rows, columns = self._base_scales(*sides)
        return [scale * rows / stretch, scale * columns * stretch]

    def draw(self, labels: np.ndarray, random: np.random.Generator) -> tuple[tuple[int, int, int, int], list[int]]:
        """A part of the labels, (top, left, bottom, right), and the size that it gets, at most the crop size."""
        sides = labels.shape
        scales = self._draw_scales(sides, random)
        size = [
            min(crop, max(1, round(side * scale)))
            for crop, side, scale in zip(self.crop_size, sides, scales, strict=True)
        ]
        height, width = (
            side if out < crop else min(side, max(1, round(out / scale)))
            for out, crop, side, scale in zip(size, self.crop_size, sides, scales, strict=True)
        )
        step = max(1, round(math.sqrt(height * width) / 100))  # some 10,000 pixels tell the share well enough
        for _ in range(10):
            top, left = (int(random.integers(side - part + 1)) for side, part in zip(sides, (height, width)))
            if self.max_share >= 1:
                break
            crop = labels[top : top + height : step, left : left + width : step]
            counts = np.bincount(crop[crop != self.ignore_index])
            if counts.size and counts.max() <= self.max_share * counts.sum():
                break
        return (top, left, top + height, left + width), size

    def crop(self, image, labels: np.ndarray, random: np.random.Generator) -> tuple:
        """A random crop.

        Shape:
            image: PIL image, array (H', W', C) or tensor (C, H', W'), of the labels' size or smaller (see
                `largest_scale`); or a function of the number of rows that are needed that gives these of it, or more
            labels: (H, W)
            returns: pixels (h', w', C), 8 bits (float32 for deeper images), labels (h', w'), at most of the crop size;
                and (C, C + 1), a matrix and an offset for the colours, or None if they stay
        """
        box, size = self.draw(labels, random)
        flip = random.random() < self.flip_probability
        if callable(image):
            image = image(box[2])
        is_pil = isinstance(image, Image.Image)
        image = image if is_pil else to_array(image)
        factor = round(labels.shape[1] / (image.width if is_pil else image.shape[1]))  # 2, 4, 8 if decoded smaller
        top, left, bottom, right = (round(edge / factor) for edge in box)
        # PIL's crop is a fast copy, its conversion to an array is not
        part = image.crop((left, top, right, bottom)) if is_pil else image[top:bottom, left:right]
        pixels = torch.from_numpy(np.ascontiguousarray(to_array(part)))
        if list(pixels.shape[:2]) != size:
            planes = pixels[None].permute(0, 3, 1, 2)  # channels last, for which torch has the fastest code
            pixels = interpolate(planes, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0)
        rows, columns = (  # the nearest to the centre of each target pixel, which agrees with the image
            start + (2 * np.arange(out) + 1) * (stop - start) // (2 * out)
            for start, stop, out in zip(box[:2], box[2:], size, strict=True)
        )
        labels = np.take(labels[rows], columns[::-1] if flip else columns, axis=1)
        if flip and self.flip_permutation is not None:
            is_class = labels != self.ignore_index
            labels[is_class] = self.flip_permutation[labels[is_class]]
        colors = self.colors(random, pixels.shape[-1]) if self.photometric != "none" else None
        return pixels.flip(1) if flip else pixels, torch.from_numpy(labels), colors

    def colors(self, random: np.random.Generator, channels: int) -> np.ndarray:
        """(C, C + 1) float32: a matrix, and an offset, for the colours of an image."""
        colors, strength = np.eye(channels, channels + 1), self.photometric_strength
        if self.photometric == "brightness":
            colors[:, -1] = strength * random.integers(-10, 11) / 255 * self.white
            return colors.astype(np.float32)
        chances, values = random.random((2, 4)).tolist()
        drawn = (strength * (2 * value - 1) if chance < 0.5 else 0.0 for chance, value in zip(chances, values))
        brightness, contrast, saturation, hue = drawn  # each in [-strength, strength]
        if channels == 3:
            chroma = (1 + 0.5 * saturation) * cmath.exp(1j * math.radians(36) * hue)
            colors[:, :3] = self.LUMA + chroma.real * self.CHROMA + chroma.imag * self.TURNED_CHROMA
        colors[:, -1] = 32 / 255 * self.white * brightness
        return ((1 + 0.5 * contrast) * colors).astype(np.float32)


def _large(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An uninitialized tensor; in main memory in pages of 2 MB, as numpy asks for, because small ones cost time."""
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(shape, str(dtype).removeprefix("torch.")))


def to_array(image: Image.Image | np.ndarray | torch.Tensor) -> np.ndarray:
    """(H, W, C)"""
    if isinstance(image, torch.Tensor):
        return image.permute(1, 2, 0).numpy()
    array = np.array(image) if isinstance(image, Image.Image) else image
    return array[..., None] if array.ndim == 2 else array
