"""Shows what a segmentation transformer looks at and what it has learnt about its classes.

    segtx explain outputs/segmenter_camvid street.jpg
    segtx explain outputs/segmenter_camvid frames/*.jpg --patch 8 21 --layers 0 3 7 11

Writes, for models on a plain Vision Transformer (Segmenter, SETR):

    NAME_attention.png    a picture, one patch of it, and where each head of each layer looks from there
    distances.png .csv    how far each head of each layer looks, mean over the pictures

for OCRNet:

    NAME_regions.png      a picture, soft object regions of the (at most eight) largest classes in it, and how pixels
                          relate to them

and for every model:

    class_embeddings.png .csv    the classes in the plane in which they differ most: the class embeddings of Segmenter's
                                 mask transformer, elsewhere the classifier's weights

These are Figures 6, 7 and 8 of the Segmenter paper (arXiv 2105.05633), and Eq. 4 and 5 of OCRNet's (arXiv 1909.11065).
Only files that this command or `segtx predict` wrote are replaced.
"""

from dataclasses import dataclass

from ..settings import setting
from .flags import FlagParser
from .model_flags import ModelSettings, load
from .training_flags import named_flags


@dataclass
class ExplanationSettings:
    """Results."""

    output_dir: str = setting("explanations", "Folder of the results.")
    patch: list[int] = setting([], "Row and column in the grid of patches; else the middle one.", "[0, 100000]", "2")
    layers: list[int] = setting([], "Layers to draw, counted from 0; else all.", "[0, 1000]")


def run(command_line: list[str]) -> int:
    """The command; returns its exit status."""
    parser = FlagParser("explain", __doc__)
    parser.add_argument("model", help="Folder of a saved model, or Hub name.")
    parser.add_argument("images", nargs="*", help="Picture files, folders, quoted glob patterns.")
    parser.add_dataclass(ExplanationSettings)
    parser.add_dataclass(ModelSettings)
    arguments = parser.parse_args(command_line)
    settings = parser.values_of(ExplanationSettings, arguments)
    model_settings = parser.values_of(ModelSettings, arguments)
    with named_flags(ExplanationSettings, ModelSettings):
        from ..prediction import Results, explain, find_sources

        names = find_sources(arguments.images).names
        results = Results(settings.output_dir)
        model, processor = load(arguments.model, model_settings)
        patch = tuple(settings.patch) if settings.patch else None
        explain(model, processor, names, results, patch=patch, layers=settings.layers)
    print(f"results in {settings.output_dir}")
    return 0
