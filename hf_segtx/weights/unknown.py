"""An architecture of which no checkpoints of other code bases are known."""

from pathlib import Path

from transformers import PreTrainedModel


HUB_OWNER = "timm"  # of the pre-trained backbones on the Hub
SOURCES = {}


def load_backbone(backbone: PreTrainedModel, file: Path) -> None:
    """The part of `load_backbone` that knows the backbone.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{file}: no pre-trained weights are known that fit a {type(backbone).__name__}; train without")
