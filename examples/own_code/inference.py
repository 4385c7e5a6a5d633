"""Label maps in your own program, to read, copy and change.

    python examples/own_code/inference.py outputs/segformer_scenes photo.jpg another.png

Three ways, from the shortest to the one with the most control; the label maps are the same.
"""

import sys

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

import hf_segtx  # noqa: F401  registers the architectures with the Auto classes
from hf_segtx.inference import load_model, segment
from hf_segtx.visualization import overlay, palette


def with_pipeline(name: str, image: Image.Image) -> np.ndarray:
    """transformers' pipeline: a mask of each class that occurs, put together to one label map."""
    segmenter = pipeline("image-segmentation", model=name)
    label_map = np.zeros((image.height, image.width), np.int64)
    for found in segmenter(image):
        label_map[np.asarray(found["mask"]) > 0] = segmenter.model.config.label2id[found["label"]]
    return label_map


def with_auto_classes(name: str, image: Image.Image) -> np.ndarray:
    """Image processor, model and post-processing one by one."""
    processor = AutoImageProcessor.from_pretrained(name)
    model = AutoModelForSemanticSegmentation.from_pretrained(name).eval()
    inputs = processor(images=image, return_tensors="pt")
    with torch.inference_mode():
        outputs = model(inputs["pixel_values"])  # logits at the resolution of the head, (1, K, h, w)
    (label_map,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(image.height, image.width)])
    return label_map.numpy()


def main(name: str, files: list[str]) -> None:
    model, processor = load_model(name)
    images = [Image.open(file).convert("RGB") for file in files]
    for file, image, result in zip(files, images, segment(model, processor, images, return_uncertainty=True)):
        assert np.array_equal(result.label_map, with_pipeline(name, image))
        if processor.window_size is None:  # else the processor cuts windows, which the model gets one by one
            assert np.array_equal(result.label_map, with_auto_classes(name, image))
        print(f"{file}:")
        for found in sorted(result.segments, key=lambda found: -found["area"]):
            share = found["area"] / result.label_map.numel()
            print(f"  {share:6.1%} {found['label']}, mean probability {found['score']:.2f}")
        colors = getattr(model.config, "palette", None) or palette(len(model.config.id2label))
        overlay(image, result.label_map, colors).save(f"{file}.overlay.png")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
