"""Pre-trained weights for the backbone of a model: ImageNet's, of timm, transformers, JAX and the authors."""

import logging
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from transformers import PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..architectures import architecture_of
from ..models.pretrained_backbone import read_backbone
from .files import WEIGHT_FILES, weights_file


logger = logging.getLogger(__name__)


def load_backbone(model: PreTrainedModel, name_or_path: str | Path):
    """Puts pre-trained weights into the backbone of `model`, in place, and leaves the head as it is.

    Understood, by the architecture of the model:

    - SETR, Segmenter: ViT and DeiT of timm (also AugReg, distilled, hybrid) and transformers, JAX `.npz` files of ViT.
      Patch kernels and position tables are resized to the model's.
    - SegFormer: MiT of the authors, transformers ("nvidia/mit-b0") and mmsegmentation, alone or under a head.
    - OCRNet: HRNet and ResNet of timm, torchvision and the authors.
    - The backbones of this package's own models of that architecture.
    - A model with a `backbone_config`: that network's, of transformers or timm; from a file those of timm alone.

    Classifiers, heads and a distillation token that the model does not have are left out, which is logged.

    Args:
        model: with or without its head.
        name_or_path: a file; a folder with model.safetensors or pytorch_model.bin; a repository of the Hub
            ("google/vit-large-patch16-224"); or a bare name, of timm ("vit_large_patch16_384.augreg_in21k_ft_in1k") or,
            for SegFormer, of nvidia ("mit-b0").

    Raises:
        ValueError: if there are no such weights, the file is damaged, or they do not fit the backbone.
        OSError: if a file cannot be opened, or the Hub refuses.
    """
    weights = architecture_of(model).weights
    if model.config.backbone_config is not None:
        return load_other_backbone(model, name_or_path)
    weights.load_backbone(model.base_model, backbone_file(name_or_path, weights.HUB_OWNER))


def load_other_backbone(model: PreTrainedModel, name_or_path: str | Path) -> None:
    """The part of `load_backbone` that is of a `backbone_config`.

    Raises:
        ValueError: if the weights are of another network.
    """
    config, file = model.config.backbone_config, Path(name_or_path) if Path(name_or_path).is_file() else None
    network = getattr(config, "backbone", None)  # its name in timm
    if file is not None and network is None:
        raise ValueError(f"{file}: weights for {config.model_type} need their config.json; give the folder of both")
    if network is not None and "/" not in str(name_or_path) and not Path(name_or_path).exists():
        name_or_path = f"timm/{name_or_path}"
    weights = read_backbone(
        network if file else name_or_path, "stages", list(config.out_indices), file, model.config.num_channels
    )
    try:
        model.base_model.encoder.backbone.load_state_dict(weights.state)
    except RuntimeError as error:
        wanted = network or config.model_type
        raise ValueError(f"{name_or_path} is no {wanted}: {' '.join(str(error).split())[:300]}") from error
    if [*weights.mean, *weights.std] != [*IMAGENET_DEFAULT_MEAN, *IMAGENET_DEFAULT_STD]:
        logger.warning(
            f"{name_or_path} was trained on images of mean {list(weights.mean)} and deviation {list(weights.std)}; "
            "give the image processor these as image_mean and image_std"
        )


def backbone_file(name_or_path: str | Path, owner: str) -> Path:
    """A file, the weights in a folder, or those of a repository of the Hub; a bare name is one of `owner`."""
    if Path(name_or_path).exists():
        return weights_file(name_or_path)
    repository = str(name_or_path) if "/" in str(name_or_path) else f"{owner}/{name_or_path}"
    for file in WEIGHT_FILES:
        try:
            return Path(hf_hub_download(repository, file))
        except EntryNotFoundError as error:
            reason = error
    raise ValueError(
        f"{name_or_path} is no file or folder, and {repository} on the Hub has neither {' nor '.join(WEIGHT_FILES)}, "
        "or cannot be reached"
    ) from reason
