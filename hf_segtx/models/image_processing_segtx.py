"""Image processors: from pictures and label maps to tensors, and from logits back to label maps.

Order of the steps: to channels first (and to RGB, or BGR), resize, rescale to [0, 1], normalise, enlarge or pad on the
right and bottom, cut into windows if `window_size` is set. Label maps go the same way by nearest neighbour, then labels
are reduced if asked, then padded with 255.

Each architecture has one class per back-end, torchvision and PIL (for machines without torchvision). Defaults:

| class     | mean, std | size     | pad to | source                                                                   |
|-----------|-----------|----------|--------|--------------------------------------------------------------------------|
| SegFormer | ImageNet  | 2048x512 | 32     | NVlabs/SegFormer local_configs/_base_/datasets/ade20k_repeat.py          |
| SETR      | ImageNet  | 2048x512 | 16     | fudan-zvg/SETR configs/_base_/datasets/ade20k.py; patches of 16 pixels   |
| Segmenter | 0.5, 0.5  | 2048x512 | 16     | rstrudel/segmenter segm/data/config/ade20k.py, segm/data/utils.py (vit)  |
| OCRNet    | ImageNet  | 2048x512 | 32     | mmsegmentation configs/_base_/datasets/ade20k.py                         |

Images are padded to what the coarsest map counts in: patches, or the stride of the last stage. Maps of other images end
beyond the image, each somewhere else; stretched over it they are shifted against each other. That costs some percent of
mean IoU, most at the right and at the bottom. The papers avoid such sizes by the crops and windows that they show.

"2048x512" is the papers' protocol: the image keeps its ratio and becomes as large as possible with its shortest edge
at most 512 and its longest at most 2048 pixels. transformers' SegformerImageProcessor squashes to 512 x 512 instead;
a checkpoint saved with that (`size={"height": 512, "width": 512}`) keeps it here.

A processor with `window_size` returns the windows of all images as one batch, and `windows`, where they lie; the model
passes these through to its output, where post-processing finds them. So a checkpoint predicts as it was scored.

Shapes: B images, N windows, C channels, K classes; (H, W) original size, (h, w) size of the logits. Sizes are (height,
width).
"""

from collections.abc import Mapping
from itertools import product
from numbers import Integral, Real

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import PreTrainedConfig
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs, Unpack

from .sliding_windows import (
    MergedWindows,
    enlarged_size,
    padded_size,
    padding_rule,
    unpadded_positions,
    unstack,
    window_grid,
)
from .upsampling import argmax_at, logits_at, upsampled_argmax


IGNORE_LABEL = 255  # what unlabelled and padded pixels get, unless `ignore_index` says otherwise


class SegtxImageProcessorKwargs(ImagesKwargs, total=False):
    """What a processor takes beyond transformers' `ImagesKwargs`, when built and in each call.

    Args:
        do_reduce_labels: label 0 becomes 255, as does -100, and label k becomes k - 1; 255 stays. For label maps whose
            0 means "none of the classes" (ADE20K as distributed).
        size_divisor: pad height and width to multiples of this many pixels; None for no such padding. A `size` of
            "height" and "width" is meant as it is said and not padded.
        minimum_size: pad height and width to at least this many pixels, what the network needs; None for no such
            padding. For the same sizes as `size_divisor`.
        align_corners: how post-processing upsamples the logits, as in `F.interpolate`; that of the model, see `follow`.
        ignore_index: label of unlabelled and padded pixels; that of the model.
        window_size: show the model windows of this size, in pixels after resizing: a number, or height and width; None
            for whole images. Smaller images are padded to it, and `size_divisor` is not needed.
        window_stride: from one window to the next, likewise; None for windows side by side. The last window is aligned
            to the border.
        stretch_divisor: after resizing with the ratio kept, stretch height and width up to multiples of this many
            pixels (SegFormer on ADE20K: 32); None for no such stretching. Both happen in one step.
        small_images: what becomes of images with a side below that of a window. "pad": they are padded. "cut": the
            window ends where they end (mmsegmentation). "enlarge": after resizing they are resized once more, until no
            side is (Segmenter). "resize": as "pad", but when several scales are tested, their shortest edge is that of
            `size` times the scale, at least the window's longer side, and the longest edge is free (SETR).
        averaging: of several scales and flips: of "probabilities"; of "logits", and without windows it is the padded
            input that is mirrored and resized for each scale (OCRNet's openseg); or of "exp", the exponentials of
            logits at the size that the model sees, which are of the mean of both flips (HRNet-OCR).
        do_flip_channel_order: show the model BGR; `image_mean` and `image_std` are then meant in that order, too.
        temperature: what logits are divided by before the softmax that confidences come from (Guo et al., 2017, fitted
            by `hf_segtx.calibration`); None for 1. Label maps do not depend on it.
    """

    do_reduce_labels: bool
    size_divisor: int | None
    minimum_size: int | None
    align_corners: bool
    ignore_index: int
    window_size: int | list[int] | tuple[int, int] | None
    window_stride: int | list[int] | tuple[int, int] | None
    stretch_divisor: int | None
    small_images: str
    averaging: str
    do_flip_channel_order: bool
    temperature: float | None


