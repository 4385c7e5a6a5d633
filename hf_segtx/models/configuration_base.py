"""What the configurations of all architectures share: the names of the classes, and how many logits they take."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class SegmentationConfig(PreTrainedConfig):
    """`id2label` names every value of a label map, as `pipeline("image-segmentation")` expects it.

    A single class takes one logit, that of a sigmoid, and its label maps hold 0, background, and 1, the class. So
    `num_labels=1`, or an `id2label` with one name, becomes an `id2label` with two names and `is_binary=True`.

    Args:
        is_binary: one logit for two names.

    Example:
        >>> config = SegmentationConfig(id2label={0: "road"})
        >>> config.num_labels, config.id2label
        (1, {0: 'background', 1: 'road'})
    """

    is_binary: bool = False

    def __post_init__(self, **kwargs):
        if self.id2label is None:
            kwargs.setdefault("num_labels", 1 if self.is_binary else 2)
        elif kwargs.get("num_labels") == 1:
            self.is_binary = len(self.id2label) == 2
            kwargs.pop("num_labels")
        super().__post_init__(**kwargs)
        if len(self.id2label) == 1:
            self._name_one_class(*self.id2label.values())

    @property
    def num_labels(self) -> int | None:
        """Number of logits; None before `id2label` is set."""
        if self.id2label is None:
            return None
        return 1 if self.is_binary else len(self.id2label)

    @num_labels.setter
    def num_labels(self, num_labels: int):
        if num_labels == self.num_labels:
            return
        self.is_binary = False
        PreTrainedConfig.num_labels.fset(self, num_labels)
        if num_labels == 1:
            self._name_one_class(*self.id2label.values())

    def _name_one_class(self, name: str):
        self.id2label, self.label2id = {0: "background", 1: name}, {"background": 0, name: 1}
        self.is_binary = True

    def validate_names(self):
        """A binary model has two names; run at construction and before saving."""
        if self.is_binary and len(self.id2label) != 2:
            raise ValueError(
                f"is_binary, one logit, tells one class from the background, but id2label has {len(self.id2label)} "
                "names; give two, or is_binary=False"
            )
