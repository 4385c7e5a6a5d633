"""What the four architectures share: the base class, the output and the loss.

Shapes: B images, K classes; (H, W) the size of the labels, (h, w) that of the logits.
"""

import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BackboneOutput, ModelOutput, SemanticSegmenterOutput
from transformers.utils.generic import can_return_tuple

from .cpu import optimize_for_inference
from .feature_maps import FeatureMaps, FeatureNeck
from .pretrained_backbone import build_on_backbone, read_backbone
from .sliding_windows import stack_by_image
from .upsampling import upsampled_cross_entropy


@dataclass
class SegmentationOutput(SemanticSegmenterOutput):
    """Output of every `...ForSemanticSegmentation` here.

    Args:
        loss: scalar; main loss plus weighted auxiliary losses. Returned when `labels` are given.
        logits: (B, K, h, w), before softmax, at the resolution of the decode head (not that of the image).
        hidden_states, attentions: as recorded by the backbone, on request.
        auxiliary_logits: one (B, K, h, w) per auxiliary head, shallow to deep, on request.
        windows: (B, 7), as the model was given them by an image processor that cuts images into windows.
    """

    auxiliary_logits: tuple[torch.Tensor, ...] | None = None
    windows: torch.Tensor | None = None

    def __setitem__(self, key, value):
        """Sorts windows by image where `pipeline(images, batch_size=...)` will take the output apart.

        It concatenates what the processor returned for each image, adds `target_size`, then a list for each image, and
        expects one row per image in everything.
        """
        super().__setitem__(key, value)
        if key == "target_size" and self.windows is not None and all(isinstance(sizes, list) for sizes in value):
            self["logits"], self["windows"] = stack_by_image(self.logits, self.windows)


def segmentation_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    config: PreTrainedConfig,
    auxiliary_logits: tuple[torch.Tensor, ...] = (),
) -> torch.Tensor:
    """Cross-entropy of the resized logits, plus `auxiliary_loss_weight` times that of each auxiliary head.

    Mean over the pixels that are not `semantic_loss_ignore_index`; 0 when there are none. With one class the logit is
    that of a sigmoid and the labels are 0 and 1. The resized logits are never held in memory. Other losses: losses.py
    of the package hf_segtx.

    Args:
        config: reads `semantic_loss_ignore_index` and, where they exist, `auxiliary_loss_weight` and `align_corners`.

    Shape:
        logits, auxiliary_logits: (B, K, h, w)
        labels: (B, H, W) integers, class or ignore index
        returns: scalar

    Raises:
        ValueError: if `labels` are not one map of integers per image.
    """
    resize = dict(ignore_index=config.semantic_loss_ignore_index, align_corners=getattr(config, "align_corners", False))
    loss = upsampled_cross_entropy(logits, labels, **resize)
    for head_logits in auxiliary_logits:
        loss = loss + config.auxiliary_loss_weight * upsampled_cross_entropy(head_logits, labels, **resize)
    return loss


def check_inputs(pixel_values: torch.Tensor | None, labels: torch.Tensor | None, num_channels: int) -> None:
    """Raises ValueError for images that are none, and for label maps (B, H', W') of another ratio of sides than theirs.

    The maps may be larger or smaller, by the same factor up to a pixel.
    """
    if not isinstance(pixel_values, torch.Tensor):
        return
    shape = tuple(pixel_values.shape)
    if len(shape) != 4 or shape[1] != num_channels or not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values are {pixel_values.dtype} of shape {shape}, expected are floats of shape (B, {num_channels}, "
            "H, W), as the image processor makes them"
        )
    if getattr(labels, "ndim", 0) == 3:
        (height, width), (rows, columns) = shape[2:], labels.shape[1:]
        if abs(rows * width - columns * height) > height + width:
            raise ValueError(
                f"labels of shape {tuple(labels.shape)} do not fit pixel_values of shape {shape}; give maps of class "
                "ids with the height and width of the images"
            )


