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

FEATURE_NORMS = ("none", "layer_norm", "batch_norm")
FEATURE_SCALINGS = ("none", "pyramid", "fuse")
# What transformers' models of an earlier time took, and drop or replace by random weights today.
OLD_BACKBONE_FIELDS = ("backbone", "use_pretrained_backbone", "use_timm_backbone", "backbone_kwargs")


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
    """What every configuration has: a backbone of another library, and names of classes.

    `id2label` may name two values of a label map that one logit, of a sigmoid, tells apart.

    Args:
        is_binary: `num_labels` is 1 and `id2label` has two names, e.g. {0: "background", 1: "road"}.
        backbone_config: configuration, or dictionary with "model_type", of a backbone that transformers' `AutoBackbone`
            knows, "timm_backbone" included. It takes the place of the architecture's own, whose fields then mean
            nothing; the head reads the maps that its `out_indices` chooses. With pre-trained weights:
            `...ForSemanticSegmentation.from_backbone`.
        feature_norm: of each map of that backbone: "none", "layer_norm" or "batch_norm" (for frozen backbones).
        feature_scaling: "none" hands that backbone's maps to the head as they are; "pyramid" makes four maps, of four
            times to half the resolution, of the last one (ViTDet, arXiv 2203.16527; for plain ViTs under SegFormer's
            and OCRNet's heads); "fuse" adds all maps, projected, at the resolution of the first (for hierarchical
            backbones under SETR's and Segmenter's heads).

    Raises:
        ValueError: if a field has another type than stated or is out of range, or fields do not fit each other.

    Example:
        >>> SegmentationConfig(id2label={0: "background", 1: "road"}, is_binary=True).num_labels
        1
    """

    is_binary: bool = False
    backbone_config: dict | PreTrainedConfig | None = None
    feature_norm: str = "none"
    feature_scaling: str = "none"
    # Outputs for post-processing, that `Trainer` is not to collect with the predictions.
    keys_to_ignore_at_inference = ["windows", "align_corners"]

    def __post_init__(self, **kwargs):
        num_labels = kwargs.get("num_labels")
        is_number = isinstance(num_labels, Integral) and not isinstance(num_labels, bool)
        if num_labels is not None and not (is_number and 1 <= num_labels <= 2**16):
            raise ValueError(f"num_labels: {num_labels!r} is out of range; give a whole number from 1 to {2**16}")
        if old := [name for name in OLD_BACKBONE_FIELDS if name in kwargs]:
            raise ValueError(
                f"{old[0]} is {kwargs[old[0]]!r}: this would leave the backbone's weights random; give backbone_config "
                "for its shape, or call from_backbone(name or folder) of the model for its pre-trained weights"
            )
        self.make_backbone_config()
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

    def make_backbone_config(self):
        """Makes an object of a `backbone_config` that is a dictionary.

        Raises:
            ValueError: if its "model_type" is unknown.
        """
        from transformers import CONFIG_MAPPING  # importing it makes this package register what is imported here

        if isinstance(self.backbone_config, dict):
            if (kind := str(self.backbone_config.get("model_type"))) not in CONFIG_MAPPING:
                raise ValueError(
                    f"backbone_config has the model_type {kind!r}; give that of a backbone of transformers or timm, as "
                    "'convnext' or 'timm_backbone'"
                )
            self.backbone_config = CONFIG_MAPPING[kind].from_dict(self.backbone_config)

    @property
    def num_feature_maps(self) -> int:
        """Of a `backbone_config`, after `feature_scaling`."""
        return {"pyramid": 4, "fuse": 1}.get(self.feature_scaling) or len(
            getattr(self.backbone_config, "out_indices", None) or [-1]
        )

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

    def validate_backbone(self):
        """Whether the fields of a backbone of another library fit; run at construction and before saving."""
        choices = {"feature_norm": FEATURE_NORMS, "feature_scaling": FEATURE_SCALINGS}
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name} is {value!r}; choose one of {', '.join(known)}")
            if value != "none" and self.backbone_config is None:
                raise ValueError(f"{name} is {value!r}, but there is no backbone_config, which it is for; omit it")
        channels = getattr(self.backbone_config, "num_channels", None)
        if channels not in (None, getattr(self, "num_channels", channels)):
            raise ValueError(f"num_channels is {self.num_channels}, in backbone_config {channels}; set both alike")

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