# transformers looks for the keyword arguments of a processor class under the name of the class.
SegFormerImageProcessorKwargs = SegtxImageProcessorKwargs
SETRImageProcessorKwargs = SegtxImageProcessorKwargs
SegmenterImageProcessorKwargs = SegtxImageProcessorKwargs
OCRNetImageProcessorKwargs = SegtxImageProcessorKwargs


def resized_size(height: int, width: int, size: SizeDict, stretch_divisor: int | None = None) -> tuple[int, int]:
    """Size in pixels that an image of (height, width) pixels is resized to.

    `{"height", "width"}` is that size. `{"shortest_edge", "longest_edge"}` (the second may be missing) keeps the ratio:
    the largest scale at which neither edge exceeds its bound, then each edge rounded to the nearest pixel, halves up.
    That is mmcv's `rescale_size`; transformers' own rule rounds down and so differs by up to a pixel. With
    `stretch_divisor` each edge then becomes the next multiple of it (`AlignedResize` of SegFormer's authors).

    Raises:
        ValueError: if `size` has other keys.
    """
    if size.height and size.width:
        return size.height, size.width
    if not size.shortest_edge:
        raise ValueError(f"size is {dict(size)}; give height and width, or shortest_edge and, if bounded, longest_edge")
    scale = size.shortest_edge / min(height, width)
    if size.longest_edge:
        scale = min(scale, size.longest_edge / max(height, width))
    return padded_size([(int(height * scale + 0.5), int(width * scale + 0.5))], stretch_divisor or 1)  # at least 1


def enlarged(image, size: tuple[int, int]):
    """Float pixels (C, H, W), a tensor or an array, resized bilinearly to the larger `size`."""
    if tuple(image.shape[1:]) == size:
        return image
    result = F.interpolate(torch.as_tensor(image)[None], size, mode="bilinear")[0]
    return result if isinstance(image, torch.Tensor) else result.numpy()


def window_grids(sizes: list[tuple[int, int]], *settings) -> list[tuple]:
    """The `window_grid` of each image.

    Raises:
        ValueError: if their windows are of several sizes, and so no batch.
    """
    grids = [window_grid(size, *settings) for size in sizes]
    if len({window for window, _ in grids}) > 1:
        raise ValueError(
            "images below the window, of several sizes: with small_images 'cut' their windows are no batch; process "
            "the images one by one, or call hf_segtx.inference.predict"
        )
    return grids


