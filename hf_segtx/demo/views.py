"""What a demo computes and draws, for one or two models; nothing here depends on how it is shown.

Of each picture the full label map is kept as a PNG only; what is drawn again and again, when a class is switched off
or the opacity changes, is small enough for a screen.

Shapes: (H, W) picture in pixels, (h, w) as it is shown.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import log
from pathlib import Path

import numpy as np
from PIL import Image

from ..data import read_image
from ..data.scenes import SceneDataset
from ..inference import segment
from ..prediction.pictures import Predictor, as_png
from ..visualization import overlay, palette
from ..visualization.explanations import heat_colors
from ..visualization.label_maps import as_image


KINDS = ("classes", "confidence", "entropy")
SHOWN_EDGE = 1280  # pixels of the longest edge of what is drawn
EXAMPLES = 3  # embedded scenes to try
HIDDEN = -1  # in place of the ids of classes that are switched off


@dataclass
class View:
    """What one model says of a picture.

    Args:
        label_map: (h, w) int16, ids of `Models.names`.
        confidence: (h, w) float16, probability of each pixel's class.
        entropy: (h, w) float16, as a share of its largest value, log of the number of classes.
        png: the content of a PNG of the whole label map (H, W), whose values are the model's own ids.
    """

    label_map: np.ndarray
    confidence: np.ndarray
    entropy: np.ndarray
    png: bytes


@dataclass
class Seen:
    """A picture (h, w), and the view of each model."""

    image: Image.Image
    views: list[View]


class Models:
    """The models of a demo; never changed, so any number of visitors may use them at once.

    Args:
        models: {title: (model in evaluation mode, image processor)}.

    Attributes:
        names, colors: of the classes of all models. Those of equal name are one class, with its colour in the first.
    """

    def __init__(self, models: Mapping[str, tuple]):
        self.titles = list(models)
        self.predictors = [Predictor(*pair) for pair in models.values()]
        self.names: list[str] = []
        self.colors: list[tuple] = []
        self.ids = []  # of each model: its own ids -> ours
        for predictor in self.predictors:
            for name, color in zip(predictor.names, predictor.colors, strict=True):
                if name not in self.names:
                    self.names.append(name)
                    self.colors.append(color if color not in self.colors else self._free_color())
            self.ids.append(np.array([self.names.index(name) for name in predictor.names], np.int16))

    def _free_color(self) -> tuple:
        return next(color for color in palette(2 * len(self.colors) + 1) if color not in self.colors)

    def see(self, file: Path | str) -> Seen:
        """Segments a picture file.

        Raises:
            ValueError: if it cannot be read, or a model cannot take it.
        """
        name = Path(file).name
        images = [read_image(str(file), name, self._channels(predictor)) for predictor in self.predictors]
        shown = as_image(images[0])
        shown.thumbnail((SHOWN_EDGE, SHOWN_EDGE))
        views = [self._view(index, image, shown.size) for index, image in enumerate(images)]
        return Seen(shown, views)

    def _channels(self, predictor: Predictor) -> int:
        return getattr(predictor.model.config, "num_channels", 3)

    def _view(self, index: int, image, size: tuple[int, int]) -> View:
        predictor = self.predictors[index]
        (result,) = segment(predictor.model, predictor.processor, [image], return_uncertainty=True)
        label_map, confidence, entropy = (
            map_.cpu().numpy() for map_ in (result.label_map, result.confidence, result.entropy)
        )

        def small(values: np.ndarray) -> np.ndarray:
            return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.NEAREST))

        return View(
            label_map=self.ids[index][small(label_map.astype(np.int32))],
            confidence=small(confidence).astype(np.float16),
            entropy=(small(entropy) / log(max(2, len(predictor.names)))).astype(np.float16),
            png=as_png(predictor.mask(label_map)),
        )

    def present(self, seen: Seen) -> dict[int, float]:
        """Classes that any of the models found, the largest first, with their mean shares of the pixels."""
        counts = sum(np.bincount(view.label_map.ravel(), minlength=len(self.names)) for view in seen.views)
        order = np.argsort(-counts, kind="stable")
        return {int(index): float(counts[index] / counts.sum()) for index in order if counts[index]}

    def draw(self, seen: Seen, kind: str, opacity: float, classes: Collection[int]) -> list[Image.Image]:
        """A picture (h, w) of each model, with what it says where its class is among `classes`.

        Args:
            kind: among `KINDS`. Of confidence and entropy dark is 0 and bright is 1.
            opacity: [0, 1].
        """
        pictures = []
        for view in seen.views:
            visible = np.isin(view.label_map, list(classes))
            if kind == "classes":
                label_map = np.where(visible, view.label_map, HIDDEN)
                pictures.append(overlay(seen.image, label_map, self.colors, opacity, ignore_index=HIDDEN))
                continue
            heat = Image.fromarray(heat_colors(getattr(view, kind)))
            pictures.append(
                Image.composite(Image.blend(seen.image, heat, opacity), seen.image, Image.fromarray(visible))
            )
        return pictures


def write_examples(folder: str | Path, count: int = EXAMPLES) -> list[str]:
    """Embedded scenes as PNG files."""
    scenes = SceneDataset(count, seed=1, size=(360, 480))
    files = [str(Path(folder) / f"scene_{index + 1}.png") for index in range(count)]
    for index, file in enumerate(files):
        scenes[index]["image"].save(file)
    return files
