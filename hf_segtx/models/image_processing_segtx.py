"""Image processors: from pictures and label maps to tensors, and from logits back to label maps.

Order of the steps: to channels first (and to RGB), resize, rescale to [0, 1], normalise, pad on the right and bottom.
Label maps go the same way by nearest neighbour, then labels are reduced if asked, then padded with 255.

Each architecture has one class a back-end, torchvision and PIL (for machines without torchvision), with these defaults:

| class     | mean, std | size     | pad to | source                                                                   |
|-----------|-----------|----------|--------|--------------------------------------------------------------------------|
| SegFormer | ImageNet  | 2048x512 | -      | NVlabs/SegFormer local_configs/_base_/datasets/ade20k_repeat.py          |
| SETR      | ImageNet  | 2048x512 | 16     | fudan-zvg/SETR configs/_base_/datasets/ade20k.py; patches of 16 pixels   |
| Segmenter | 0.5, 0.5  | 2048x512 | 16     | rstrudel/segmenter segm/data/config/ade20k.py, segm/data/utils.py (vit)  |
| OCRNet    | ImageNet  | 2048x512 | -      | mmsegmentation configs/_base_/datasets/ade20k.py                         |

"2048x512" is the papers' protocol: the image keeps its ratio and becomes as large as possible with its shortest edge
at most 512 and its longest at most 2048 pixels. transformers' SegformerImageProcessor squashes to 512 x 512 instead;
a checkpoint saved with that (`size={"height": 512, "width": 512}`) keeps it here.

Shapes: B images, C channels, K classes; (H, W) original size, (h, w) size of the logits. Sizes are (height, width).
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
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

from .upsampling import upsampled_argmax


IGNORE_LABEL = 255  # what unlabelled and padded pixels get


class SegtxImageProcessorKwargs(ImagesKwargs, total=False):
    """What a processor takes beyond transformers' `ImagesKwargs`, when built and in each call.

    Args:
        do_reduce_labels: label 0 becomes 255 and label k becomes k - 1; 255 stays. For label maps whose 0 means
            "none of the classes" (ADE20K as distributed).
        size_divisor: pad height and width to multiples of this many pixels; None for no such padding. A `size` of
            "height" and "width" is meant as it is said and not padded.
        align_corners: how post-processing upsamples the logits, as in `F.interpolate`; as the model was trained.
    """

    do_reduce_labels: bool
    size_divisor: int | None
    align_corners: bool


# transformers looks for the keyword arguments of a processor class under the name of the class.
SegFormerImageProcessorKwargs = SegtxImageProcessorKwargs
SETRImageProcessorKwargs = SegtxImageProcessorKwargs
SegmenterImageProcessorKwargs = SegtxImageProcessorKwargs
OCRNetImageProcessorKwargs = SegtxImageProcessorKwargs


def resized_size(height: int, width: int, size: SizeDict) -> tuple[int, int]:
    """Size in pixels that an image of (height, width) pixels is resized to.

    `{"height", "width"}` is that size. `{"shortest_edge", "longest_edge"}` (the second may be missing) keeps the ratio:
    the largest scale at which neither edge exceeds its bound, then each edge rounded to the nearest pixel, halves up.
    That is mmcv's `rescale_size`; transformers' own rule rounds down and so differs by up to a pixel.

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
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def padded_size(sizes: list[tuple[int, int]], size_divisor: int | None) -> tuple[int, int]:
    """The smallest size in pixels that holds all `sizes` and whose edges are multiples of `size_divisor`."""
    divisor = size_divisor or 1
    height, width = (math.ceil(max(edges) / divisor) * divisor for edges in zip(*sizes, strict=True))
    return height, width


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


def effective_divisor(size: SizeDict, do_resize: bool, size_divisor: int | None) -> int | None:
    """`size_divisor`, unless `size` says height and width."""
    return None if do_resize and size.height and size.width else size_divisor


