"""The architectures, one row each: everything outside `models/` that depends on the architecture asks this table.

Importing this module registers the rows with transformers' Auto classes. A fifth architecture is two files in `models/`
and a row here; CONTRIBUTING.md says the rest.
"""

import importlib
import sys
from types import ModuleType
from typing import NamedTuple

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
)

from .models.backbones import DilatedResNetBackbone, HRNetBackbone, MiTBackbone, VisionTransformerBackbone
from .models.configuration_backbones import DilatedResNetConfig, HRNetConfig, MiTConfig, VisionTransformerConfig
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


class Rates(NamedTuple):
    """How an architecture is trained, and who says so.

    Attributes:
        steps: over which the rate was found; shorter runs take a higher one. None if it holds for short runs.
    """

    optimizer: str
    learning_rate: float
    head_lr_multiplier: float
    weight_decay: float
    source: str
    steps: int | None = None


class Architecture(NamedTuple):
    """What belongs to an architecture.

    Attributes:
        config, base_model, model: the configuration, the backbone's class for `AutoModel`, and the class for
            `AutoModelForSemanticSegmentation`.
        processor, processor_pil: the image processors of the torchvision and of the PIL back-end.
        card: file of `model_cards/` about the architecture.
        weights_module: the module of `hf_segtx.weights` that knows its checkpoints in other code bases (`SOURCES`) and
            puts pre-trained weights, of the Hub's `HUB_OWNER`, into its backbone (`load_backbone`).
        classifier: the class for `AutoModelForImageClassification`, if there is one.
        random_rates, pretrained_rates: for runs that configure themselves, from random and from pre-trained weights;
            None has them measured.
        dropouts: the configuration's fields that such a run sets to 0 where there is little time.
        pretrained_backbone: on the Hub, with {size}, for such a run.
    """

    config: type[PreTrainedConfig]
    base_model: type[PreTrainedModel]
    model: type[PreTrainedModel]
    processor: type
    processor_pil: type
    card: str
    weights_module: str = "unknown"
    classifier: type[PreTrainedModel] | None = None
    random_rates: Rates | None = None
    pretrained_rates: Rates | None = None
    dropouts: tuple[str, ...] = ()
    pretrained_backbone: str | None = None

    @property
    def sizes(self) -> list[str]:
        """Names of the published sizes, for `config.from_size`, the smallest first."""
        return list(sys.modules[self.config.__module__].SIZES)

    @property
    def has_position_table(self) -> bool:
        """Whether positions are learned for images of one size, and resized for others."""
        return "position_resize_mode" in self.config.__dataclass_fields__

    @property
    def weights(self) -> ModuleType:
        """Imported when it is needed: a model of this package's own is loaded without it."""
        return importlib.import_module(f"{__package__}.weights.{self.weights_module}")


ARCHITECTURES = {
    "setr": Architecture(
        SETRConfig,
        SETRModel,
        SETRForSemanticSegmentation,
        SETRImageProcessor,
        SETRImageProcessorPil,
        card="setr.md",
        weights_module="setr",
        random_rates=Rates("adamw", 1e-3, 1.0, 0.05, "recipe setr_mla_camvid"),
        pretrained_rates=Rates("sgd", 1e-3, 10.0, 0.0, "arXiv 2012.15840, Section 4.1"),
    ),
    "segformer": Architecture(
        SegFormerConfig,
        SegFormerModel,
        SegFormerForSemanticSegmentation,
        SegFormerImageProcessor,
        SegFormerImageProcessorPil,
        card="segformer.md",
        weights_module="segformer",
        random_rates=Rates("adamw", 1.5e-3, 1.0, 0.01, "recipe segformer_b0_camvid"),
        pretrained_rates=Rates("adamw", 6e-5, 10.0, 0.01, "arXiv 2105.15203, Section 4.1", steps=160_000),
        dropouts=("drop_path_rate", "classifier_dropout_prob"),
        pretrained_backbone="nvidia/mit-{size}",
        classifier=SegFormerForImageClassification,
    ),
    "segmenter": Architecture(
        SegmenterConfig,
        SegmenterModel,
        SegmenterForSemanticSegmentation,
        SegmenterImageProcessor,
        SegmenterImageProcessorPil,
        card="segmenter.md",
        weights_module="segmenter",
        random_rates=Rates("adamw", 1e-3, 1.0, 0.05, "recipe segmenter_mask_camvid"),
        pretrained_rates=Rates("sgd", 1e-3, 1.0, 0.0, "arXiv 2105.05633, Section 4.1"),
        dropouts=("drop_path_rate",),
    ),
    "ocrnet": Architecture(
        OCRNetConfig,
        OCRNetModel,
        OCRNetForSemanticSegmentation,
        OCRNetImageProcessor,
        OCRNetImageProcessorPil,
        card="ocrnet.md",
        weights_module="ocrnet",
        random_rates=Rates("adamw", 1e-3, 1.0, 0.01, "recipe ocrnet_camvid"),
        pretrained_rates=Rates("sgd", 2e-2, 1.0, 1e-4, "arXiv 1909.11065, Section 4.1"),
    ),
}

# Their encoders, for the models of transformers that take any backbone.
BACKBONES = {
    MiTConfig: MiTBackbone,
    VisionTransformerConfig: VisionTransformerBackbone,
    HRNetConfig: HRNetBackbone,
    DilatedResNetConfig: DilatedResNetBackbone,
}


def architecture_of(model_or_config: PreTrainedModel | PreTrainedConfig) -> Architecture:
    """The row of a model or configuration of this package.

    Raises:
        ValueError: if it is of another one.
    """
    config = getattr(model_or_config, "config", model_or_config)
    for row in ARCHITECTURES.values():
        if config.model_type == row.config.model_type:
            return row
    raise ValueError(f"{type(model_or_config).__name__} is none of hf_segtx's; give one of {', '.join(_CLASSES)}")


def _register(row: Architecture) -> None:
    """Makes transformers' Auto classes know the row, and `save_pretrained` put the code beside the weights."""
    AutoConfig.register(row.config.model_type, row.config, exist_ok=True)  # `registration` may have been here
    AutoImageProcessor.register(
        row.config, image_processor_classes={"torchvision": row.processor, "pil": row.processor_pil}
    )
    row.config.register_for_auto_class()
    for processor in (row.processor, row.processor_pil):
        processor.register_for_auto_class("AutoImageProcessor")
    models = {
        AutoModel: row.base_model,
        AutoModelForSemanticSegmentation: row.model,
        AutoModelForImageClassification: row.classifier,
    }
    for auto_class, model in models.items():
        if model is not None:
            auto_class.register(row.config, model)
            model.register_for_auto_class(auto_class.__name__)


for _row in ARCHITECTURES.values():
    _register(_row)

for _config, _backbone in BACKBONES.items():
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoBackbone.register(_config, _backbone)
    _config.register_for_auto_class()
    _backbone.register_for_auto_class("AutoBackbone")

_CLASSES = [field.__name__ for row in ARCHITECTURES.values() for field in row if isinstance(field, type)]
__all__ = _CLASSES + [part.__name__ for pair in BACKBONES.items() for part in pair]
