"""Pre-trained weights for the backbone of a model: ImageNet's, of timm, transformers, JAX and the authors."""

import logging
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from transformers import PreTrainedModel

from ..architectures import architecture_of


logger = logging.getLogger(__name__)


def backbone_file(name_or_path: str | Path) -> Path:
    """A file, the weights in a folder, or those of a repository of the Hub; a bare name is one of timm's."""
    files = ("model.safetensors", "pytorch_model.bin")
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.is_dir():
        for file in files:
            if (path / file).is_file():
                return path / file
        raise ValueError(f"{path} has neither {' nor '.join(files)}; give the file itself")
    repository = str(name_or_path) if "/" in str(name_or_path) else f"timm/{name_or_path}"
    for file in files:
        try:
            return Path(hf_hub_download(repository, file))
        except EntryNotFoundError as error:
            reason = error
    raise ValueError(
        f"{name_or_path} is no file or folder, and {repository} on the Hub has neither {' nor '.join(files)}, or "
        "cannot be reached"
    ) from reason


def load_backbone(model: PreTrainedModel, name_or_path: str | Path):
    """Puts pre-trained weights into the backbone of `model`, in place: of a ViT or DeiT; for OCRNet of HRNet or ResNet.

    Understood: timm (ViT, AugReg, DeiT, distilled DeiT, ViT-hybrid; HRNet, ResNet), transformers (ViT, DeiT), and the
    JAX `.npz` files of ViT. Patch kernels and position tables are resized to the model's; a distillation token that the
    model does not have and the classifier are left out, which is logged.

    Args:
        model: SETR, Segmenter or OCRNet, with or without its head.
        name_or_path: a file; a folder with model.safetensors or pytorch_model.bin; a repository of the Hub
            ("google/vit-large-patch16-224"); or a name of timm ("vit_large_patch16_384.augreg_in21k_ft_in1k").

    Raises:
        ValueError: if there are no such weights, or they do not fit the backbone.
    """
    architecture_of(model).weights.load_backbone(model.base_model, backbone_file(name_or_path))
