"""Pictures: label maps and overlays, explanations of models, curves of training."""

from .curves import reliability_picture, training_curves
from .explanations import (
    attention_picture,
    class_embedding_coordinates,
    distance_picture,
    embedding_picture,
    heat_panels,
    mean_attention_distance,
    patch_attention,
    region_picture,
)
from .label_maps import color_map, comparison, label_png, legend, overlay, palette


__all__ = [
    "attention_picture",
    "class_embedding_coordinates",
    "color_map",
    "comparison",
    "distance_picture",
    "embedding_picture",
    "heat_panels",
    "label_png",
    "legend",
    "mean_attention_distance",
    "overlay",
    "palette",
    "patch_attention",
    "region_picture",
    "reliability_picture",
    "training_curves",
]
