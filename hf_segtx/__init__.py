"""hf_segtx: semantic segmentation transformers (SETR, SegFormer, Segmenter, OCRNet) for the Hugging Face ecosystem.

Importing the package registers the architectures, so that `AutoModel`, `AutoModelForSemanticSegmentation`,
`AutoImageProcessor` and `pipeline("image-segmentation")` know them. Everything else is imported when it is first used:
`hf_segtx.metrics`, `hf_segtx.weights`, ...
"""

import importlib
import sys


__version__ = "0.1.0"

_ROOMS = set("data error_analysis hub inference large_images losses metrics training visualization weights".split())

# The command `segtx` reads its arguments first, which takes a tenth of the time; it imports `architectures` after that.
if "hf_segtx_command" not in sys.modules:
    from .architectures import *  # noqa: F403
    from .architectures import __all__  # noqa: F401


def __getattr__(name: str):
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_ROOMS})
