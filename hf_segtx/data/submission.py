"""Label maps as the test servers of Cityscapes and ADE20K want them.

Cityscapes: 8 bits, the ids of `*_labelIds.png` (road is 7, not 0); the name begins as that of its image, with city,
sequence and frame (getPrediction of cityscapesScripts, evaluation/evalPixelLevelSemanticLabeling.py).
ADE20K (scene parsing, 150 classes): 8 bits, classes from 1 on, the name is that of the image (CSAILVision/sceneparsing,
evaluationCode). Both have the size of the image. Zip the folder and upload it.
"""

import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

from .labels import Labels


NAMES = {"cityscapes": r"[^\W_]+_\d{6}_\d{6}\w*", "ade20k": r"ADE_[a-z]+_\d{8}"}
EXAMPLES = {"cityscapes": "berlin_000000_000019_leftImg8bit", "ade20k": "ADE_test_00000001"}


class SubmissionWriter:
    """Label maps of pictures -> a PNG for each, `cityscapes/NAME.png` or `ade20k/NAME.png`.

    Args:
        folder: of the results.
        names: class id -> name.
        dataset: "cityscapes" or "ade20k".

    The methods are those of `CocoWriter`.

    Raises:
        ValueError: if the classes are not those of the data set.
    """

    def __init__(self, folder: str | Path, names: dict[int, str], dataset: str):
        labels = Labels.named(dataset)
        labels.check_names(names, "the model")
        self.dataset = dataset
        self.raw_ids = np.zeros(labels.num_labels, np.uint8)
        for raw, train in labels.raw_to_train.items():
            if train != labels.ignore_index:
                self.raw_ids[train] = raw

    def file(self, name: str) -> str:
        stem = Path(name).name
        if not re.fullmatch(NAMES[self.dataset], stem):
            raise ValueError(
                f"{name} is no name of an image of {self.dataset}, such as {EXAMPLES[self.dataset]}; the server finds "
                "results by their names"
            )
        return f"{self.dataset}/{stem}.png"

    def add(self, image: str | Path, name: str, label_map: np.ndarray) -> bytes:
        content = io.BytesIO()
        Image.fromarray(self.raw_ids[label_map]).save(content, "PNG")
        return content.getvalue()

    def finish(self) -> dict[str, bytes]:
        return {}