def nearest_resize(label_map: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Nearest-neighbour resizing as PIL's NEAREST and torch's "nearest-exact", but exact for integers of any size.

    Shape:
        label_map: (H, W) integers
        returns: (H', W') = size
    """
    # The centre of target pixel i lies at (i + 1/2) * source / target.
    rows, columns = (
        torch.div((2 * torch.arange(target) + 1) * source, 2 * target, rounding_mode="floor").to(label_map.device)
        for source, target in zip(label_map.shape, size, strict=True)
    )
    return label_map[rows[:, None], columns]


def scaled_to_255(pixels: torch.Tensor) -> torch.Tensor:
    """Unsigned integers of more than 8 bits, divided so that their largest is 255, as float32; others as they are."""
    if pixels.dtype in (torch.uint16, torch.uint32, torch.uint64):
        return pixels.float().div_(torch.iinfo(pixels.dtype).max // 255)
    return pixels


def is_of_fractions(pixels: torch.Tensor) -> bool:
    """Whether they are floats between 0 and 1, and not only these two, as `ToTensor` of torchvision makes them."""
    if not pixels.is_floating_point() or not pixels.numel() or pixels.min() < 0 or pixels.max() > 1:
        return False
    return bool((pixels != pixels.round()).any())


def refuse_fractions(images, do_rescale: bool, rescale_factor: float) -> None:
    """Raises ValueError if an image is one of [`is_of_fractions`], which dividing by 255 would make black."""
    for index, image in enumerate(images if do_rescale and rescale_factor < 0.1 else []):
        if is_of_fractions(torch.as_tensor(image)):
            raise ValueError(
                f"image {index} holds fractions of 0 to 1, expected are 0 to 255; multiply it by 255 (by 257, if 8 "
                "bits were stored as 16), or pass do_rescale=False"
            )


def pil_numbers(image: Image.Image) -> np.ndarray:
    """(H, W) or (H, W, C) of a PIL image, in the byte order of the machine; 1-bit pixels become 0 and 1.

    Pillow has integers of 32 bits with a sign only; whether they are what was in the file, its format says.
    """
    array = np.asarray(image.convert("L")) // 255 if image.mode == "1" else np.asarray(image)
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        return array.astype(np.uint16)
    if image.mode == "I" and image.format == "TIFF" and image.tag_v2.get(339, (1,)) == (1,):  # SampleFormat: no sign
        return array.view(np.uint32)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _channels_last(shape: tuple[int, int, int], channels: int, data_format, is_tensor: bool) -> bool:
    """Whether the last axis of an image is that of the channels; as far as both could be, it is, but not of tensors."""
    if data_format is not None:
        return ChannelDimension(data_format) == ChannelDimension.LAST
    fitting = (channels, 1, 4) if channels == 3 else (channels,)
    first, last = shape[0] in fitting, shape[2] in fitting
    return last and not first if is_tensor else last or not first


def label_map(given, size: tuple[int, int]) -> torch.Tensor:
    """A segmentation map as (H, W) int64.

    Args:
        given: a PIL image, array or tensor of label ids; the palette index of a picture counts, not its colour.
        size: (H, W) of its image.

    Raises:
        ValueError: if it is of another size, or holds colours, fractions or negative numbers other than -100.
    """
    if isinstance(given, Image.Image):
        if len(given.getbands()) > 1:
            raise ValueError(
                f"a segmentation map is a picture of mode {given.mode}, with {len(given.getbands())} channels; map its "
                "colours, and give label ids, one for each pixel, as a PIL image of mode L, P or I;16 or an array"
            )
        given = pil_numbers(given)
    if not isinstance(given, torch.Tensor):
        given = np.asarray(given)
        if given.dtype.kind not in "biuf":
            raise ValueError(f"a segmentation map of the type {given.dtype}; label ids are whole numbers")
        given = given.view(np.uint8) != 0 if given.dtype == bool else given  # a true byte may be any but 0
        given = torch.from_numpy(np.array(given, given.dtype.newbyteorder("="), order="C"))
    ids = given
    if tuple(ids.shape) in ((*size, 1), (1, *size)):  # an axis of one channel
        ids = ids.reshape(size)
    if tuple(ids.shape) != tuple(size):
        what = f"a segmentation map has the shape {tuple(given.shape)}, its image {tuple(size)} (height, width); "
        if given.ndim == 3 and {3, 4} & {given.shape[0], given.shape[2]}:
            what += "it seems to be an RGB picture, whose colours are to be mapped: "
        raise ValueError(what + "give one map of label ids, (height, width), for each image and of its size")
    if ids.is_floating_point() and not bool((ids == ids.round()).all()):
        value = float(ids[ids != ids.round()][0])
        raise ValueError(
            f"a segmentation map holds fractions (first {value:.6g}); label ids are whole numbers: give them as "
            "integers, not as ToTensor scales them (k / 255)"
        )
    ids = ids.long()
    if bool((negative := (ids < 0) & (ids != -100)).any()):
        raise ValueError(
            f"a segmentation map holds {int(ids[negative][0])}; label ids are not negative, and what is ignored is "
            f"{IGNORE_LABEL} (or -100)"
        )
    return ids


def listed_maps(maps, count: int) -> list:
    """Segmentation maps of `count` images, one by one.

    Raises:
        ValueError: if their number is another one.
    """
    if isinstance(maps, Image.Image) or not isinstance(maps, (list, tuple)) and (maps.ndim == 2 or count == 1):
        maps = [maps[0] if getattr(maps, "ndim", 2) == 4 else maps]
    if len(maps) != count:
        raise ValueError(f"{len(maps)} segmentation maps for {count} images; give one map of label ids for each image")
    return list(maps)


def checked_sizes(target_sizes, defaults: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The target sizes as integers, or the defaults if there are none.

    Raises:
        ValueError: if there is not one per image, or one is no pair of whole numbers above 0.
    """
    if target_sizes is None:
        return defaults
    if len(target_sizes) != len(defaults):
        raise ValueError(f"{len(target_sizes)} target sizes for {len(defaults)} images; give one (H, W) per image")
    sizes = []
    for number, given in enumerate(target_sizes):
        try:
            size = tuple(map(int, given))
            is_right = len(size) == 2 and min(size) > 0 and size == tuple(given)
        except (TypeError, ValueError, OverflowError):  # texts, a single number, nan, infinity
            is_right = False
        if not is_right:
            raise ValueError(f"target_sizes[{number}] is {given}; give height and width in whole pixels, at least 1")
        sizes.append(size)
    return sizes


def with_channel_axis(images, data_format=None):
    """Images, one or a list: arrays and tensors (H, W), which are grey, get an axis of one channel; others stay."""
    if isinstance(images, (list, tuple)):
        return [with_channel_axis(image, data_format) for image in images]
    if getattr(images, "ndim", None) != 2:
        return images
    default = ChannelDimension.FIRST if isinstance(images, torch.Tensor) else ChannelDimension.LAST
    return images[None] if ChannelDimension(data_format or default) == ChannelDimension.FIRST else images[..., None]


class PixelsForPipeline(torch.Tensor):
    """Pixels that explain why they cannot be concatenated; whatever else is computed of them is a plain tensor.

    Raises:
        ValueError: by `torch.cat` with pixels of another size.
    """

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), named=None):
        with torch._C.DisableTorchFunctionSubclass():
            if function is torch.cat and len(sizes := {tuple(pixels.shape[2:]) for pixels in arguments[0]}) > 1:
                raise ValueError(
                    f"images of {' and '.join(f'{height}x{width}' for height, width in sorted(sizes))} pixels in one "
                    "batch; leave pipeline's batch_size at 1, set the processor's window_size (windows have one size) "
                    "or its size to a height and width, or call hf_segtx.inference.predict"
                )
            result = function(*arguments, **(named or {}))
        return result.as_subclass(cls) if function is torch.Tensor.to else result


