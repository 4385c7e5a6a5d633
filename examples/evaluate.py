"""Scores a checkpoint on a data set: class table on the screen, JSON with the protocol in a file.

    python examples/evaluate.py outputs/segformer_scenes                          # on the embedded scenes
    python examples/evaluate.py outputs/camvid/best --validation_dir data/camvid/val --json camvid.json
    torchrun --nproc_per_node 4 examples/evaluate.py nvidia/segformer-b0-finetuned-ade-512-512 \\
        --dataset_name scene_parse_150 --do_reduce_labels

Through image processor, model and post-processing at the images' own sizes, so this is the mIoU of what users of
`pipeline("image-segmentation")` get. The same with any number of processes and any batch size.
"""

import argparse
import json
import sys
from pathlib import Path


# This folder last: its evaluate.py would hide the library of that name.
sys.path.sort(key=lambda folder: Path(folder).resolve() == Path(__file__).resolve().parent)

import torch
from accelerate import PartialState

from hf_segtx.data import load_data
from hf_segtx.inference import as_json, evaluate, load_model, protocol
from hf_segtx.metrics import class_table


def parse_arguments(command_line: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="evaluate.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder of a saved model (an output folder, its best or last), or Hub name")
    parser.add_argument("--validation_dir", help="folder with images/, masks/ and classes.json (here or one folder up)")
    parser.add_argument("--dataset_name", help="data set on the Hub, or a folder that `datasets` can load")
    parser.add_argument("--dataset_config_name", help="configuration of that data set")
    parser.add_argument("--validation_split", help="split of that data set; default: validation, val or valid")
    parser.add_argument("--image_column_name", help="column of the images, if it cannot be guessed")
    parser.add_argument("--label_column_name", help="column of the masks, if it cannot be guessed")
    parser.add_argument("--classes_file", help="classes.json or id2label.json, if not beside the data")
    parser.add_argument("--do_reduce_labels", action="store_true", help="mask value 0 is void, k is class k - 1")
    parser.add_argument("--max_eval_samples", type=int, help="score only so many images, evenly spread")
    parser.add_argument("--cache_dir", help="where downloads are kept")
    parser.add_argument("--token", help="Hub token for downloads")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code that comes with a model")
    parser.add_argument("--batch_size", type=int, default=1, help="images that a process reads at a time")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that read images")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32", help="of the model (autocast)")
    parser.add_argument("--json", help="file for the scores")
    return parser.parse_args(command_line)


def main(arguments: argparse.Namespace) -> dict:
    """Evaluates; returns what goes into the JSON file.

    Raises:
        ValueError, OSError: for what is wrong with checkpoint or data, e.g. class names that differ.
    """
    process = PartialState(cpu=not torch.accelerator.is_available())
    names = (
        "dataset_name dataset_config_name validation_dir validation_split image_column_name label_column_name "
        "classes_file do_reduce_labels max_eval_samples cache_dir token"
    )
    model, processor = load_model(
        arguments.model,
        cache_dir=arguments.cache_dir,
        token=arguments.token,
        trust_remote_code=arguments.trust_remote_code,
    )
    settings = {name: getattr(arguments, name) for name in names.split()}
    _, dataset, labels = load_data(**settings, train_split=None, check=process.is_main_process)
    labels.check_names(model.config.id2label, str(arguments.model))
    model.to(process.device)
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[arguments.precision]
    with torch.autocast(process.device.type, dtype=dtype, enabled=dtype is not None):
        scores = evaluate(model, processor, dataset, batch_size=arguments.batch_size, num_workers=arguments.num_workers)
    classes = list(labels.names) if labels.num_labels > 1 else ["background", *labels.names]
    results = {
        "model": str(arguments.model),
        "data": arguments.dataset_name or arguments.validation_dir or "the scenes that hf_segtx draws",
        "protocol": protocol(processor, labels.ignore_index),
        "precision": arguments.precision,
        **as_json(scores, classes),
    }
    if process.is_main_process:
        print(class_table(scores, classes))
        print(f"{results['images']} images, {results['images_per_second']:.1f} images/s; {results['protocol']}")
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(results, indent=2) + "\n")
    process.destroy_process_group()
    return results


if __name__ == "__main__":
    try:
        main(parse_arguments(sys.argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
