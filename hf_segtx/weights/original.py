"""Whole checkpoints of other code bases -> models: `load_original`."""

import re
from pathlib import Path

from transformers import PreTrainedModel

from ..architectures import ARCHITECTURES
from .files import StateDict, read_class_names, read_state_dict, renamed
from .segmenter import segmenter_variant


def load_original(path_or_state_dict: str | Path | StateDict, **config_overrides) -> PreTrainedModel:
    """The model of a checkpoint of the authors' code or of mmsegmentation, in evaluation mode.

    Source, architecture and sizes are found in the checkpoint's keys and shapes. What cannot be seen there is taken as
    published and can be given as an override: `num_attention_heads` (64 channels each), `feature_indices`, `image_size`
    (square). Class names come along if the file holds them, as mmsegmentation's do; if not, mind the order: Pascal
    Context's classes are the alphabet's in mmsegmentation (`Labels.named("pascal_context_59_mmsegmentation")`).

    Args:
        path_or_state_dict: a safetensors or pickle file, or named tensors; or the folder of a Segmenter of its authors,
            checkpoint.pth and variant.yml (which is also read when the file is given).
        **config_overrides: fields of the configuration.

    Raises:
        ValueError: if the source is unknown, or if a tensor is missing, left over or of the wrong shape.
    """
    given = path_or_state_dict
    if not isinstance(given, dict):
        given = Path(given) / "checkpoint.pth" if Path(given).is_dir() else Path(given)
        if given.with_name("variant.yml").is_file():
            config_overrides = {**segmenter_variant(given.with_name("variant.yml")), **config_overrides}
    state = dict(given) if isinstance(given, dict) else read_state_dict(given)
    where = "the state dict" if isinstance(given, dict) else str(given)
    state = renamed(state, {r"^module\.": ""})  # of DataParallel
    sources = {name: (row, source) for row in ARCHITECTURES.values() for name, source in row.weights.SOURCES.items()}
    name = next((name for name, (_, source) in sources.items() if source.is_of(state)), None)
    if name is None:
        raise ValueError(
            f"{where} is of no known source ({'; '.join(sources)}); its first unexpected keys: "
            f"{', '.join(list(state)[:5])}"
        )
    row, source = sources[name]
    state = renamed({key: value for key, value in state.items() if not re.search(source.left_out, key)}, source.names)
    try:
        model = row.model(row.config(**{**source.read(state), **config_overrides}))
        missing, unexpected = model.load_state_dict(state, strict=False)
    except (KeyError, RuntimeError) as error:  # a tensor that sizes are read from; shapes that do not fit
        raise ValueError(f"{where} looks like {name}, but does not fit: {error}") from error
    if missing or unexpected:
        raise ValueError(
            f"{where} looks like {name}, but {len(unexpected)} tensors are unexpected ({', '.join(unexpected[:5])}) "
            f"and {len(missing)} are missing ({', '.join(missing[:5])}), by their names here"
        )
    names = None if isinstance(given, dict) or "id2label" in config_overrides else read_class_names(given)
    if names is not None and len(names) == model.config.num_labels:
        names = names if len(names) > 1 else ["background", *names]  # of a label map
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: number for number, name in enumerate(names)}
    return model.eval()