TEMPERATURES = (0.1, 10.0)  # beyond, a softmax in float32 has nothing left to tell classes apart by

# What settings are, often of a file: names; words for it; type, bounds and greatest number of the values.
KINDS = (
    ("do_resize do_rescale do_normalize do_pad do_convert_rgb", "true or false", bool, 0, 1, 0),
    ("do_reduce_labels align_corners do_flip_channel_order", "true or false", bool, 0, 1, 0),
    ("size_divisor minimum_size stretch_divisor", "a number of pixels, 1 to 65536", Integral, 1, 2**16, 0),
    ("size window_size window_stride", "one or two numbers of pixels, 1 to 65536", Integral, 1, 2**16, 2),
    ("image_mean", "a number, or one for each channel", Real, -1e9, 1e9, 2**16),
    ("image_std", "a number above 0, or one for each channel", Real, 1e-9, 1e9, 2**16),
    ("rescale_factor", "a number above 0, such as 0.00392 for 1 / 255", Real, 1e-12, 1e9, 0),
    ("resample", "PIL's number of a filter, 0 to 5, such as 2 for bilinear", Integral, 0, 5, 0),
    ("ignore_index", "a whole number", Integral, -(2**31), 2**31 - 1, 0),
    ("temperature", "a number, 0.1 to 10", Real, *TEMPERATURES, 0),
)

CHOICES = {"small_images": ("pad", "cut", "enlarge", "resize"), "averaging": ("probabilities", "logits", "exp")}


def check_settings(settings: Mapping) -> None:
    """Whether what a processor is built with is of the `KINDS` and among the `CHOICES`.

    Raises:
        ValueError: for the first setting that is not, with its value.
    """
    for names, words, kind, least, most, count in KINDS:
        for name in names.split():
            given = values = settings.get(name)
            if isinstance(given, (dict, SizeDict)) and name == "size":
                values = [value for value in dict(given).values() if value is not None]
            values = values if isinstance(values, (list, tuple)) and len(values) <= count else [values]
            is_right = len(values) > 0 and all(
                isinstance(value, kind) and isinstance(value, bool) == (kind is bool) and least <= value <= most
                for value in values
            )
            if given is not None and not is_right:
                raise ValueError(f"{name} is {given!r}; give {words}")
    for name, choices in CHOICES.items():
        if settings.get(name, choices[0]) not in choices:
            raise ValueError(f"{name} is {settings[name]!r}; give {', '.join(choices[:-1])} or {choices[-1]}")
    if not isinstance(settings.get("auto_map"), (dict, type(None))):
        raise ValueError(f"auto_map is {settings['auto_map']!r}; it names the classes by their roles")


