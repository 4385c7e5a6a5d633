"""Which pictures to label next: those that a model is least sure of, and that are unlike each other.

    ranked = rank(model, processor, files, count=50)
    contact_sheet(ranked, predictor).save("next.png")

Three numbers of each picture, from one pass with scales and flips and one without:

- entropy of the averaged probabilities, mean over the pixels;
- disagreement: the share of pixels whose class is another one without scales and flips;
- features: the last map of the backbone, mean over the places, of length 1.

The first is the picture with the largest uncertainty, the mean of its ranks by entropy and by disagreement. Each next
one has the largest product of uncertainty and of its distance to the nearest that was chosen (a weighted k-center,
after Sener and Savarese, ICLR 2018), so that of near duplicates one is chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from tqdm.auto import tqdm

from ..data import read_image
from ..inference import predict, segment
from ..visualization.label_maps import GAP, INK, PAPER, TEXT_SIZE, as_image, text_font


SCALES = (0.75, 1.0, 1.25)
COLUMNS, PANEL_WIDTH = 5, 200  # of the contact sheet; pixels


@dataclass
class Candidate:
    """A picture and what the model says of it.

    Args:
        file: path.
        entropy: in nats. disagreement: [0, 1].
        features: (C,) float32, of length 1.
        uncertainty: [0, 1], by rank among all.
    """

    file: Path
    entropy: float
    disagreement: float
    features: np.ndarray
    uncertainty: float = 0.0


def rank(
    model, processor, files: Sequence[Path], *, count: int | None = None, diversity: float = 1.0
) -> tuple[list[Candidate], dict[Path, str]]:
    """The pictures in the order in which to label them, and what was wrong with those that cannot be read.

    Args:
        model: on its device, in evaluation mode.
        processor: its image processor.
        count: how many are wanted; by default all.
        diversity: exponent of the distance; 0 sorts by uncertainty alone.

    Raises:
        ValueError: if no picture can be read.
    """
    candidates, failures = [], {}
    for file in tqdm(files, unit="image", disable=len(files) <= 1):
        try:
            candidates.append(look_at(model, processor, file))
        except ValueError as error:
            failures[file] = str(error)
    if not candidates:
        raise ValueError(f"none of {len(files)} pictures can be read; the first: {next(iter(failures.values()), '')}")
    ranks = [shares_below([getattr(one, name) for one in candidates]) for name in ("entropy", "disagreement")]
    for candidate, uncertainty in zip(candidates, np.mean(ranks, 0)):
        candidate.uncertainty = float(uncertainty)
    order = spread([one.uncertainty for one in candidates], [one.features for one in candidates], count, diversity)
    return [candidates[index] for index in order], failures


@torch.no_grad()
def look_at(model, processor, file: Path) -> Candidate:
    """What the model says of a picture.

    Raises:
        ValueError: if it cannot be read.
    """
    image = read_image(str(file), str(file), model.config.num_channels)
    pooled: list[torch.Tensor] = []
    hook = model.backbone.register_forward_hook(
        lambda module, inputs, output: pooled.append(output.feature_maps[-1].float().mean((0, 2, 3)))
    )
    try:
        (plain,) = predict(model, processor, [image])
    finally:
        hook.remove()
    (averaged,) = segment(model, processor, [image], scales=SCALES, flip=True, return_uncertainty=True)
    features = torch.nn.functional.normalize(torch.stack(pooled).mean(0), dim=0)  # of windows, their mean
    disagreement = (plain != averaged.label_map).float().mean().item()
    return Candidate(file, averaged.entropy.mean().item(), disagreement, features.cpu().numpy())


def shares_below(values: Sequence[float]) -> np.ndarray:
    """Of each value the share of all that are smaller, itself and its equals counted half: above 0, below 1."""
    values = np.asarray(values, np.float64)
    return ((values < values[:, None]).sum(1) + 0.5 * (values == values[:, None]).sum(1)) / len(values)


def spread(
    uncertainties: Sequence[float], features: Sequence[np.ndarray], count: int | None, diversity: float
) -> list[int]:
    """Indices in the order of choice, see above.

    Shape:
        features: (N, C)
    """
    left, features = np.asarray(uncertainties, np.float64), np.asarray(features, np.float64)
    nearest = np.full(len(left), np.inf)
    order: list[int] = []
    for _ in range(min(len(left), count or len(left))):
        distances = np.where(np.isinf(nearest), 1, nearest) ** diversity
        scores = np.where(np.isin(np.arange(len(left)), order), -1, left * distances)
        order.append(int(scores.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(features - features[order[-1]], axis=1))
    return order


def contact_sheet(ranked: Sequence[Candidate], predictor) -> Image.Image:
    """The pictures under their predicted classes, in order, with number and name.

    Args:
        predictor: see `hf_segtx.prediction.Predictor`.
    """
    panels = []
    for one in ranked:
        image = read_image(str(one.file), str(one.file), predictor.model.config.num_channels)
        (label_map,) = predictor.predict([image])
        shown = predictor.draw(as_image(image), label_map, present=[])
        shown = shown.crop((0, 0, *as_image(image).size))
        panels.append(shown.resize((PANEL_WIDTH, max(1, round(shown.height * PANEL_WIDTH / shown.width)))))
    height = max(panel.height for panel in panels) + round(1.8 * TEXT_SIZE) + GAP
    rows = -(-len(panels) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (PANEL_WIDTH + GAP) + GAP, rows * height + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), text_font(TEXT_SIZE)
    for number, (one, panel) in enumerate(zip(ranked, panels, strict=True)):
        x, y = GAP + number % COLUMNS * (PANEL_WIDTH + GAP), GAP + number // COLUMNS * height
        text = f"{number + 1}  {one.file.name}"
        while text and draw.textlength(text, font=font) > PANEL_WIDTH:
            text = text[:-1]
        draw.text((x, y), text, fill=INK, font=font)
        sheet.paste(panel, (x, y + round(1.8 * TEXT_SIZE)))
    return sheet
