"""What `segtx rank` saves: labels that are chosen by it beside labels chosen at random.

    python benchmarks/labelling.py --train_dir data/camvid/train --validation_dir data/camvid/val \\
        --output_dir outputs/labelling

The masks of the training images play the annotator. For each seed a first model is trained on a few labels drawn at
random; then, round by round, labels are added, once by the ranking of the last round's model and once at random, and a
new model is trained on all of them, always with equally many steps and from the same random weights. Prints mean IoU in
per cent as a Markdown table, and how many labels the ranking needs for what the random choice reaches with all, between
two rounds by a straight line. What is in the output folder is not run again.
"""

import argparse
import csv
import json
import shutil
from pathlib import Path

import numpy as np
from measure import machine

from hf_segtx.data import load_data
from hf_segtx.data.labels import contract_file
from hf_segtx.inference import load_model
from hf_segtx.prediction.ranking import rank
from hf_segtx.training import Arguments, train


CHOICES = ("rank", "random")


def score_of(pairs: list[tuple[str, str]], folder: Path, seed: int, arguments: argparse.Namespace) -> float:
    """Mean IoU in per cent of a model that is trained on these pairs of image and mask; the model is in the folder."""
    results = folder / "model/all_results.json"
    if not results.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(contract_file(arguments.train_dir), folder)
        with open(folder / "pairs.csv", "w", newline="") as file:
            csv.writer(file).writerows([("image", "mask"), *pairs])
        height, width = arguments.image_size
        train(
            Arguments(
                train_dir=folder / "pairs.csv",
                validation_dir=arguments.validation_dir,
                output_dir=folder / "model",
                overwrite_output_dir=True,
                architecture="segformer",
                size="b0",
                image_size=[height, width],
                crop_size=[height, width],
                scale_range=[0.75, 1.5],
                per_device_train_batch_size=4,
                max_train_steps=arguments.steps,
                evaluation_steps=arguments.steps,
                learning_rate=1.5e-3,
                num_warmup_steps=50,
                max_grad_norm=1.0,
                seed=seed,
            )
        )
    return 100 * json.loads(results.read_text())["mean_iou"]


def simulate(seed: int, pairs: list[tuple[str, str]], arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Mean IoU of each choice, for each number of labels."""
    output, first = Path(arguments.output_dir), arguments.labels[0]
    order = np.random.default_rng(seed).permutation(len(pairs)).tolist()
    scores, masks = {}, dict(pairs)
    for choice in CHOICES:
        chosen, folder = [pairs[index] for index in order[:first]], output / f"{seed}_{first}"
        scores[choice] = [score_of(chosen, folder, seed, arguments)]
        for count in arguments.labels[1:]:
            left = [pairs[index] for index in order if pairs[index] not in chosen]
            if choice == "rank" and len(left) > count - len(chosen):
                model, processor = load_model(folder / "model")
                ranked, _ = rank(model, processor, [image for image, _ in left], count=count - len(chosen))
                left = [(one.file, masks[one.file]) for one in ranked]
            chosen, folder = chosen + left[: count - len(chosen)], output / f"{seed}_{count}_{choice}"
            scores[choice].append(score_of(chosen, folder, seed, arguments))
    return scores


def labels_needed(labels: list[int], scores: list[float], target: float) -> str:
    """For a score, on straight lines between the numbers of labels that were tried."""
    for (before, low), (after, high) in zip(zip(labels, scores), zip(labels[1:], scores[1:])):
        if low < target <= high:
            return f"{before + (after - before) * (target - low) / (high - low):.0f}"
    return f"at most {labels[0]}" if target <= scores[0] else f"more than {labels[-1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_dir", required=True)
    parser.add_argument("--validation_dir", required=True)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--labels", nargs="+", type=int, default=[12, 24, 48], help="in each round, ascending")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400, help="of each training, of 4 images")
    parser.add_argument("--image_size", nargs=2, type=int, default=[120, 160], help="shortest and longest edge")
    arguments = parser.parse_args()
    print(machine())
    data, _, _ = load_data(train_dir=arguments.train_dir, validation_dir=arguments.validation_dir)
    pairs = [tuple(str(Path(file).resolve()) for file in data.files(index)) for index in range(len(data))]
    results = []
    for seed in arguments.seeds:
        results.append(simulate(seed, pairs, arguments))
        print(f"seed {seed}: {results[-1]}", flush=True)
    print("| labels | " + " | ".join(CHOICES) + " |\n| ---: | ---: | ---: |")
    means = {choice: np.mean([result[choice] for result in results], 0) for choice in CHOICES}
    for row, count in enumerate(arguments.labels):
        cells = []
        for choice in CHOICES:
            values = [result[choice][row] for result in results]
            cells.append(f"{means[choice][row]:.1f} ± {(max(values) - min(values)) / 2:.1f}")
        print(f"| {count} | {' | '.join(cells)} |")
    target = means["random"][-1]
    needed = labels_needed(arguments.labels, means["rank"].tolist(), target)
    print(f"for {target:.1f}, what {arguments.labels[-1]} labels at random reach, the ranking needs {needed}")


if __name__ == "__main__":
    main()
