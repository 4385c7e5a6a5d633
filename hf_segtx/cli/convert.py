"""Converts a checkpoint of the authors' code, of mmsegmentation or of transformers into a folder for `from_pretrained`.

    segtx convert segformer.b0.512x512.ade.160k.pth --output_dir converted/segformer_b0 --classes_file classes.json
    segtx convert seg_tiny_mask/ --output_dir converted/segmenter_tiny        # checkpoint.pth and variant.yml
    segtx convert outputs/run --to transformers --output_dir for_transformers       # SegFormer
    segtx convert outputs/run --to transformers_js --output_dir for_the_browser     # SegFormer, with ONNX files
    segtx convert outputs/run --to mmsegmentation --output_dir for_mmsegmentation   # all four
    segtx convert setr_pup.pth --output_dir converted/setr_pup --config_overrides '{"num_attention_heads": 12}'

Source, architecture and sizes are found from the names and shapes of the tensors, which must all be used. What they
cannot say stays at the architecture's default: class names, and how images are prepared (`preprocessor_config.json`).
"""

from dataclasses import dataclass
from typing import Literal

from ..settings import setting
from ..training.arguments import config_overrides
from .flags import FlagParser, check_output_dir
from .training_flags import named_flags


@dataclass
class ConversionSettings:
    """What to write."""

    to: Literal["hf_segtx", "transformers", "transformers_js", "mmsegmentation"] = setting(
        "hf_segtx",
        "What is written: a folder of this package, transformers' own SegFormer, the same with ONNX files for "
        "transformers.js, or mmsegmentation.pth.",
    )
    output_dir: str = setting("converted", "Folder for the model; must not hold one yet.")
    classes_file: str | None = setting(None, "classes.json, id2label.json or name of a table of classes.")
    config_overrides: str | None = setting(None, "Fields of the configuration, as JSON.")


def run(command_line: list[str]) -> int:
    """The command; returns its exit status."""
    parser = FlagParser("convert", __doc__)
    parser.add_argument("model", help="Safetensors or pickle file; for the authors' Segmenter also its folder.")
    parser.add_dataclass(ConversionSettings)
    arguments = parser.parse_args(command_line)
    settings = parser.values_of(ConversionSettings, arguments)
    check_output_dir(settings.output_dir)
    with named_flags(ConversionSettings):
        overrides = config_overrides(settings)
        from ..weights.conversion import convert

        model, notes = convert(arguments.model, settings.output_dir, settings.classes_file, settings.to, **overrides)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    labels = model.config.num_labels
    for note in notes:
        print(f"note: {note}")
    print(f"{type(model).__name__}, {millions:.2f} M parameters, {labels} classes: {settings.output_dir}")
    return 0
