"""Whole checkpoints of other code bases -> models: `load_original`."""

import logging
import re
from pathlib import Path

from transformers import PreTrainedModel

from ..architectures import ARCHITECTURES, Architecture
from .files import (
    WEIGHT_FILES,
    Source,
    StateDict,
    check_tensors,
    class_names_of,
    log_left_out,
    read_file,
    reason_of,
    renamed,
    tensors_of,
    weights_file,
    without_prefix,
)


logger = logging.getLogger(__name__)


def load_original(path_or_state_dict: str | Path | StateDict, **config_overrides) -> PreTrainedModel:
    """The model of a checkpoint of the authors' code, of mmsegmentation or of transformers, in evaluation mode.

    Source, architecture and sizes are found in the checkpoint's keys and shapes. What cannot be seen there is taken as
    published and can be given as an override: `num_attention_heads` (64 channels each), `feature_indices`, `image_size`
    (square). Class names come along if the file holds them, as mmsegmentation's do; if not, mind the order: Pascal
    Context's classes are the alphabet's in mmsegmentation (`Labels.named("pascal_context_59_mmsegmentation")`).

    State dicts of this package's own models are read too; then, and for transformers', a config.json beside the file
    says what the weights do not. Prefixes such as `module.` or `model.` are cut off, and what stands beside the network
    (weights of a loss, say) is left out, which is logged.

    Args:
        path_or_state_dict: a safetensors or pickle file; a folder with checkpoint.pth (as of Segmenter's authors),
            model.safetensors or pytorch_model.bin; or named tensors. A variant.yml of Segmenter's authors beside the
            file is read with it.
        **config_overrides: fields of the configuration.

    Raises:
        ValueError: if the file is damaged, the source is unknown, or a tensor is missing, left over, of the wrong shape
            or not finite.
        OSError: if there is no such file.
    """
    if isinstance(path_or_state_dict, dict):
        file, content, where = None, path_or_state_dict, "the state dict"
    else:
        file = weights_file(path_or_state_dict, ("checkpoint.pth", *WEIGHT_FILES))
        content, where = read_file(file), str(file)
    name, row, source, state = find_source(tensors_of(content, where), where)
    beside = {} if file is None else fields_beside(file, row, source)
    if source.is_own and not beside:
        logger.warning(  # shown unless logging is set up otherwise
            f"{where}: no config.json beside it; what does not show in the weights, such as numbers of heads, "
            f"align_corners and epsilons, is as published or as {row.config.__name__} has it; override what differs"
        )
    try:
        state = {key: tensor for key, tensor in state.items() if not re.search(source.left_out, key)}
        state = renamed(state, source.names)
        check_tensors(state)
        fields = {} if source.is_own and beside else source.read(state)
        model = row.model(row.config(**{**fields, **beside, **config_overrides}))
        missing, unexpected = model.load_state_dict(state, strict=False)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # A tensor that sizes are read off is missing or has other dimensions, or the sizes are impossible.
        raise ValueError(f"{where} looks like {name}, but does not fit: {reason_of(error)}") from error
    if missing or unexpected:
        raise ValueError(
            f"{where} looks like {name}, but {len(unexpected)} tensors are unexpected ({', '.join(unexpected[:5])}) "
            f"and {len(missing)} are missing ({', '.join(missing[:5])}), by their names here"
        )
    names = None if "id2label" in config_overrides else class_names_of(content)
    if names is not None and len(names) == model.config.num_labels:
        names = names if len(names) > 1 else ["background", *names]  # of a label map
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: number for number, name in enumerate(names)}
    return model.eval()


def fields_beside(file: Path, row: Architecture, source: Source) -> dict:
    """Fields of the configuration that other files in the folder of a checkpoint tell."""
    if source.read_beside is not None:
        return source.read_beside(file.parent)
    if not file.with_name("config.json").is_file():
        return {}
    fields, _ = row.config.get_config_dict(file.parent)
    return fields if fields.get("model_type") == row.config.model_type else {}


def find_source(state: StateDict, where: str) -> tuple[str, Architecture, Source, StateDict]:
    """The source of a checkpoint by name, its architecture, its table, and the tensors of the network alone.

    Raises:
        ValueError: if the source is unknown, or there are several networks.
    """
    sources = {name: (row, source) for row in ARCHITECTURES.values() for name, source in row.weights.SOURCES.items()}

    def source_of(tensors: StateDict) -> str | None:
        return next((name for name, (_, source) in sources.items() if source.is_of(tensors)), None)

    networks = {"": state}
    if source_of(state) is None:  # maybe it lies below one prefix, and others hold a loss or another network
        parts: dict[str, StateDict] = {}
        for key, tensor in state.items():
            part, _, rest = key.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        parts = {part: without_prefix(tensors) for part, tensors in parts.items()}
        networks = {part: tensors for part, tensors in parts.items() if source_of(tensors)}
    if not networks:
        raise ValueError(
            f"{where} is of no known source ({'; '.join(sources)}); its first unexpected keys: "
            f"{', '.join(list(state)[:5])}"
        )
    (part, network), *others = networks.items()
    if others:
        raise ValueError(
            f"{where} has several networks, under {', '.join(networks)}; give the tensors of one: "
            f"{{name: tensor for name, tensor in state.items() if name.startswith('{part}.')}}"
        )
    if part:
        log_left_out([key for key in state if not key.startswith(f"{part}.")], where)
    name = source_of(network)
    return name, *sources[name], network
