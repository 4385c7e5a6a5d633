"""Pictures, folders, videos and cameras -> label maps and overlays in files, which never replace a file of the user.

predictor, results = Predictor(*load_model("outputs/run")), Results("predictions")
sources = find_sources(["photos/"])
failures = segment_images(predictor, sources.names, results)
"""

from .batches import BatchSegmenter
from .explain import explain
from .pictures import Predictor, segment_images
from .results import Results
from .sources import find_sources, is_video
from .videos import segment_video


__all__ = [
    "BatchSegmenter",
    "Predictor",
    "Results",
    "explain",
    "find_sources",
    "is_video",
    "segment_images",
    "segment_video",
]