class SegmentationProcessing:
    """What the two back-ends share; first base of both. They add `_resize_and_normalize`."""

    valid_kwargs = SegtxImageProcessorKwargs
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 512, "longest_edge": 2048}
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_pad = True
    do_reduce_labels = False
    size_divisor = None
    minimum_size = None
    align_corners = False
    ignore_index = IGNORE_LABEL
    window_size = None
    window_stride = None
    stretch_divisor = None
    small_images = "pad"
    averaging = "probabilities"
    do_flip_channel_order = False
    temperature = None
    _in_batches = False

    def __init__(self, **kwargs: Unpack[SegtxImageProcessorKwargs]):
        if "reduce_labels" in kwargs:  # the name in checkpoints written by transformers before 4.30
            kwargs.setdefault("do_reduce_labels", kwargs.pop("reduce_labels"))
        check_settings(kwargs)
        super().__init__(**kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in transformers; errors name the file.

        Raises:
            ValueError: if it holds no settings, or impossible ones.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (AttributeError, TypeError, ValueError) as error:  # what is no object fails in some way
            file = f"{pretrained_model_name_or_path}/preprocessor_config.json"
            raise ValueError(f"{file} does not hold the settings of an image processor: {error}") from error

    @property
    def padding_value(self) -> None:
        """None. Asked for by `pipeline(images, batch_size=...)` before it concatenates what this returns per image."""
        self._in_batches = True

    def follow(self, config: PreTrainedConfig) -> "SegmentationProcessing":
        """Takes over what the configuration of the model decides, so that predictions are made as the loss saw them.

        That is `align_corners` and `ignore_index`; and images are padded to whole patches. Called wherever a model and
        its processor are made or loaded together.
        """
        self.align_corners = getattr(config, "align_corners", False)
        self.ignore_index = getattr(config, "semantic_loss_ignore_index", IGNORE_LABEL)
        patch_size = getattr(config, "patch_size", 1)
        if self.size_divisor and self.size_divisor % patch_size:
            self.size_divisor = patch_size
        return self

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[SegtxImageProcessorKwargs],
    ) -> BatchFeature:
        """Tensors for the model. Images of different sizes come out padded to one size (unless `do_pad=False`).

        Args:
            images: one or a list of PIL images, arrays or tensors. Arrays and tensors have as many channels as
                `image_mean` has entries, first or last, or two axes if they are grey, and 0-255 (or
                `do_rescale=False`); integers without a sign of more than 8 bits are scaled to that. Where both axes
                could be the channels', it is the last of arrays and the first of tensors, or what `input_data_format`
                says. With `do_convert_rgb`, grey, palette and RGBA images become what the model expects, without
                transparency.
            segmentation_maps: one map of label ids for each image, of its size: PIL images of mode 1, L, P, I or I;16
                (the palette index counts, not the colour), arrays or tensors.
            **kwargs: any attribute of the processor, for this call only.

        Shape:
            images: (H, W, C), (C, H, W) or (H, W); segmentation_maps: (H, W)
            returns: `pixel_values` (B, C, H', W') float32 and, with maps, `labels` (B, H', W') int64. If `window_size`
                is set, N windows instead of B images, and `windows` (N, 7) int64: number of the image; top, left,
                height and width of the window; height and width of the resized image.

        Raises:
            ValueError: if there is no image, if maps and images differ in number or size, maps hold anything but label
                ids, or images have another number of channels than `image_mean`.
        """
        if images is None or isinstance(images, (list, tuple)) and len(images) == 0:
            raise ValueError(f"images is {images!r}; give at least one: PIL image, (H, W, C) array or (C, H, W) tensor")
        images = with_channel_axis(images, kwargs.get("input_data_format"))
        return super().preprocess(images, segmentation_maps, **kwargs)

    def _preprocess_image_like_inputs(
        self,
        images,
        segmentation_maps,
        do_convert_rgb,
        do_resize,
        do_pad,
        do_reduce_labels,
        ignore_index,
        size,
        size_divisor,
        minimum_size,
        image_mean,
        input_data_format,
        return_tensors,
        window_size,
        window_stride,
        stretch_divisor,
        small_images,
        do_flip_channel_order,
        device=None,
        **kwargs,
    ):
        images = self._prepare_image_like_inputs(
            images,
            do_convert_rgb=do_convert_rgb,
            input_data_format=input_data_format,
            num_channels=len(image_mean) if isinstance(image_mean, (list, tuple)) else None,
            device=device,
        )  # each (C, H, W)
        refuse_fractions(images, kwargs["do_rescale"], kwargs["rescale_factor"])
        if do_flip_channel_order:
            images = [image[list(reversed(range(len(image))))] for image in images]
        original_sizes = [tuple(image.shape[-2:]) for image in images]
        resizing = size, stretch_divisor
        sizes = [resized_size(*original, *resizing) if do_resize else original for original in original_sizes]
        pixel_values = self._resize_and_normalize(images, sizes, image_mean=image_mean, **kwargs)
        if window_size is not None:
            if small_images == "enlarge":
                sizes = [enlarged_size(resized, window_size) for resized in sizes]
                pixel_values = [enlarged(image, size) for image, size in zip(pixel_values, sizes, strict=True)]
            network = size_divisor, minimum_size, small_images == "cut"
            grids = window_grids(sizes, window_size, window_stride, *network)
            padded = [tuple(map(max, resized, window)) for resized, (window, _) in zip(sizes, grids, strict=True)]
        elif do_pad:
            padded = [padded_size(sizes, *padding_rule(size, do_resize, size_divisor, minimum_size))] * len(images)
        else:
            padded = sizes
        pixel_values = [
            self.pad([image], pad_size=SizeDict(height=height, width=width))[0]
            for image, (height, width) in zip(pixel_values, padded, strict=True)
        ]
        data = {"pixel_values": pixel_values}
        if window_size is not None:
            data["windows"] = [
                (index, top, left, *window, *resized)
                for index, (resized, (window, starts)) in enumerate(zip(sizes, grids, strict=True))
                for top, left in product(*starts)
            ]

        if segmentation_maps is not None:
            data["labels"] = []
            for number, given in enumerate(listed_maps(segmentation_maps, len(images))):
                resized, (height, width) = sizes[number], padded[number]
                label = nearest_resize(label_map(given, original_sizes[number]), resized)
                if do_reduce_labels:
                    label = torch.where((label <= 0) | (label == ignore_index), ignore_index, label - 1)  # 0, -100
                label = F.pad(label, (0, width - resized[1], 0, height - resized[0]), value=ignore_index)
                data["labels"].append(label.numpy() if self.backend == "pil" else label)
        for name in ("pixel_values", "labels") if "windows" in data else ():
            if name in data:
                data[name] = [
                    data[name][index][..., top : top + height, left : left + width]
                    for index, top, left, height, width, *_ in data["windows"]
                ]
        if len(images) == 1 and "windows" not in data and return_tensors is not None:
            data["pixel_values"] = data["pixel_values"][0][None]  # stacking would make a copy
            if return_tensors == "pt" and self._in_batches:
                data["pixel_values"] = torch.as_tensor(data["pixel_values"]).as_subclass(PixelsForPipeline)
        return BatchFeature(data=data, tensor_type=return_tensors)

    def process_image(self, image, do_convert_rgb=None, input_data_format=None, num_channels=None, **kwargs):
        """One image as (C, H, W). As in transformers, but for any number of channels C and more than 8 bits.

        As when training data are read: integers without a sign of more than 8 bits are scaled to 0-255, transparency is
        dropped.

        Args:
            num_channels: C that the model expects; None if not known, then 3 is.

        Raises:
            ValueError: if the image has another number of channels.
        """
        channels, is_tensor = num_channels or 3, isinstance(image, torch.Tensor)
        if isinstance(image, Image.Image):
            mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(channels)
            image = image.convert(mode) if do_convert_rgb and mode and image.mode[0] not in "IF" else image
            image, input_data_format = pil_numbers(image), ChannelDimension.LAST
        if not is_tensor:
            image = torch.from_numpy(np.array(image, image.dtype.newbyteorder("="), order="C"))
        if image.ndim == 2:
            image = image[None]
        elif _channels_last(image.shape, channels, input_data_format, is_tensor):
            image = image.permute(2, 0, 1)
        image = scaled_to_255(image)
        if do_convert_rgb and channels == 3 and image.shape[0] in (1, 4):
            image = image[:3].expand(3, -1, -1)
        if num_channels not in (None, image.shape[0]):
            raise ValueError(
                f"image of {image.shape[0]} channels (shape {tuple(image.shape)}, channels first) for image_mean of "
                f"{num_channels} values; give images of {num_channels} channels, or set image_mean and image_std"
            )
        if self.backend == "pil":
            return image.numpy()
        return image.contiguous().to(kwargs.get("device"))

    def post_process_semantic_segmentation(
        self,
        outputs,
        target_sizes: list[tuple[int, int]] | torch.Tensor | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """Label maps from the output of a `...ForSemanticSegmentation` model.

        Logits are upsampled bilinearly and the class of the largest is taken (with one class: 1 where the logit is
        positive). Windows are averaged where they overlap. Padding is left out: which part of the logits belongs to the
        image follows from the target sizes and the processor's own rules, so give the same images, in one batch, with
        the processor's own `size`, `do_resize`, `do_pad`, `size_divisor` and `minimum_size`; windows say it themselves.
        What the model saw in the padding still has its effect near the border.

        Args:
            outputs: has `logits` and, if the processor cut the images into windows, `windows`. With `align_corners` the
                logits are upsampled so, whatever the processor says.
            target_sizes: size of each original image; None for maps at the resolution of the logits, with padding, or,
                with windows, at that of the resized images.
            return_segmentation_scores: return the upsampled logits too. Takes K times the memory of the image.

        Shape:
            logits: (B, K, h, w), or (N, K, h, w) of windows; target_sizes: B pairs (H, W)
            returns: B maps (H, W) int64, or B outputs with `segmentation` (H, W), `segmentation_scores` (K, H, W)

        Raises:
            ValueError: if there is not one target size per image, or the windows are missing.
        """
        logits, windows = outputs.logits, getattr(outputs, "windows", None)
        align_corners = self.align_corners or getattr(outputs, "align_corners", None) is not None
        settings = target_sizes, return_segmentation_scores, align_corners
        if windows is not None:
            if windows.ndim == 3:
                logits, windows = unstack(logits, windows)
            results = self._merge_windows(logits, windows.tolist(), *settings)
        elif self.window_size is not None:
            raise ValueError(
                "the processor cuts images into windows, but the model's output has none; call the model with all that "
                "the processor returns, model(**inputs), or the processor with window_size=None and set it to None"
            )
        else:
            results = self._upsample(logits, *settings)
        if not return_segmentation_scores:
            return [label_map for label_map, _ in results]
        names = ("segmentation", "segmentation_scores")
        return [SemanticSegmentationPostProcessorOutput(dict(zip(names, result, strict=True))) for result in results]

    def _merge_windows(
        self, logits, windows, target_sizes, with_scores, align_corners
    ) -> list[tuple[torch.Tensor, ...]]:
        """Label map and, if asked for, logits of each image."""
        members: dict[int, list[int]] = {}
        for position, (index, *_) in enumerate(windows):
            members.setdefault(index, []).append(position)
        own_sizes = [tuple(windows[first][5:]) for first, *_ in members.values()]
        targets = checked_sizes(target_sizes, own_sizes)
        results = []
        for own, target, window_numbers in zip(own_sizes, targets, members.values(), strict=True):
            starts = tuple(sorted({windows[position][axis] for position in window_numbers}) for axis in (1, 2))
            if len(window_numbers) != len(starts[0]) * len(starts[1]):
                raise ValueError(
                    f"{len(window_numbers)} windows of an image that has {len(starts[0]) * len(starts[1])}; hand over "
                    "the output for all that one call of the processor returned, and no more than that"
                )
            size = tuple(windows[window_numbers[0]][3:5])
            merged = MergedWindows(own, target, size, starts, align_corners)
            for position in window_numbers:
                merged.add(logits[position])
            results.append((merged.label_map(0, target[0]), merged.logits(0, target[0]) if with_scores else None))
        return results

    def _upsample(self, logits, target_sizes, with_scores, align_corners) -> list[tuple[torch.Tensor, ...]]:
        """Label map and, if asked for, logits of each image."""
        steps = tuple(logits.shape[-2:])
        targets = checked_sizes(target_sizes, [steps] * len(logits))
        if target_sizes is None:
            processed, padded = targets, steps
        else:
            size = SizeDict(**dict(self.size))
            resizing = size, self.stretch_divisor
            processed = [resized_size(*target, *resizing) if self.do_resize else target for target in targets]
            rule = padding_rule(size, self.do_resize, self.size_divisor, self.minimum_size)
            padded = padded_size(processed, *rule) if self.do_pad else processed[0]
        results = [None] * len(targets)
        for target, own in dict(zip(targets, processed, strict=True)).items():  # images of one size in one call
            indices = [index for index, other in enumerate(targets) if other == target]
            group = logits if len(indices) == len(targets) else logits[indices]
            places = unpadded_positions(target, own, padded, steps, align_corners)
            if own == padded:
                label_maps = upsampled_argmax(group, target, align_corners=align_corners)
            else:
                label_maps = argmax_at(group, *places)
            scores = logits_at(group, *places) if with_scores else indices
            for index, *result in zip(indices, label_maps, scores, strict=True):
                results[index] = tuple(result)
        return results

    def to_dict(self):
        """As in transformers, but where the code travels with the checkpoint, both back-ends are named."""
        dictionary = super().to_dict()
        dictionary.pop("_in_batches", None)
        reference = (dictionary.get("auto_map") or {}).get("AutoImageProcessor")
        if reference is not None:
            module, name = (reference if isinstance(reference, str) else next(iter(reference.values()))).split(".")
            name = name.removesuffix("Pil")
            backends = {"torchvision": f"{module}.{name}", "pil": f"{module}.{name}Pil"}
            dictionary["auto_map"] = {"AutoImageProcessor": backends}
        return dictionary


class SegtxImageProcessor(SegmentationProcessing, TorchvisionBackend):
    """Image processor on torchvision: tensors throughout, on the GPU with `device="cuda"`."""

    def _resize_and_normalize(
        self, images, sizes, resample, do_rescale, rescale_factor, do_normalize, image_mean, image_std, **kwargs
    ):
        normalized = []
        for image, size in zip(images, sizes, strict=True):
            if tuple(image.shape[-2:]) != size:
                image = self.resize(image, SizeDict(height=size[0], width=size[1]), resample)
            normalized.append(
                self.rescale_and_normalize(image, do_rescale, rescale_factor, do_normalize, image_mean, image_std)
            )
        return normalized  # each (C, H', W')


class SegtxImageProcessorPil(SegmentationProcessing, PilBackend):
    """Image processor on PIL and NumPy, for machines without torchvision."""

    def _resize_and_normalize(
        self, images, sizes, resample, do_rescale, rescale_factor, do_normalize, image_mean, image_std, **kwargs
    ):
        normalized = []
        for image, size in zip(images, sizes, strict=True):
            if image.shape[-2:] != size:
                image = self.resize(image, SizeDict(height=size[0], width=size[1]), resample)
            if do_rescale:
                image = self.rescale(image, rescale_factor)
            if do_normalize:
                image = self.normalize(image, image_mean, image_std)
            normalized.append(image)
        return normalized  # each (C, H', W')

    def resize(self, image, size, resample=None, **kwargs):
        """As in transformers, but for any number of channels, and floats are not rounded to 8 bits on the way.

        Shape:
            image: (C, H, W); returns: (C, H', W')
        """
        channels = image if image.dtype == np.uint8 else image.astype(np.float32)  # PIL's modes L and F
        return np.stack(
            [np.asarray(Image.fromarray(channel).resize((size.width, size.height), resample)) for channel in channels]
        )


class SegFormerImageProcessor(SegtxImageProcessor):
    """SegFormer's defaults (see the table above). Its first stage reduces a map at 1/4 of the image by 8."""

    size_divisor = 32
    minimum_size = 29


class SegFormerImageProcessorPil(SegtxImageProcessorPil):
    """SegFormer's defaults, PIL back-end."""

    size_divisor = 32
    minimum_size = 29


class SETRImageProcessor(SegtxImageProcessor):
    """SETR's defaults (see the table above)."""

    size_divisor = 16


class SETRImageProcessorPil(SegtxImageProcessorPil):
    """SETR's defaults, PIL back-end."""

    size_divisor = 16


class SegmenterImageProcessor(SegtxImageProcessor):
    """Segmenter's defaults (see the table above). Models with patches of 32 pixels need `size_divisor=32`."""

    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    size_divisor = 16


class SegmenterImageProcessorPil(SegtxImageProcessorPil):
    """Segmenter's defaults, PIL back-end."""

    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    size_divisor = 16


class OCRNetImageProcessor(SegtxImageProcessor):
    """OCRNet's defaults (see the table above)."""

    size_divisor = 32


class OCRNetImageProcessorPil(SegtxImageProcessorPil):
    """OCRNet's defaults, PIL back-end."""

    size_divisor = 32
