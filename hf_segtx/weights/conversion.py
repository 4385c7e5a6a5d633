"""A checkpoint of another code base -> a folder for `from_pretrained`, with an image processor beside the model."""

from pathlib import Path

from transformers import PreTrainedModel

from ..architectures import architecture_of
from ..data.labels import Labels
from .original import load_original


def convert(
    checkpoint: str | Path, output_dir: str | Path, classes_file: str | Path | None = None, **config_overrides
) -> PreTrainedModel:
    """Loads, checks and saves; returns the model.

    Args:
        checkpoint: see `load_original`.
        output_dir: must not hold a model yet.
        classes_file: classes.json, id2label.json or name of a table of classes.
        config_overrides: fields of the configuration that the checkpoint does not show.

    Raises:
        ValueError, OSError: if checkpoint, overrides or class names do not fit, or the folder holds a model.
    """
    output_dir = Path(output_dir)
    if (output_dir / "config.json").exists():
        raise ValueError(f"{output_dir} holds a model already; choose another folder")
    labels = Labels.from_file(classes_file) if classes_file else None
    model = load_original(checkpoint, **config_overrides)
    if labels is not None:
        if labels.num_labels != model.config.num_labels:
            raise ValueError(
                f"{classes_file} names {labels.num_labels} classes, the checkpoint has {model.config.num_labels}"
            )
        model.config.id2label, model.config.label2id = labels.id2label, labels.label2id
    model.save_pretrained(output_dir)
    architecture_of(model).processor().follow(model.config).save_pretrained(output_dir)
    return model
