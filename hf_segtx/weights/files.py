"""Files of named tensors, and what describes a code base whose checkpoints are understood.

Files: safetensors, torch pickles (read with `weights_only=True`, so a file cannot run code) and, for ViT, JAX `.npz`.
"""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file


StateDict = dict[str, torch.Tensor]
Names = dict[str, str | Callable[[re.Match], str]]  # regular expression -> replacement; all apply, in this order


def read_state_dict(path: str | Path) -> StateDict:
    """The tensors of a file, by name; of a pickle with more in it, those under "state_dict" or "model".

    Raises:
        ValueError: if a pickle holds no state dict, or anything that could run code.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} is no PyTorch file, or holds objects besides tensors, which could run code ({reason}). If you "
            "trust it, save its tensors alone where its own package is installed: "
            'torch.save(torch.load(path, weights_only=False)["state_dict"], new_path)'
        ) from error
    for name in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no state dict but a {type(content).__name__}; give a file of named tensors")
    return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}


def read_class_names(path: str | Path) -> list[str] | None:
    """The names that mmsegmentation writes into a checkpoint beside the tensors; None in files of others."""
    content = None if Path(path).suffix in (".safetensors", ".npz") else torch.load(path, "cpu", weights_only=True)
    meta = content.get("meta") if isinstance(content, dict) else None
    if not isinstance(meta, dict):
        return None
    names = (meta.get("dataset_meta") or {}).get("classes") or meta.get("CLASSES")  # mmsegmentation 1, 0
    return [str(name) for name in names] if names else None


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
        left_out: matches keys of weights that take no part in the prediction.
        names: renamings to ours.
        read: takes the remaining tensors under our names, repairs them in place where layouts differ, and returns the
            fields of the configuration.
    """

    marks: tuple[str, ...]
    left_out: str
    names: Names
    read: Callable[[StateDict], dict]

    def is_of(self, state: StateDict) -> bool:
        """Whether a state dict is one of this code base's."""
        return all(any(re.search(mark, key) for key in state) for mark in self.marks)
