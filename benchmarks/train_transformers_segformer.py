"""Trains transformers' SegFormer in the loop of `segtx train`, for the comparison of both under the same budget.

    python benchmarks/train_transformers_segformer.py --recipe segformer_b0_camvid \
        --train_dir CAMVID/train --validation_dir CAMVID/val --max_train_steps 1000 --output_dir outputs/peer

Data, augmentation, optimizer, schedule, image processor and evaluation are those of the recipe; only the model, with
its own initialisation, is transformers'.
"""

import json
import sys
import tempfile
from dataclasses import replace

from measure import machine
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from hf_segtx.cli.training_flags import parse_training
from hf_segtx.models.configuration_segformer import SIZES
from hf_segtx.training import setup, train
from hf_segtx.weights.to_transformers import LAYER_NORM_EPS, save_for_transformers


def build_model(arguments, labels):
    """transformers' SegFormer under the image processor of ours, of the recipe's size or with the weights it names."""
    if arguments.model_name_or_path:
        there = json.dumps({"layer_norm_eps": LAYER_NORM_EPS, "embedding_layer_norm_eps": LAYER_NORM_EPS})
        ours, processor = setup.build_model(replace(arguments, config_overrides=there), labels)
        with tempfile.TemporaryDirectory() as folder:
            save_for_transformers(ours, processor, folder)
            model = SegformerForSemanticSegmentation.from_pretrained(folder)
        model.config.palette = ours.config.palette
        return model, processor
    ours, processor = setup.build_model(arguments, labels)
    names = {"id2label": ours.config.id2label, "label2id": ours.config.label2id}
    config = SegformerConfig(**SIZES[arguments.size], num_channels=ours.config.num_channels, **names)
    model = SegformerForSemanticSegmentation(config)
    model.config.palette = ours.config.palette
    return model, processor


if __name__ == "__main__":
    print(machine())
    train(parse_training(sys.argv[1:]), build_model)
