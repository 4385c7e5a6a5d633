"""`pipeline("image-segmentation")`, which for the models of this package reads images as training does.

transformers makes every image 8-bit RGB before a processor sees it, which turns grey values above 255 white and has no
place for more than three channels.
"""

import base64
import os
from urllib.error import URLError
from urllib.request import urlopen

import torch
from PIL import Image, ImageOps
from transformers import ImageSegmentationPipeline

from .data.decoding import grey_numbers, read_image
from .models.configuration_base import SegmentationConfig


class SegmentationPipeline(ImageSegmentationPipeline):
    """transformers' pipeline, for every model; see above for those of this package.

    Raises:
        ValueError: if an image cannot be decoded, or has another number of channels than the model.
    """

    def preprocess(self, image, subtask: str | None = None, timeout: float | None = None):
        """What the model takes, and `target_size`, (height, width) of the image, upright.

        Args:
            image: a PIL image; or the path, the address or the base64 text of an image, of what `read_image` reads.
        """
        from .inference import image_size  # needs evaluate, which imports transformers.pipelines, which imports this

        config = self.model.config
        if not isinstance(config, SegmentationConfig) or not isinstance(image, (str, Image.Image)):
            return super().preprocess(image, subtask=subtask, timeout=timeout)
        if isinstance(image, str):
            image = read_image(image_source(image, timeout), image[:100], config.num_channels)
        else:
            is_deep = image.mode[0] in "IF"  # of more than 8 bits
            image = torch.tensor(grey_numbers(image))[None] if is_deep else ImageOps.exif_transpose(image)
        inputs = self.image_processor(images=[image], return_tensors="pt").to(self.dtype)
        inputs["target_size"] = [image_size(image)]
        return inputs


def image_source(image: str, timeout: float | None) -> str | dict[str, bytes]:
    """The path of a file; or the bytes behind an address or a text of base64, `data:image/...` or bare.

    Raises:
        OSError: if the address gives nothing.
        ValueError: if it is none of these.
    """
    if image.startswith(("http://", "https://")):
        try:
            with urlopen(image, timeout=timeout) as answer:
                return {"bytes": answer.read()}
        except URLError as error:
            raise OSError(f"{image}: {error}") from error
    if os.path.isfile(image):
        return image
    try:
        return {"bytes": base64.b64decode(image.split(",")[-1], validate=True)}
    except ValueError as error:
        raise ValueError(f"{image[:100]!r} is neither a file nor an address nor base64: {error}") from error
