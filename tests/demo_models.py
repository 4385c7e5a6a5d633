"""Tiny models for demos whose random weights find several classes in a scene."""

from pathlib import Path

import torch
from tiny import CASES

from hf_segtx.data.scenes import CLASS_NAMES as NAMES


def save_model(folder: Path, architecture: str = "segformer", num_labels: int = len(NAMES), seed: int = 3, **fields):
    """Writes model and image processor; returns the folder.

    Args:
        fields: of the configuration, and of the processor as far as it has them.
    """
    torch.manual_seed(seed)
    case = CASES[architecture]
    names = dict(enumerate(NAMES)) if num_labels > 1 else {0: "crack"}
    processing = {name: fields.pop(name) for name in list(fields) if hasattr(case.row.processor, name)}
    align_corners = {"align_corners": processing["align_corners"]} if "align_corners" in processing else {}
    label2id = {name: index for index, name in names.items()}
    model = case.make_model(num_labels=num_labels, id2label=names, label2id=label2id, **fields, **align_corners)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim == 2:
                torch.nn.init.orthogonal_(weights)
            elif weights.ndim > 2:
                torch.nn.init.normal_(weights, std=(2 / weights[0].numel()) ** 0.5)
    model.save_pretrained(folder)
    case.row.processor(**processing).save_pretrained(folder)
    return folder
