"""Files of named tensors: safetensors, torch pickles and, for ViT, JAX `.npz`; and what describes a known code base.

Pickles are read with `weights_only=True`, so a file cannot run code.
"""

import hashlib
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn


logger = logging.getLogger(__name__)

StateDict = dict[str, torch.Tensor]
Names = dict[str, str | Callable[[re.Match], str]]  # regular expression -> replacement; all apply, in this order

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # of a folder or repository, the first that is there
CONTAINERS = ("state_dict", "model_state_dict", "model")  # where training programs put the weights, beside other things
# What compilation, sharding and gradient checkpointing put into names, wherever they wrapped a part of the network.
WRAPPERS = r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of names, shapes, types and values of all parameters and buffers: equal for equal weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def weights_file(path: str | Path, names: tuple[str, ...] = WEIGHT_FILES) -> Path:
    """A file, or that of a folder which holds the weights.

    Raises:
        ValueError: if a folder has none of `names`.
        FileNotFoundError: if there is neither file nor folder.
    """
    path = Path(path)
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                return path / name
        raise ValueError(f"{path} has neither {' nor '.join(names)}; give the file itself")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file or folder")
    return path


def read_file(path: Path) -> dict:
    """What a file of weights holds: named tensors, or whatever else stands beside them in a pickle.

    Raises:
        ValueError: if the file is damaged or no file of weights, or holds anything that could run code.
        OSError: if it cannot be opened.
    """
    with path.open("rb"):  # errors of the file system say all themselves
        pass
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                content = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no such file make these readers raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(
            f"{path} cannot be read ({reason}): it is cut off, no file of weights, or holds more than tensors, which "
            "could run code. Copy or download it again; where you trust it, save its tensors alone where its own "
            'package is installed: torch.save(torch.load(path, weights_only=False)["state_dict"], new_path)'
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no state dict but a {type(content).__name__}; give a file of named tensors")
    return content


def tensors_of(content: dict, where: str) -> StateDict:
    """The named tensors of what a file holds, without what wrappers put before and into the names.

    Raises:
        ValueError: if there are none, or names are no texts.
    """
    for name in CONTAINERS:
        if isinstance(content.get(name), dict):
            content = content[name]
    state = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not state:
        found = ", ".join(map(repr, list(content)[:5])) or "nothing"
        raise ValueError(f"{where} holds no state dict but {found}; give a file of named tensors")
    if nameless := [name for name in state if not isinstance(name, str)]:
        raise ValueError(f"{where} has a tensor under the key {nameless[0]!r}; give tensors under their names as texts")
    return without_prefix(renamed(state, {WRAPPERS: ""}))


def read_state_dict(path: str | Path) -> StateDict:
    """The tensors of a file, by name; of a pickle with more in it, those under "state_dict" or "model".

    Raises:
        ValueError, OSError: as `read_file` and `tensors_of`.
    """
    return tensors_of(read_file(Path(path)), str(path))


def without_prefix(state: StateDict) -> StateDict:
    """Without the parts that all names start with (`module.`, `model.`, `net.`); a list (`stages.0.`) stays."""
    while len(state) > 1 and len({name.partition(".")[0] for name in state}) == 1:
        rest = {name.partition(".")[2]: tensor for name, tensor in state.items()}
        if any(name[:1].isdigit() or not name for name in rest):  # a list of layers, or a tensor itself
            break
        state = rest
    return state


def backbone_of(state: StateDict, where: str) -> StateDict:
    """Of a whole checkpoint what lies below `backbone.`, the rest is left out, which is logged; else all."""
    inside = {name.removeprefix("backbone."): tensor for name, tensor in state.items() if name.startswith("backbone.")}
    if not inside:
        return state
    log_left_out([name for name in state if not name.startswith("backbone.")], where)
    return inside


def log_left_out(names: list[str], where: str) -> None:
    """Says which tensors are not used; shown unless logging is set up otherwise."""
    if names:
        logger.warning(f"{where}: left out {', '.join(names)}")


def check_tensors(state: StateDict) -> None:
    """Weights are floating-point numbers, there and finite; counters of batches are integers.

    Raises:
        ValueError: for the first tensor of which that is not true.
    """
    for name, tensor in state.items():
        counter = name.endswith("num_batches_tracked")
        if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
            reason = "is without values, sparse or quantized; save the weights as plain tensors"
        elif not counter and not tensor.is_floating_point():
            reason = f"is of type {tensor.dtype}; save the weights as floating-point numbers"
        elif not counter and not tensor.float().isfinite().all():
            reason = "has values that are not finite (NaN or infinite): the training failed or the file is damaged"
        elif name.endswith("running_var") and (tensor < 0).any():
            reason = "has negative values, and variances are at least 0: the file is damaged"
        else:
            continue
        raise ValueError(f"the tensor {name} {reason}")


def class_names_of(content: dict) -> list[str] | None:
    """The names that mmsegmentation writes into a checkpoint beside the tensors; None in files of others."""
    meta = content.get("meta")
    if not isinstance(meta, dict):
        return None
    data = meta.get("dataset_meta")
    names = (data.get("classes") if isinstance(data, dict) else None) or meta.get("CLASSES")  # mmsegmentation 1, 0
    return [str(name) for name in names] if isinstance(names, (list, tuple)) and names else None


def reason_of(error: Exception) -> str:
    """An error in reading tensors, in words: a KeyError says nothing but the key."""
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)


def renamed(state: StateDict, names: Names) -> StateDict:
    """The same tensors under other names; two that would get the same name raise."""
    result = {}
    for name, tensor in state.items():
        for pattern, replacement in names.items():
            name = re.sub(pattern, replacement, name)
        if name in result:
            raise ValueError(f"two tensors of the checkpoint would both be called {name}; it is not of a known source")
        result[name] = tensor
    return result


def count(state: StateDict, pattern: str) -> int:
    """How many different numbers stand in the place of the group of `pattern`: of blocks, heads, convolutions."""
    return len({match[1] for match in map(re.compile(pattern).match, state) if match})


class Source(NamedTuple):
    """A code base whose checkpoints are understood.

    Attributes:
        marks: regular expressions; a checkpoint is of this source if each is found in one of its keys.
        read: takes the remaining tensors under our names, repairs them in place where layouts differ, and returns the
            fields of the configuration.
        names: renamings to ours; none in this package's own checkpoints.
        left_out: matches keys of weights that take no part in the prediction.
        read_beside: fields of the configuration that a file of the source's own in the given folder tells.
    """

    marks: tuple[str, ...]
    read: Callable[[StateDict], dict]
    names: Names = {}
    left_out: str = r"^$"
    read_beside: Callable[[Path], dict] | None = None

    @property
    def is_own(self) -> bool:
        """Whether it is this package."""
        return not self.names

    def is_of(self, state: StateDict) -> bool:
        """Whether a state dict is one of this code base's."""
        return all(any(re.search(mark, key) for key in state) for mark in self.marks)
