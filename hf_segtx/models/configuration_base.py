"""What the configurations of all architectures share: the ranges of numbers, the names of the classes, clear errors."""

import re
from functools import wraps
from numbers import Integral
from types import NoneType

from huggingface_hub.dataclasses import as_validated_field, strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig


def within(least: float, most: float, below: bool = False):
    """A kind of field, as `size = within(1, 2**16)`, then `hidden_size: int = size(384)`.

    Args:
        least, most: bounds of the number, or of each number of a list; `most` itself is out of it with `below`.
    """

    def check(value):
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if number is not None and not (least <= number <= most and not (below and number == most)):
                raise ValueError(f"{number} is out of range; give {least} to {'below ' if below else ''}{most}")

    return as_validated_field(check)


# The upper bounds are far beyond every published network: what exceeds them is a mistake, and would take all memory.
size = within(1, 2**16)  # of widths, and numbers of channels and heads
depth = within(1, 1000)  # layers
kernel = within(1, 256)  # sides of kernels, strides and factors, in pixels of a map
side = within(1, 2**14)  # sides of images in pixels
probability = within(0, 1, below=True)  # of dropout
small = within(1e-12, 1)  # epsilons and standard deviations
factor = within(0, 1000)  # weights of losses, and hidden widths over widths
label = within(-(2**31), 2**31 - 1)


def checked(cls: type[PreTrainedConfig]) -> type[PreTrainedConfig]:
    """huggingface_hub's `strict` for a configuration, whose errors become ValueErrors of a line."""
    cls = strict(cls)

    def with_plain_errors(method):
        @wraps(method)
        def plain(self, *args, **kwargs):
            try:
                return method(self, *args, **kwargs)
            except StrictDataclassError as error:
                text = re.sub(r"^Class validation error for validator '\w+': \w+: ", "", " ".join(str(error).split()))
                text = re.sub(r"^Validation error for field '(\w+)': \w+: ", r"\1: ", text)
                raise ValueError(f"{cls.__name__}: {text}") from error

        return plain

    for name in ("__init__", "__setattr__", "validate"):
        setattr(cls, name, with_plain_errors(getattr(cls, name)))
    return cls