class SegmentationPreTrainedModel(PreTrainedModel):
    """Base class: what transformers has to know of a model that takes images and has a `backbone`.

    A subclass sets `_auto_map` to the Auto classes that its checkpoints serve, `{"AutoModel": "file.Class", ...}`.
    """

    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # The loss is a mean over valid pixels, not divided by Trainer's `num_items_in_batch`: without this line Trainer
    # would not divide by the number of accumulation steps (transformers#47688).
    accepts_loss_kwargs = False
    _auto_map: dict[str, str] = {}
    # Settable, as in every transformers model: `model.loss_function = hf_segtx.losses.parse_loss(...)`.
    _loss_function = staticmethod(segmentation_loss)
    _reads = "stages"  # what the head reads of a backbone of another library, see `default_indices`
    _frozen: tuple[str, ...] = ()  # names of modules; a state of training, which no checkpoint has

    def freeze(self, *names: str) -> None:
        """Makes exactly these modules stay as they are: no gradients, and evaluation mode whatever `train()` says.

        So neither dropout nor a batch norm's statistics are those of training in them, in any loop, Trainer's, too. A
        frozen "backbone" runs without autograd. What an earlier call froze and this one does not name trains again.

        Args:
            names: such as "backbone" or "decode_head.norm"; none: everything trains.

        Raises:
            ValueError: if there is no such module.
        """
        for name in names:
            try:
                self.get_submodule(name)
            except AttributeError as error:
                known = ", ".join(name for name, _ in self.base_model.named_children())
                raise ValueError(f"`freeze` {name}: there is no such module; the backbone has {known}") from error
        for name in self._frozen:
            self.get_submodule(name).requires_grad_(True)
        for name in names:
            self.get_submodule(name).requires_grad_(False)
        self._frozen = names
        self.train(self.training)

    @torch.no_grad()
    def optimize_for_inference(self) -> "SegmentationPreTrainedModel":
        """A copy for inference on this device in this dtype: the same function but faster, see [`cpu`]."""
        return optimize_for_inference(self)

    def train(self, mode: bool = True):
        """As in torch, but for what is frozen."""
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).eval()
        return self

    def __call__(self, *inputs, **named):
        """As in torch, but says what is wrong with images and label maps; see `check_inputs`."""
        given = dict(zip(("pixel_values", "labels"), inputs)) | named
        check_inputs(given.get("pixel_values"), given.get("labels"), self.config.num_channels)
        return super().__call__(*inputs, **named)

    def features(
        self, pixel_values: torch.Tensor, feature_maps: tuple[torch.Tensor, ...] | None = None, **kwargs
    ) -> ModelOutput:
        """The output of the backbone; or, with `feature_maps`, these, which it made of the images before."""
        if feature_maps is not None:
            return BackboneOutput(feature_maps=feature_maps)
        if "backbone" in self._frozen:
            with torch.no_grad():
                return self.backbone(pixel_values, return_dict=True, **kwargs)
        return self.backbone(pixel_values, return_dict=True, **kwargs)

    @can_return_tuple
    def read_maps(
        self, kind: type[ModelOutput], pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **kwargs
    ) -> ModelOutput:
        """The output, of some kind, of a backbone of another library; its hidden states are the maps that are read.

        Not under `capture_outputs`, which would hook that library's layers a second time, and so shift its maps.
        """
        maps = self.encoder(pixel_values)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states = maps if output_hidden_states else None
        return kind(last_hidden_state=maps[-1], hidden_states=hidden_states, feature_maps=maps)

    def classifiers(self) -> list[str]:
        """Names of the layers whose output are the logits: the `classifier` of each head, or the head if it is a layer.

        Raises:
            ValueError: if a head has none: the mask transformer compares patches with its classes.
        """
        heads = {"decode_head": self.decode_head}
        heads |= {f"auxiliary_heads.{index}": head for index, head in enumerate(getattr(self, "auxiliary_heads", ()))}
        for name, head in heads.items():
            if any(head.children()) and not hasattr(head, "classifier"):
                raise ValueError(f"{name}, a {type(head).__name__}, has no classifier, the only layer to be trained")
        return [f"{name}.classifier" if any(head.children()) else name for name, head in heads.items()]

    @classmethod
    def from_backbone(
        cls,
        name_or_path: str | Path,
        size: str | None = None,
        *,
        out_indices: list[int] | None = None,
        weights_file: str | Path | None = None,
        revision: str = "main",
        cache_dir: str | None = None,
        token: str | None = None,
        **fields,
    ):
        """A model on a pre-trained backbone of transformers or timm, its head random, and the image processor for it.

        The processor has the backbone's mean and standard deviation, and pads to its patches. What of the file is not
        used, and which norms it lacks, is logged.

        Args:
            name_or_path: folder or name on the Hub, such as "facebook/dinov3-vits16-pretrain-lvd1689m" or
                "timm/resnet50.a1_in1k"; with `weights_file` the name of a network of timm, such as "timm/resnet50".
            size: a published size of this architecture, whose head is taken; None: the head of the defaults.
            out_indices: maps that the head reads, in the library's numbers. None: of a hierarchical backbone four
                stages for SegFormer and OCRNet; for SETR and Segmenter the last two, with `feature_scaling="fuse"`. Of
                a plain ViT the last block, for SegFormer and OCRNet with `feature_scaling="pyramid"`; for SETR, and for
                these two with "none", four blocks at even distances.
            weights_file: weights of a network of timm.
            revision, cache_dir, token: of the download.
            fields: of the configuration, such as `num_labels`, `decode_head`, `feature_norm`, `feature_scaling`.

        Returns:
            model, in evaluation mode, and image processor

        Raises:
            ValueError: if there is no such backbone, or a weight of it would be random.
            OSError: if a folder, file or repository cannot be read.

        Example:
            >>> model, processor = SegmenterForSemanticSegmentation.from_backbone(
            ...     "facebook/dinov3-vits16-pretrain-lvd1689m", decode_head="probe", num_labels=19
            ... )
        """
        hub = {"revision": revision, "cache_dir": cache_dir, "token": token}
        scaling, channels = fields.get("feature_scaling", "pyramid"), fields.get("num_channels", 3)
        reads = "pyramid" if cls._reads == "stages" and scaling == "pyramid" else cls._reads
        weights = read_backbone(name_or_path, reads, out_indices, weights_file, channels, hub)
        if reads == "pyramid" and out_indices is None and len(weights.config.out_indices) == 1:
            fields["feature_scaling"] = "pyramid"
        return build_on_backbone(cls, weights, size, fields)

    def build_neck(self) -> nn.Module:
        """What lies between the backbone and the head: nothing, unless there is a `backbone_config`."""
        return nn.Identity() if self.config.backbone_config is None else FeatureNeck(self.config)

    def _set_gradient_checkpointing(self, enable: bool, **settings):
        """As in transformers; backbones of timm have a switch of their own."""
        encoder = getattr(self.base_model, "encoder", None)
        if not (isinstance(encoder, FeatureMaps) and encoder.checkpoint_gradients(enable)):
            super()._set_gradient_checkpointing(enable, **settings)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in transformers; of a file that cannot be read, the message says which it is and what to do.

        Raises:
            ValueError: if a safetensors file is damaged, or pickled weights hold more than tensors.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except SafetensorError as error:
            raise ValueError(
                f"{damaged_file(pretrained_model_name_or_path)} is cut off or no safetensors file ({error}); copy or "
                "download it again"
            ) from error
        except UnpicklingError as error:
            raise ValueError(
                f"the pickled weights of {pretrained_model_name_or_path} are refused: they hold more than tensors, "
                "which could run any code when it is loaded; where you trust them, save the tensors alone as "
                "model.safetensors"
            ) from error

    def _get_name(self) -> str:
        """As in torch; but Trainer, which asks for the name just before it smooths labels, is told that it must not.

        It would do so along the width of logits that are smaller than the labels, and count ignored pixels.

        Raises:
            ValueError: if the caller is a Trainer with `label_smoothing_factor`.
        """
        caller = sys._getframe(1).f_locals.get("self")
        smoother = None if caller is self else getattr(caller, "label_smoother", None)
        if smoother is not None:
            raise ValueError(
                f"Trainer's label_smoothing_factor {smoother.epsilon} does not fit maps of labels; set it to 0 and "
                "model.loss_function = hf_segtx.losses.parse_loss(label_smoothing=...)"
            )
        return super()._get_name()

    def save_pretrained(self, save_directory, **kwargs):
        """As in transformers; the config names every Auto class, and the weights may be read by whom it may.

        They get the permissions that the user's umask says; safetensors would write them for the owner alone.
        """
        if self.is_remote_code():  # the code travels with the weights
            self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **self._auto_map}
        super().save_pretrained(save_directory, **kwargs)
        copy_permissions(Path(save_directory) / "config.json", Path(save_directory).glob("*.safetensors"))


def copy_permissions(like: Path, files: Iterable[Path]) -> None:
    """Gives files the permissions of another one, if that is there: safetensors writes for the owner alone."""
    for file in files:
        if like.is_file():
            shutil.copymode(like, file)


def damaged_file(folder: str | Path) -> str | Path:
    """The first safetensors file of a folder that cannot be opened, else the folder."""
    for file in sorted(Path(folder).glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except SafetensorError:
            return file
    return folder
