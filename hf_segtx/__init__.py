"""hf_segtx: semantic segmentation transformers (SETR, SegFormer, Segmenter, OCRNet) for the Hugging Face ecosystem.

Importing the package registers the architectures, so that `AutoModel`, `AutoModelForSemanticSegmentation`,
`AutoImageProcessor` and `pipeline("image-segmentation")` know them; see `hf_segtx.registration` for when. The classes
and everything else are imported when they are first used: `hf_segtx.SegFormerConfig`, `hf_segtx.metrics`, ...
"""

import importlib
from typing import TYPE_CHECKING

from .registration import register_when_needed


if TYPE_CHECKING:
    from .architectures import *  # noqa: F403

__version__ = "0.1.0"

_ROOMS = set(
    "data error_analysis evaluation export hub inference large_images losses metrics prediction training visualization "
    "weights".split()
)

register_when_needed()


def __getattr__(name: str):
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name[:1].isupper() or name == "__all__":
        architectures = importlib.import_module(f"{__name__}.architectures")
        if name == "__all__" or name in architectures.__all__:
            return getattr(architectures, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_ROOMS, *importlib.import_module(f"{__name__}.architectures").__all__})
