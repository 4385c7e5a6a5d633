"""What the configurations of all architectures share: the names of the classes, and how many logits they take."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class SegmentationConfig(PreTrainedConfig):
    """A configuration whose `id2label` may name two values of a label map that one logit, of a sigmoid, tells apart.

    Args:
        is_binary: `num_labels` is 1 and `id2label` has two names, e.g. {0: "background", 1: "road"}.

    Example:
        >>> SegmentationConfig(id2label={0: "background", 1: "road"}, is_binary=True).num_labels
        1
    """

    is_binary: bool = False

    def __post_init__(self, **kwargs):
        if self.id2label is None and self.is_binary:
            self.id2label = {0: "background", 1: "LABEL_0"}
        if self.id2label is not None and len(self.id2label) == 2 and kwargs.get("num_labels") == 1:
            self.is_binary = True
            kwargs.pop("num_labels")
        super().__post_init__(**kwargs)

    @property
    def num_labels(self) -> int | None:
        """Number of logits; None before `id2label` is set."""
        if self.id2label is None:
            return None
        return 1 if self.is_binary else len(self.id2label)

    @num_labels.setter
    def num_labels(self, num_labels: int):
        if num_labels != self.num_labels:
            self.is_binary = False
            PreTrainedConfig.num_labels.fset(self, num_labels)

    def name_background(self):
        """Where one class is all there is, names what its label maps hold: 0, background, and 1, the class.

        Done by models for segmentation, because `pipeline("image-segmentation")` looks up each value of a label map.
        """
        if len(self.id2label) == 1:
            (name,) = self.id2label.values()
            self.id2label, self.label2id = {0: "background", 1: name}, {"background": 0, name: 1}
            self.is_binary = True

    def validate_names(self):
        """A binary model has two names; run at construction and before saving."""
        if self.is_binary and len(self.id2label) != 2:
            raise ValueError(
                f"is_binary, one logit, tells one class from the background, but id2label has {len(self.id2label)} "
                "names; give two, or is_binary=False"
            )
