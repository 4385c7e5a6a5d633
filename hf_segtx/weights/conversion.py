"""A checkpoint -> a folder for `from_pretrained` with an image processor, or a checkpoint of another code base."""

from pathlib import Path

from transformers import PreTrainedModel

from ..architectures import architecture_of
from ..data.labels import Labels
from .original import load_original
from .to_mmsegmentation import save_for_mmsegmentation
from .to_transformers import save_for_transformers


TARGETS = ("hf_segtx", "transformers", "transformers_js", "mmsegmentation")


def convert(
    checkpoint: str | Path,
    output_dir: str | Path,
    classes_file: str | Path | None = None,
    to: str = "hf_segtx",
    **config_overrides,
) -> tuple[PreTrainedModel, list[str]]:
    """Loads, checks and saves; returns the model, and what the other code base has to be told or cannot do.

    Args:
        checkpoint: see `load_original`.
        output_dir: must not hold a model yet.
        classes_file: classes.json, id2label.json or name of a table of classes.
        to: what is written: "hf_segtx", for this package; "transformers", for its own SegFormer;
            "transformers_js", the same with ONNX files for the browser; "mmsegmentation", the file mmsegmentation.pth.
        config_overrides: fields of the configuration that the checkpoint does not show.

    Raises:
        ValueError, OSError: if checkpoint, overrides or class names do not fit, or the folder holds a model.
    """
    output_dir = Path(output_dir)
    if to not in TARGETS:
        raise ValueError(f"to is {to!r}; choose one of {', '.join(TARGETS)}")
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
    if to == "mmsegmentation":
        return model, save_for_mmsegmentation(model, output_dir / "mmsegmentation.pth")
    processor_class = architecture_of(model).processor
    has_own = (Path(checkpoint) / "preprocessor_config.json").is_file()
    processor = processor_class.from_pretrained(checkpoint) if has_own else processor_class()
    processor.follow(model.config)
    if to == "transformers":
        return model, save_for_transformers(model, processor, output_dir)
    if to == "transformers_js":
        try:
            from ..export.to_transformers_js import save_for_transformers_js
        except ImportError as error:
            raise ValueError(f"to is 'transformers_js': {error}; `pip install hf_segtx[onnx]`") from error
        return model, save_for_transformers_js(model, processor, output_dir)
    model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
    return model, []
