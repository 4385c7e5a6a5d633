"""hf_segtx: semantic segmentation transformers (SETR, SegFormer, Segmenter, OCRNet) for the Hugging Face ecosystem.

Importing the package registers the architectures, so that `AutoModel`, `AutoModelForSemanticSegmentation`,
`AutoImageProcessor` and `pipeline("image-segmentation")` know them. Everything else is imported when it is first used:
`hf_segtx.metrics`, `hf_segtx.weights`, ...
"""

import importlib

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
)

from .models.configuration_ocrnet import OCRNetConfig
from .models.configuration_segformer import SegFormerConfig
from .models.configuration_segmenter import SegmenterConfig
from .models.configuration_setr import SETRConfig
from .models.image_processing_segtx import (
    OCRNetImageProcessor,
    OCRNetImageProcessorPil,
    SegFormerImageProcessor,
    SegFormerImageProcessorPil,
    SegmenterImageProcessor,
    SegmenterImageProcessorPil,
    SETRImageProcessor,
    SETRImageProcessorPil,
)
from .models.modeling_ocrnet import OCRNetForSemanticSegmentation, OCRNetModel
from .models.modeling_segformer import (
    SegFormerForImageClassification,
    SegFormerForSemanticSegmentation,
    SegFormerModel,
)
from .models.modeling_segmenter import SegmenterForSemanticSegmentation, SegmenterModel
from .models.modeling_setr import SETRForSemanticSegmentation, SETRModel


__version__ = "0.1.0"

# Configuration, base model, segmentation model, image processors of the torchvision and the PIL back-end.
ARCHITECTURES = [
    (SETRConfig, SETRModel, SETRForSemanticSegmentation, SETRImageProcessor, SETRImageProcessorPil),
    (
        SegFormerConfig,
        SegFormerModel,
        SegFormerForSemanticSegmentation,
        SegFormerImageProcessor,
        SegFormerImageProcessorPil,
    ),
    (
        SegmenterConfig,
        SegmenterModel,
        SegmenterForSemanticSegmentation,
        SegmenterImageProcessor,
        SegmenterImageProcessorPil,
    ),
    (OCRNetConfig, OCRNetModel, OCRNetForSemanticSegmentation, OCRNetImageProcessor, OCRNetImageProcessorPil),
]

for config, model, segmenter, processor, processor_pil in ARCHITECTURES:
    AutoConfig.register(config.model_type, config)
    AutoModel.register(config, model)
    AutoModelForSemanticSegmentation.register(config, segmenter)
    AutoImageProcessor.register(config, image_processor_classes={"torchvision": processor, "pil": processor_pil})
    # From here on `save_pretrained` puts the code beside the weights, for machines without hf_segtx.
    config.register_for_auto_class()
    model.register_for_auto_class("AutoModel")
    segmenter.register_for_auto_class("AutoModelForSemanticSegmentation")
    processor.register_for_auto_class("AutoImageProcessor")
    processor_pil.register_for_auto_class("AutoImageProcessor")
AutoModelForImageClassification.register(SegFormerConfig, SegFormerForImageClassification)
SegFormerForImageClassification.register_for_auto_class("AutoModelForImageClassification")

_SUBMODULES = set(
    "arguments checkpoints data doctor error_analysis hub inference labels large_images lora losses machine metrics "
    "optim readers scenes tables visualization weights".split()
)

__all__ = [cls.__name__ for row in ARCHITECTURES for cls in row] + ["SegFormerForImageClassification"]


def __getattr__(name: str):
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_SUBMODULES})
