"""What a runner has to know and a graph does not say: names, colours, and how pictures are prepared. Texts, by key."""

import json
from pathlib import Path

from huggingface_hub import ModelCard
from transformers import PreTrainedModel

from .. import __version__
from ..visualization import palette
from ..weights.files import weights_hash
from .graph import GraphOptions


PREPROCESSING = (
    "do_resize size do_rescale rescale_factor do_normalize image_mean image_std do_pad size_divisor minimum_size "
    "align_corners window_size window_stride stretch_divisor small_images do_flip_channel_order temperature"
).split()


def metadata_of(model: PreTrainedModel, processor, options: GraphOptions, source: str) -> dict[str, str]:
    """The metadata of an exported file; values that are not words are JSON.

    Keys: "preprocessing" (fields of the image processor), "id2label", "palette" (red, green, blue of each class),
    "ignore_index", "input", "outputs", "model_type", "architecture", "task", "source", "weights_sha256", "license" and
    "hf_segtx_version".
    """
    preprocessing = {name: getattr(processor, name) for name in PREPROCESSING}
    preprocessing["size"] = {key: value for key, value in dict(processor.size).items() if value is not None}
    preprocessing["resample"] = int(processor.resample)
    id2label = {int(number): name for number, name in model.config.id2label.items()}
    return {
        "hf_segtx_version": __version__,
        "task": "semantic-segmentation",
        "model_type": model.config.model_type,
        "architecture": type(model).__name__,
        "input": "uint8 RGB of 0-255" if options.mean is not None else "float32, rescaled and normalised",
        "outputs": json.dumps(list(options.outputs)),
        "id2label": json.dumps(id2label),
        "palette": json.dumps(getattr(model.config, "palette", None) or palette(max(id2label) + 1)),
        "ignore_index": str(getattr(model.config, "semantic_loss_ignore_index", 255)),
        "preprocessing": json.dumps(preprocessing, default=list),
        "source": Path(source).resolve().name if Path(source).exists() else source,
        "weights_sha256": weights_hash(model),
        "license": license_of(source),
    }


def license_of(folder: str) -> str:
    """The licence that the model card in a folder says, else "unknown"."""
    card = Path(folder) / "README.md"
    if not card.is_file():
        return "unknown"
    data = ModelCard.load(card, ignore_metadata_errors=True).data
    return str(data.get("license") or "unknown")
