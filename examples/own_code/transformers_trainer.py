"""transformers' Trainer with a model of this package, to read, copy and change: Segmenter on the embedded scenes.

    python examples/own_code/transformers_trainer.py     # 600 steps; another number as the argument

The models return `loss` and `logits` as those of transformers do, so its Trainer needs nothing else. Note what it does
not know: evaluation at the images' own sizes, which `hf_segtx.inference.evaluate` does here at the end.
"""

import sys

import torch
from transformers import Trainer, TrainingArguments

from hf_segtx import SegmenterConfig, SegmenterForSemanticSegmentation, SegmenterImageProcessor
from hf_segtx.data import load_data
from hf_segtx.inference import evaluate
from hf_segtx.metrics import class_table


class Prepared(torch.utils.data.Dataset):
    """Samples as the model takes them; your own augmentation belongs here."""

    def __init__(self, samples, processor):
        self.samples, self.processor = samples, processor

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        sample = self.samples[index]
        inputs = self.processor(images=sample["image"], segmentation_maps=sample["label"], return_tensors="pt")
        return {name: values[0] for name, values in inputs.items() if name in ("pixel_values", "labels")}


def main(steps: int, output_dir: str = "outputs/own_trainer") -> None:
    train, validation, labels = load_data(max_train_samples=8 * steps, max_eval_samples=32)
    names = {"id2label": labels.id2label, "label2id": labels.label2id}
    size = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 96, "patch_size": 8}
    model = SegmenterForSemanticSegmentation(SegmenterConfig(**size, **names))
    processor = SegmenterImageProcessor(do_resize=False)
    settings = TrainingArguments(
        output_dir=output_dir,
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        lr_scheduler_type="polynomial",
        logging_steps=max(1, steps // 10),
        remove_unused_columns=False,  # the Trainer would take `labels` for superfluous
        save_strategy="no",
        report_to="none",
    )
    Trainer(model, settings, train_dataset=Prepared(train, processor)).train()
    results = evaluate(model, processor, validation)
    print(class_table(results, list(labels.id2label.values())))
    model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)


if __name__ == "__main__":
    main(steps=int(sys.argv[1]) if len(sys.argv) > 1 else 600)
