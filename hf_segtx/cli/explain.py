"""Shows what a segmentation model looks at and what it has learnt about its classes.

    segtx explain outputs/segmenter_camvid street.jpg
    segtx explain outputs/segformer_camvid frames/*.jpg --pixel 120 240 --layers 0 3 7
    segtx explain outputs/segformer_camvid street.jpg --occlusion
    segtx explain outputs/segformer_camvid frames/*.jpg --other outputs/resnet_camvid

Writes, for SegFormer, Segmenter and SETR:

    NAME_attention.png    a picture, one place in it, and where each head of each layer looks from there; SegFormer's
                          keys are fewer than its queries, and drawn at their size

for Segmenter and SETR:

    distances.png .csv    how far each head of each layer looks, mean over the pictures

for OCRNet:

    NAME_regions.png      a picture, soft object regions of the (at most eight) largest classes in it, and how pixels
                          relate to them

and for every model:

    NAME_classes.png      which places of the backbone's last map speak for each of the (at most seven) largest classes
    receptive_fields.png  how much each pixel changes the middle of the backbone's maps and of the logits, mean over the
                          pictures; square roots, so that more than the brightest is seen
    class_embeddings.png .csv    the classes in the plane in which they differ most: the class embeddings of Segmenter's
                                 mask transformer, elsewhere the classifier's weights
    NAME_occlusion.png    with --occlusion: where a grey patch on the picture makes the probability fall, of each of the
                          largest classes over its pixels, or at --pixel of the class there
    NAME_differences.png, differences.csv    with --other: where the label maps of two models differ, and which class
                                             becomes which; `receptive_fields.png` then has those of both

These are Figures 6, 7 and 8 of the Segmenter paper (arXiv 2105.05633), Eq. 4 and 5 of OCRNet's (arXiv 1909.11065),
Figure 3 of SegFormer's (arXiv 2105.15203), and Seg-Grad-CAM (arXiv 2002.11434).
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
    pixel: list[int] = setting([], "Row and column of the place to look from; else the middle.", "[0, 1000000]", "2")
    layers: list[int] = setting([], "Layers to draw, counted from 0; else all.", "[0, 1000]")
    occlusion: bool = setting(False, "Slide a grey patch over the pictures: some hundred predictions for each.")
    occlusion_side: int = setting(
        0, "Side of the patch in pixels as the model sees them; 0 is an eighth of the picture.", "[0, 100000]"
    )
    other: str | None = setting(None, "Folder or Hub name of another model of the same classes, to compare.")


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
        how = {
            "pixel": tuple(settings.pixel) if settings.pixel else None,
            "layers": settings.layers,
            "occlusion_side": settings.occlusion_side if settings.occlusion else None,
            "other": load(settings.other, model_settings) if settings.other else None,
        }
        explain(model, processor, names, results, **how)
    print(f"results in {settings.output_dir}")
    return 0
