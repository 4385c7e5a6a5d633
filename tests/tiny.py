"""The architectures under test: one `Case` for each row of `hf_segtx.architectures`, with a network as small as can be.

Tests of models, Hub, recipes and pipelines go over this table and need to know nothing else of an architecture.
"""

import copy
from dataclasses import dataclass, field

from hf_segtx.architectures import ARCHITECTURES, Architecture


@dataclass
class Case:
    """One architecture with a tiny configuration.

    Args:
        config: fields of the configuration but for the classes; a model of some ten thousand parameters.
        image_size: side of the test images, pixels.
        logits: (h, w) for such an image.
        hidden_states, attentions: shapes without the batch dimension, one entry for each recorded tensor; (heads,
            queries, keys) for attentions.
        common_properties: names that the configuration must answer to; None for those that transformers expects.
        skip: {test of transformers: the assumption about living inside transformers that it rests on}.
    """

    config: dict
    image_size: int
    logits: tuple[int, int]
    hidden_states: list[tuple[int, ...]]
    attentions: list[tuple[int, ...]] = field(default_factory=list)
    common_properties: list[str] | None = None
    skip: dict[str, str] = field(default_factory=dict)
    num_labels: int = 4

    @property
    def row(self) -> Architecture:
        return ARCHITECTURES[next(name for name, case in CASES.items() if case is self)]

    @property
    def name(self) -> str:
        """The paper's spelling, as in the names of the classes."""
        return self.row.config.__name__.removesuffix("Config")

    def make_config(self, **fields):
        """The tiny configuration, with fields set otherwise."""
        return self.row.config(**{**copy.deepcopy(self.config), "num_labels": self.num_labels, **fields})

    def make_model(self, **fields):
        """A tiny model with random weights, in evaluation mode."""
        return self.row.model(self.make_config(**fields)).eval()


CASES = {
    "setr": Case(
        config={
            "image_size": 32,
            "patch_size": 8,
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "feature_indices": [0, 1, 2, 3],
            "decoder_hidden_size": 16,
            "mla_hidden_size": 16,
        },
        image_size=32,
        logits=(4, 4),
        hidden_states=[(17, 32)] * 5,
        attentions=[(4, 17, 17)] * 4,
        skip={"test_num_layers_is_small": "is about its own time; the multi-level head reads four blocks"},
    ),
    "segformer": Case(
        config={
            "depths": [1, 1, 2, 1],
            "hidden_sizes": [8, 16, 24, 32],
            "num_attention_heads": [1, 2, 3, 4],
            "decoder_hidden_size": 16,
        },
        image_size=64,
        logits=(16, 16),
        hidden_states=[(8, 16, 16), (16, 8, 8), (24, 4, 4), (32, 2, 2)],
        attentions=[(1, 256, 4), (2, 64, 4), (3, 16, 4), (3, 16, 4), (4, 4, 4)],
        common_properties=["num_channels", "hidden_sizes"],
    ),
    "segmenter": Case(
        config={
            "image_size": 32,
            "patch_size": 8,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        image_size=32,
        logits=(4, 4),
        hidden_states=[(17, 32)] * 3,
        attentions=[(4, 17, 17)] * 2,
    ),
    "ocrnet": Case(
        config={
            "stem_hidden_sizes": [8, 8],
            "hidden_sizes": [4, 8, 8, 8],
            "depths": [1, 1, 1, 1],
            "num_modules": [1, 1, 1, 1],
            "layer1_hidden_size": 8,
            "decoder_hidden_size": 16,
            "decoder_key_size": 8,
        },
        image_size=64,
        logits=(16, 16),
        hidden_states=[(4, 16, 16), (8, 8, 8), (8, 4, 4), (8, 2, 2)],
        common_properties=["num_channels", "hidden_sizes"],
        skip={
            "test_retain_grad_hidden_states_attentions": "takes hidden states for a sequence; HRNet's are parallel "
            "branches, of which the last does not depend on the final state of the first"
        },
    ),
}
