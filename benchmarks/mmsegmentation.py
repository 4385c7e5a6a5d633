"""mmsegmentation 1.2.2 as a peer of the benchmarks, without mmcv's compiled operators.

    pip install mmsegmentation==1.2.2 mmcv-lite mmengine ftfy regex

Its models import mmcv's compiled operators even where they use none, and it refuses the version of mmcv-lite that
installs today; both are answered here before it is imported.
"""

import importlib.machinery
import sys
import types
import warnings

import torch


class _NoOperators(types.ModuleType):
    """Stands for `mmcv.ops`: every name is an empty class."""

    __path__: list[str] = []
    __spec__ = importlib.machinery.ModuleSpec("mmcv.ops", None)

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def build(config: dict) -> torch.nn.Module:
    """The segmentor of a configuration, with random weights; SyncBN must already be BN.

    Raises:
        ImportError: if mmsegmentation is not installed.
    """
    import mmcv

    mmcv.__version__ = "2.1.0"
    sys.modules.setdefault("mmcv.ops", _NoOperators("mmcv.ops"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mmseg.models  # noqa: F401  registers the models
        from mmseg.registry import MODELS

        torch.manual_seed(0)
        return MODELS.build(config)


def label_map(model, pixel_values: torch.Tensor) -> torch.Tensor:
    """Classes (B, H, W) of normalised images, as its whole-image evaluation does it: resize, then argmax."""
    size = tuple(pixel_values.shape[2:])
    metas = [dict(ori_shape=size, img_shape=size, pad_shape=size)] * len(pixel_values)
    return model.encode_decode(pixel_values, metas).argmax(1)


def training_loss(model, pixel_values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of a training step; like every step of mmsegmentation, it also computes the accuracy."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    size = tuple(pixel_values.shape[2:])
    samples = []
    for image_labels in labels:
        sample = SegDataSample(metainfo=dict(img_shape=size, pad_shape=size))
        sample.gt_sem_seg = PixelData(data=image_labels[None])
        samples.append(sample)
    losses = model.loss(pixel_values, samples)
    return sum(value for name, value in losses.items() if "loss" in name)
