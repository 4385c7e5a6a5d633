"""Heads for several resolutions on a plain ViT: four blocks at one resolution, or ViTDet's pyramid of the last block.

    OMP_NUM_THREADS=1 python benchmarks/plain_vits.py --output_dir outputs/plain_vits -- \\
        --train_dir data/camvid/train --validation_dir data/camvid/val --crop_size 192 256 --scale_range 0.5 1.0 \\
        --per_device_train_batch_size 4 --max_train_steps 200 --learning_rate 5e-4 --head_lr_multiplier 2

A small ViT of DINOv3's kind learns the embedded scenes under Segmenter's linear head. From its weights SegFormer's and
OCRNet's heads train with either `feature_scaling`, frozen and whole, with the flags of `segtx train` after --. Prints a
Markdown table: mean IoU in per cent of each seed, million parameters that train, seconds of the processor for a step.
What was measured stays in results.jsonl in the folder, and is not measured again.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from measure import machine


BACKBONE = {"model_type": "dinov3_vit", "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 8}
BACKBONE |= {"num_attention_heads": 4, "num_register_tokens": 4, "patch_size": 16, "out_indices": [8]}
HEADS = {
    "segformer": {"decoder_hidden_size": 128},
    "ocrnet": {"decoder_hidden_size": 32, "decoder_key_size": 16, "auxiliary_hidden_size": 32},
}
WAYS = {"four blocks": "none", "pyramid": "pyramid"}


def train(words: list[str], folder: Path):
    """A run of `segtx train`, with one evaluation, at its end; the run and its results."""
    from hf_segtx.cli.training_flags import parse_training
    from hf_segtx.training.loop import TrainingRun

    words = [*words, "--evaluation_steps", "1000000", "--output_dir", str(folder), "--overwrite_output_dir"]
    run = TrainingRun(parse_training(words))
    return run, run.run()


def pretrained(folder: Path, steps: int) -> Path:
    """The folder of the backbone."""
    if not (folder / "vit").is_dir():
        words = ["--architecture", "segmenter", "--decode_head", "linear", "--learning_rate", "1e-3"]
        words += ["--config_overrides", json.dumps({"backbone_config": BACKBONE}), "--max_train_steps", str(steps)]
        run, results = train([*words, "--max_train_samples", str(4 * steps)], folder / "scenes")
        print(f"backbone: {100 * results['mean_iou']:.2f} % mean IoU on the embedded scenes\n", flush=True)
        run.processor.save_pretrained(folder / "vit")
        run.bare_model.backbone.encoder.backbone.save_pretrained(folder / "vit")
    return folder / "vit"


def measured(folder: Path, key: list, flags: list[str]) -> dict:
    """A row of the file: of a head, way, tune and seed."""
    head, way, tune, seed = key
    fields = json.dumps({**HEADS[head], "feature_scaling": WAYS[way]})
    words = [*flags, "--architecture", head, "--config_overrides", fields, "--tune", tune, "--seed", str(seed)]
    run, results = train(words, folder / "run")
    parameters = sum(value.numel() for value in run.bare_model.parameters() if value.requires_grad)
    steps = results["losses"][1:]
    seconds = statistics.mean(run.steps.images / entry["images_per_second"] for entry in steps)
    return {"key": key, "mean_iou": 100 * results["mean_iou"], "parameters": parameters / 1e6, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/plain_vits"))
    parser.add_argument("--pretraining_steps", type=int, default=600, help="of 8 scenes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tunes", nargs="+", default=["frozen", "full"], choices=["frozen", "full"])
    parser.add_argument("flags", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    time.perf_counter = time.process_time  # the loop's clock: of the processor, which others may use as well
    folder = arguments.output_dir.resolve()
    print(machine(), flush=True)
    flags = [*arguments.flags, "--backbone", str(pretrained(folder, arguments.pretraining_steps))]
    file = folder / "results.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    keys = [[head, way, tune] for tune in arguments.tunes for head in HEADS for way in WAYS]
    for key in ([*key, seed] for seed in range(arguments.seeds) for key in keys):
        if key not in [row["key"] for row in rows]:
            rows.append(measured(folder, key, flags))
            with file.open("a") as lines:
                lines.write(json.dumps(rows[-1]) + "\n")
    print("| head | backbone | maps | mean IoU % | mean | M parameters train | s a step |")
    print("|---|---|---|---|---:|---:|---:|")
    for head, way, tune in keys:
        found = [row for row in rows if row["key"][:3] == [head, way, tune]]
        scores, seconds = [row["mean_iou"] for row in found], [row["seconds"] for row in found]
        columns = [head, tune, way, ", ".join(f"{score:.2f}" for score in scores), f"{statistics.mean(scores):.2f}"]
        columns += [f"{found[0]['parameters']:.2f}", f"{statistics.median(seconds):.3f}"]
        print(f"| {' | '.join(columns)} |")


if __name__ == "__main__":
    main()