def unpadded_logits(
    logits: torch.Tensor, target: tuple[int, int], own: tuple[int, int], padded: tuple[int, int], align_corners: bool
) -> torch.Tensor:
    """Bilinear upsampling of the part of the logits that shows the image, without its padding.

    Args:
        target: size of the result.
        own: size of the image that the model was given, at the top left of the padded one.
        padded: size of the model's input, which the logits cover.
        align_corners: as in `F.interpolate`.

    Shape:
        logits: (B, K, h, w)
        returns: (B, K, H, W) with (H, W) = target, at least float32
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if own == padded:
        return F.interpolate(logits, target, mode="bilinear", align_corners=align_corners)
    grid = []
    for size, part, whole, steps in zip(target, own, padded, logits.shape[-2:], strict=True):
        position = torch.arange(size, dtype=torch.float64)  # in pixels of the target, then in steps of the logits
        if align_corners:
            position = position * (part - 1) / max(size - 1, 1) * (steps - 1) / max(whole - 1, 1)
        else:
            position = (position + 0.5) * part / size * steps / whole - 0.5
        grid.append((position * 2 + 1) / steps - 1)  # as grid_sample counts: the edges of the logits are -1 and 1
    grid = torch.stack(torch.meshgrid(*grid, indexing="ij")[::-1], -1).to(logits)  # (H, W, 2)
    grid = grid.expand(len(logits), -1, -1, -1)
    return F.grid_sample(logits, grid, mode="bilinear", padding_mode="border", align_corners=False)


def unpadded_argmax(
    logits: torch.Tensor, target: tuple[int, int], own: tuple[int, int], padded: tuple[int, int], align_corners: bool
) -> torch.Tensor:
    """Label maps (B, H, W) int64 of `unpadded_logits` (same arguments), without holding those where that can be."""
    if own == padded:
        return upsampled_argmax(logits, target, align_corners=align_corners)
    if own == target:
        return upsampled_argmax(logits, padded, align_corners=align_corners)[:, : target[0], : target[1]]
    scores = (unpadded_logits(image[None], target, own, padded, align_corners) for image in logits)
    return torch.cat([(score[:, 0] > 0).long() if score.shape[1] == 1 else score.argmax(1) for score in scores])


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
    align_corners = False

    def __init__(self, **kwargs: Unpack[SegtxImageProcessorKwargs]):
        if "reduce_labels" in kwargs:  # the name in checkpoints written by transformers before 4.30
            kwargs.setdefault("do_reduce_labels", kwargs.pop("reduce_labels"))
        super().__init__(**kwargs)

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        **kwargs: Unpack[SegtxImageProcessorKwargs],
    ) -> BatchFeature:
        """Tensors for the model. Images of different sizes come out padded to one size (unless `do_pad=False`).

        Args:
            images: one or a list of PIL images, arrays or tensors. Arrays and tensors with as many channels as
                `image_mean` has entries, channels first or last, 0-255 (or `do_rescale=False`). With three channels and
                `do_convert_rgb`, grey, palette and RGBA images are converted (transparent becomes white).
            segmentation_maps: one map of label ids an image, of the size of that image: PIL images of mode L, P, I or
                I;16 (the palette index counts, not the colour), arrays or tensors.
            **kwargs: any attribute of the processor, for this call only.

        Shape:
            images: (H, W, C) or (C, H, W); segmentation_maps: (H, W)
            returns: `pixel_values` (B, C, H', W') float32 and, with maps, `labels` (B, H', W') int64

        Raises:
            ValueError: if maps and images differ in number or size, or channels and `image_mean` in number.
        """
        return super().preprocess(images, segmentation_maps, **kwargs)

    def _preprocess_image_like_inputs(
        self,
        images,
        segmentation_maps,
        do_convert_rgb,
        do_resize,
        do_pad,
        do_reduce_labels,
        size,
        size_divisor,
        image_mean,
        input_data_format,
        return_tensors,
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
        original_sizes = [tuple(image.shape[-2:]) for image in images]
        sizes = [resized_size(*original, size) if do_resize else original for original in original_sizes]
        padded = padded_size(sizes, effective_divisor(size, do_resize, size_divisor))
        pad_size = SizeDict(height=padded[0], width=padded[1])
        pixel_values = self._resize_and_normalize(images, sizes, image_mean=image_mean, **kwargs)
        if do_pad:
            pixel_values = self.pad(pixel_values, pad_size=pad_size)
        data = {"pixel_values": pixel_values}

        if segmentation_maps is not None:
            labels = self._prepare_image_like_inputs(
                segmentation_maps, expected_ndims=2, do_convert_rgb=False, input_data_format=ChannelDimension.FIRST
            )
            if [tuple(label.shape) for label in labels] != [(1, *original) for original in original_sizes]:
                raise ValueError(
                    f"segmentation maps of shapes {[tuple(label.shape[-2:]) for label in labels]} for images of sizes "
                    f"{original_sizes}; give one map of label ids, (height, width), for each image and of its size"
                )
            data["labels"] = []
            for label, resized in zip(labels, sizes, strict=True):
                label = nearest_resize(torch.as_tensor(label)[0].long(), resized)
                if do_reduce_labels:
                    label = torch.where((label == 0) | (label == IGNORE_LABEL), IGNORE_LABEL, label - 1)
                if do_pad:
                    bottom, right = pad_size.height - resized[0], pad_size.width - resized[1]
                    label = F.pad(label, (0, right, 0, bottom), value=IGNORE_LABEL)
                data["labels"].append(label.numpy() if self.backend == "pil" else label)
        return BatchFeature(data=data, tensor_type=return_tensors)

    def process_image(self, image, do_convert_rgb=None, input_data_format=None, num_channels=None, **kwargs):
        """One image as (C, H, W). As in transformers, but for any number of channels C.

        Args:
            num_channels: C that the model expects. Conversion to RGB is for C = 3 or unknown (None) only.

        Raises:
            ValueError: if the image has another number of channels.
        """
        if num_channels not in (None, 3):
            do_convert_rgb = False
            if input_data_format is None and not isinstance(image, Image.Image) and image.ndim == 3:
                channels_last = image.shape[-1] == num_channels and image.shape[0] != num_channels
                input_data_format = ChannelDimension.LAST if channels_last else ChannelDimension.FIRST
        image = super().process_image(image, do_convert_rgb, input_data_format, **kwargs)
        if num_channels not in (None, image.shape[0]):
            raise ValueError(
                f"image of {image.shape[0]} channels (shape {tuple(image.shape)}, channels first) for image_mean of "
                f"{num_channels} values; give images of {num_channels} channels, or set image_mean and image_std"
            )
        return image

    def post_process_semantic_segmentation(
        self,
        outputs,
        target_sizes: list[tuple[int, int]] | torch.Tensor | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """Label maps from the output of a `...ForSemanticSegmentation` model.

        Logits are upsampled bilinearly and the class of the largest is taken (with one class: 1 where the logit is
        positive). Padding is left out: which part of the logits belongs to the image follows from the target sizes and
        the processor's own rules, so give the same images, in one batch, with the processor's own `size`, `do_resize`,
        `do_pad` and `size_divisor`. What the model saw in the padding still has its effect near the border.

        Args:
            outputs: has `logits`.
            target_sizes: size of each original image; None for maps at the resolution of the logits, with padding.
            return_segmentation_scores: return the upsampled logits too. Takes K times the memory of the image.

        Shape:
            logits: (B, K, h, w); target_sizes: B pairs (H, W)
            returns: B maps (H, W) int64, or B outputs with `segmentation` (H, W), `segmentation_scores` (K, H, W)

        Raises:
            ValueError: if there is not one target size an image.
        """
        logits = outputs.logits
        if target_sizes is None:
            targets = processed = [tuple(logits.shape[-2:])] * len(logits)
            padded = targets[0]
        else:
            targets = [(int(height), int(width)) for height, width in target_sizes]
            if len(targets) != len(logits):
                raise ValueError(f"{len(targets)} target sizes for {len(logits)} images; give one (H, W) an image")
            processed = [resized_size(*target, self.size) if self.do_resize else target for target in targets]
            divisor = effective_divisor(SizeDict(**dict(self.size)), self.do_resize, self.size_divisor)
            padded = padded_size(processed, divisor) if self.do_pad else processed[0]

        results = [None] * len(targets)
        for target, own in dict(zip(targets, processed, strict=True)).items():  # images of one size in one call
            indices = [index for index, other in enumerate(targets) if other == target]
            group = logits if len(indices) == len(targets) else logits[indices]
            label_maps = unpadded_argmax(group, target, own, padded, self.align_corners)
            if return_segmentation_scores:
                scores = unpadded_logits(group, target, own, padded, self.align_corners)
                outputs_of_group = [
                    SemanticSegmentationPostProcessorOutput({"segmentation": label_map, "segmentation_scores": score})
                    for label_map, score in zip(label_maps, scores, strict=True)
                ]
            else:
                outputs_of_group = list(label_maps)
            for index, output in zip(indices, outputs_of_group, strict=True):
                results[index] = output
        return results

    def to_dict(self):
        """As in transformers, but where the code travels with the checkpoint, both back-ends are named."""
        dictionary = super().to_dict()
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
    """SegFormer's defaults (see the table above)."""


class SegFormerImageProcessorPil(SegtxImageProcessorPil):
    """SegFormer's defaults, PIL back-end."""


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


class OCRNetImageProcessorPil(SegtxImageProcessorPil):
    """OCRNet's defaults, PIL back-end."""
