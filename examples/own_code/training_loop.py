"""A training loop of your own, to read, copy and change: SegFormer-B0 from random weights on the embedded scenes.

    python examples/own_code/training_loop.py            # 600 steps; another number as the argument
    accelerate launch examples/own_code/training_loop.py

Your own data: `load_data(train_dir="data/train", validation_dir="data/val")`. What `segtx train` does beyond this:
checkpoints and exact resuming, gradient accumulation, averaged weights, logs, cards.
"""

import sys

import torch
from accelerate import Accelerator

from hf_segtx import SegFormerConfig, SegFormerForSemanticSegmentation, SegFormerImageProcessor
from hf_segtx.data import load_data
from hf_segtx.data.augmentation import TrainingTransform
from hf_segtx.data.loaders import training_dataloader
from hf_segtx.inference import evaluate
from hf_segtx.metrics import class_table
from hf_segtx.training.optim import make_schedule, parameter_groups


BATCH_SIZE, LEARNING_RATE = 8, 2e-3


def main(steps: int, output_dir: str = "outputs/own_loop") -> None:
    accelerator = Accelerator()
    train, validation, labels = load_data(max_train_samples=10 * steps, max_eval_samples=32)

    config = SegFormerConfig.from_size("b0", id2label=labels.id2label, label2id=labels.label2id, drop_path_rate=0.0)
    model = SegFormerForSemanticSegmentation(config)
    processor = SegFormerImageProcessor(do_resize=False)

    transform = TrainingTransform(processor, crop_size=(128, 128), scale_range=(0.9, 1.2))
    batches = training_dataloader(
        train,
        transform,
        BATCH_SIZE // accelerator.num_processes,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
        device=accelerator.device,
    )  # endless: each process gets its own part of every batch

    groups = parameter_groups(model, LEARNING_RATE, weight_decay=0.01, head_lr_multiplier=1.0)
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE)
    schedule = make_schedule("polynomial", optimizer, warmup_steps=min(50, steps // 10), total_steps=steps)
    model, optimizer = accelerator.prepare(model, optimizer)

    model.train()
    for step, batch in zip(range(1, steps + 1), batches):
        loss = model(**batch).loss  # pixel_values (B, 3, h, w), labels (B, h, w) with 255 where nothing counts
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == 1:
            accelerator.print(f"step {step}: loss {loss.item():.3f}")

    model = accelerator.unwrap_model(model)
    results = evaluate(model, processor, validation)  # at the images' own sizes, summed over all processes
    accelerator.print(class_table(results, list(labels.id2label.values())))
    if accelerator.is_main_process:
        model.save_pretrained(output_dir)
        processor.save_pretrained(output_dir)
    accelerator.end_training()


if __name__ == "__main__":
    main(steps=int(sys.argv[1]) if len(sys.argv) > 1 else 600)
