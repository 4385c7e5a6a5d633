"""Converts a checkpoint of the authors' code, of mmsegmentation or of transformers into a folder for `from_pretrained`.

    python examples/convert.py segformer.b0.512x512.ade.160k.pth converted/segformer_b0 --classes classes.json
    python examples/convert.py seg_tiny_mask/ converted/segmenter_tiny        # checkpoint.pth and variant.yml
    python examples/convert.py setr_pup.pth converted/setr_pup --config_overrides '{"num_attention_heads": 12}'

Source, architecture and sizes are found from the names and shapes of the tensors, which must all be used. What they
cannot say stays at the architecture's default: class names, and how images are prepared (`preprocessor_config.json`).
"""

import argparse
import json
from pathlib import Path

from ..architectures import architecture_of
from ..data.labels import Labels
from ..weights import load_original


def parse_arguments(command_line: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="convert.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="safetensors or pickle file; for the authors' Segmenter also its folder")
    parser.add_argument("output_dir", help="folder to write; must not hold a model yet")
    parser.add_argument("--classes", help="classes.json or id2label.json with the class names")
    parser.add_argument("--config_overrides", default="{}", help="fields of the configuration, as JSON")
    return parser.parse_args(command_line)


def convert(arguments: argparse.Namespace) -> None:
    """Loads, checks and saves.

    Raises:
        ValueError: if the checkpoint, the overrides or the class names do not fit, or the folder holds a model.
    """
    output_dir = Path(arguments.output_dir)
    if (output_dir / "config.json").exists():
        raise ValueError(f"{output_dir} holds a model already; choose another folder")
    model = load_original(arguments.checkpoint, **json.loads(arguments.config_overrides))
    if arguments.classes:
        labels = Labels.from_file(arguments.classes)
        if labels.num_labels != model.config.num_labels:
            raise ValueError(
                f"{arguments.classes} names {labels.num_labels} classes, the checkpoint has {model.config.num_labels}"
            )
        model.config.id2label, model.config.label2id = labels.id2label, labels.label2id
    processor_class = architecture_of(model).processor
    model.save_pretrained(output_dir)
    processor_class().save_pretrained(output_dir)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{type(model).__name__}, {millions:.2f} M parameters, {model.config.num_labels} classes: {output_dir}")


def run(command_line: list[str]) -> int:
    """The command; returns its exit status."""
    convert(parse_arguments(command_line))
    return 0
