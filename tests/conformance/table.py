"""The architectures under test: one `Case` each; the conformance tests need to know nothing else of them."""

import copy
from dataclasses import dataclass, field
from typing import Any

import hf_segtx


@dataclass
class Case:
    """One architecture, by the names of its classes in hf_segtx, with a tiny configuration.

    Args:
        name: the paper's spelling; class names are made from it.
        config_kwargs: a model of under a million parameters, with at most two layers where that applies.
        image_size: side of the test images, pixels.
        logits, hidden_states, attentions: shapes without the batch dimension, one entry a recorded tensor; (heads,
            queries, keys) for attentions.
        common_properties: names that the configuration must answer to; None for those that transformers expects.
        models: the roles of its model classes (see `get`).
        skip: {test name: the assumption about living inside transformers that it rests on}.
    """

    name: str
    config_kwargs: dict[str, Any]
    image_size: int
    logits: tuple[int, ...]
    hidden_states: list[tuple[int, ...]]
    attentions: list[tuple[int, ...]] = field(default_factory=list)
    common_properties: list[str] | None = None
    models: tuple[str, ...] = ("Model", "ForSemanticSegmentation")
    skip: dict[str, str] = field(default_factory=dict)
    num_labels: int = 4

    def get(self, role: str):
        """Class by role: "Config", "Model", "ForSemanticSegmentation", "ImageProcessor", ...; what follows the name."""
        return getattr(hf_segtx, self.name + role)

    def processors(self) -> dict[str, type]:
        """{back-end: image processor}."""
        return {"torchvision": self.get("ImageProcessor"), "pil": self.get("ImageProcessorPil")}

    def make_config(self):
        """The tiny configuration."""
        return self.get("Config")(**copy.deepcopy(self.config_kwargs), num_labels=self.num_labels)


CASES = [
    Case(
        name="SegFormer",
        config_kwargs={
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [8, 8, 16, 16],
            "num_attention_heads": [1, 1, 2, 2],
            "decoder_hidden_size": 16,
        },
        image_size=64,
        logits=(4, 16, 16),
        hidden_states=[(8, 16, 16), (8, 8, 8), (16, 4, 4), (16, 2, 2)],
        attentions=[(1, 256, 4), (1, 64, 4), (2, 16, 4), (2, 4, 4)],
        common_properties=["num_channels", "hidden_sizes"],
        models=("Model", "ForSemanticSegmentation", "ForImageClassification"),
    ),
    Case(
        name="SETR",
        config_kwargs={
            "image_size": 32,
            "patch_size": 8,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "decoder_hidden_size": 16,
        },
        image_size=32,
        logits=(4, 4, 4),
        hidden_states=[(17, 32)] * 3,
        attentions=[(4, 17, 17)] * 2,
    ),
    Case(
        name="Segmenter",
        config_kwargs={
            "image_size": 32,
            "patch_size": 8,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        image_size=32,
        logits=(4, 4, 4),
        hidden_states=[(17, 32)] * 3,
        attentions=[(4, 17, 17)] * 2,
    ),
    Case(
        name="OCRNet",
        config_kwargs={
            "stem_hidden_sizes": [8, 8],
            "hidden_sizes": [4, 4, 8, 8],
            "depths": [1, 1, 1, 1],
            "num_modules": [1, 1, 1, 1],
            "layer1_hidden_size": 8,
            "decoder_hidden_size": 16,
            "decoder_key_size": 8,
        },
        image_size=64,
        logits=(4, 16, 16),
        hidden_states=[(4, 16, 16), (4, 8, 8), (8, 4, 4), (8, 2, 2)],
        common_properties=["num_channels", "hidden_sizes"],
        skip={
            "test_retain_grad_hidden_states_attentions": "takes hidden states for a sequence; HRNet's are parallel "
            "branches, of which the last does not depend on the final state of the first"
        },
    ),
]