@checked
class SegmentationConfig(PreTrainedConfig):
    """A configuration whose `id2label` may name two values of a label map that one logit, of a sigmoid, tells apart.

    Args:
        is_binary: `num_labels` is 1 and `id2label` has two names, e.g. {0: "background", 1: "road"}.

    Raises:
        ValueError: if a field has another type than stated or is out of range, or fields do not fit each other.

    Example:
        >>> SegmentationConfig(id2label={0: "background", 1: "road"}, is_binary=True).num_labels
        1
    """

    is_binary: bool = False
    # Outputs for post-processing, that `Trainer` is not to collect with the predictions.
    keys_to_ignore_at_inference = ["windows", "align_corners"]

    def __post_init__(self, **kwargs):
        num_labels = kwargs.get("num_labels")
        is_number = isinstance(num_labels, Integral) and not isinstance(num_labels, bool)
        if num_labels is not None and not (is_number and 1 <= num_labels <= 2**16):
            raise ValueError(f"num_labels: {num_labels!r} is out of range; give a whole number from 1 to {2**16}")
        attention = kwargs.get("attn_implementation")
        if not isinstance(attention, (str, dict, NoneType)):
            raise ValueError(f"attn_implementation is {attention!r}; give a name, such as 'sdpa' or 'eager'")
        if self.id2label is None and self.is_binary:
            self.id2label = {0: "background", 1: "LABEL_0"}
        if self.id2label is not None:
            check_names(self.id2label)
            if len(self.id2label) == 2 and num_labels == 1:
                self.is_binary = True
                kwargs.pop("num_labels")
        try:
            super().__post_init__(**kwargs)
        except AttributeError as error:  # the name of no type of torch; or a field that cannot be set
            raise ValueError(f"a field has an impossible value: {error}") from error
        if self.dtype is not None and type(self.dtype).__name__ != "dtype":
            raise ValueError(f"dtype is {self.dtype!r}; give a type of torch by its name, such as 'float32'")

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
        """Every class has a name, a binary model has two; run at construction and before saving."""
        check_names(self.id2label)
        if self.is_binary and len(self.id2label) != 2:
            raise ValueError(
                f"is_binary, one logit, tells one class from the background, but id2label has {len(self.id2label)} "
                "names; give two, or is_binary=False"
            )

    def validate_flags(self):
        """What concerns every call of the model; transformers checks it when it is too late."""
        for name in ("output_hidden_states", "return_dict", "output_attentions"):
            if not isinstance(getattr(self, name), (bool, NoneType)):
                raise ValueError(f"{name} is {getattr(self, name)!r}; give true or false")

    @classmethod
    def _dict_from_json_file(cls, json_file):
        content = super()._dict_from_json_file(json_file)
        if not isinstance(content, dict):
            raise ValueError(f"{json_file} holds a {type(content).__name__}; a configuration is an object: {{...}}")
        return content

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in transformers; errors name the file.

        Raises:
            ValueError: as the class, also for fields that are overridden here.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except ValueError as error:
            raise in_file(pretrained_model_name_or_path, error) from error

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers, but fields that override those of `config_dict` are checked, too."""
        try:
            result = super().from_dict(config_dict, **kwargs)
            (result[0] if isinstance(result, tuple) else result).validate()
        except ValueError as error:
            raise in_file(kwargs.get("name_or_path"), error) from error
        return result


def in_file(name_or_path, error: ValueError) -> ValueError:
    """The error, with the name of the file in front, unless it is there already or unknown."""
    if not name_or_path or str(name_or_path) in str(error):
        return error
    return ValueError(f"{name_or_path}/config.json: {error}")


def check_vision_transformer(config: PreTrainedConfig):
    """Whether the fields of a Vision Transformer, SETR's and Segmenter's, fit each other.

    Raises:
        ValueError: if not.
    """
    heads, width = config.num_attention_heads, config.hidden_size
    if width % heads:
        raise ValueError(f"num_attention_heads {heads} does not divide hidden_size {width}; choose a divisor")
    if width * config.mlp_ratio < 1:
        raise ValueError(f"mlp_ratio is {config.mlp_ratio}: nothing is left of hidden_size {width}; as published: 4")
    check_image_size(config.image_size)
    if config.position_resize_mode not in ("bilinear", "bicubic"):
        raise ValueError(f"position_resize_mode is {config.position_resize_mode!r}; choose 'bilinear' or 'bicubic'")


def check_image_size(image_size: int | list[int] | tuple[int, ...]):
    """Whether this is one side, or height and width.

    Raises:
        ValueError: if not.
    """
    if not isinstance(image_size, int) and len(image_size) != 2:
        raise ValueError(f"image_size is {list(image_size)}; give one side or [height, width] in pixels")


def check_names(id2label: dict):
    """Whether each id from 0 on has a name.

    Raises:
        ValueError: if not.
    """
    if not isinstance(id2label, dict):
        raise ValueError(f'id2label is a {type(id2label).__name__}; give an object of ids and names: {{"0": "road"}}')
    try:
        ids = sorted(int(key) for key in id2label)
    except (TypeError, ValueError) as error:
        raise ValueError(f"id2label has the keys {list(id2label)[:5]}; give ids from 0 on") from error
    if not ids or ids != list(range(len(ids))):
        missing = next(number for number in range(len(ids) + 1) if number not in ids)
        raise ValueError(f"id2label names the ids {ids[:5]}; give every id from 0 on a name, {missing} has none")
    if nameless := [name for name in id2label.values() if not isinstance(name, str)]:
        raise ValueError(f"id2label has the name {nameless[0]!r}; give names as texts")
