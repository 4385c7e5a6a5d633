"""What the model's configuration decides and its image processor needs: one value, wherever the two meet."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import CASES
from transformers import pipeline

from hf_segtx import (
    OCRNetForSemanticSegmentation,
    OCRNetImageProcessor,
    SegFormerImageProcessor,
    SegmenterImageProcessor,
)
from hf_segtx.inference import load_model, predict, segment
from hf_segtx.large_images import segment_large


WINDOWS = {"do_resize": False, "window_size": 64, "window_stride": 48}


@pytest.fixture
def model():
    """An OCRNet whose loss aligns corners, as the authors'; weights far from zero, so that classes change often."""
    config = CASES["ocrnet"].make_config(num_labels=5, align_corners=True)
    model = OCRNetForSemanticSegmentation(config).eval()
    with torch.no_grad():
        model.decode_head.classifier.weight.normal_()
    return model


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(256, size=(64, 96, 3), dtype=np.uint8))


def label_map_of(segments, model, size):
    merged = np.full(size, -1)
    for segment_ in segments:
        merged[np.asarray(segment_["mask"]) > 0] = model.config.label2id[segment_["label"]]
    return torch.from_numpy(merged)


def test_whole_images_are_upsampled_as_in_the_loss(model, image, tmp_path):
    """By a processor that was made without looking at the model: in `predict`, from a folder, and in pipelines."""
    processor = OCRNetImageProcessor(do_resize=False)
    assert not processor.align_corners
    with torch.no_grad():
        logits = model(**processor(image, return_tensors="pt")).logits
    aligned, other = (
        F.interpolate(logits, size=(64, 96), mode="bilinear", align_corners=align).argmax(1)[0]
        for align in (True, False)
    )
    assert (aligned != other).float().mean() > 0.02  # else the test could not tell
    segments = pipeline("image-segmentation", model=model, image_processor=processor)(image)
    assert torch.equal(label_map_of(segments, model, (64, 96)), aligned)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    segments = pipeline("image-segmentation", model=str(tmp_path))(image)
    assert torch.equal(label_map_of(segments, model, (64, 96)), aligned)
    assert torch.equal(predict(model, processor, [image])[0], aligned)
    assert torch.equal(predict(*load_model(tmp_path), [image])[0], aligned)
    exact = OCRNetImageProcessor(do_resize=False)
    assert torch.equal(segment(model, exact, [image], flip=False, return_scores=True)[0].label_map, aligned)


def test_windows_are_upsampled_as_in_the_loss(model, image, tmp_path):
    told = OCRNetImageProcessor(**WINDOWS, align_corners=True)
    with torch.no_grad():
        outputs = model(**told(image, return_tensors="pt"))
    expected = told.post_process_semantic_segmentation(outputs, target_sizes=[(64, 96)])[0]
    untold = OCRNetImageProcessor(**WINDOWS)
    assert torch.equal(untold.post_process_semantic_segmentation(outputs, target_sizes=[(64, 96)])[0], expected)
    assert torch.equal(predict(model, OCRNetImageProcessor(**WINDOWS), [image])[0], expected)
    large = segment_large(model, OCRNetImageProcessor(**WINDOWS), np.asarray(image), tmp_path / "large.npy")
    assert torch.equal(torch.from_numpy(np.asarray(large)).long(), expected)


def test_a_model_without_aligned_corners_says_so_to_its_processor():
    config = CASES["ocrnet"].make_config(num_labels=5)
    assert not OCRNetImageProcessor(align_corners=True).follow(config).align_corners


def test_processor_pads_labels_with_what_the_loss_ignores(image):
    """With more than 255 classes, 255 is one of them."""
    config = CASES["ocrnet"].make_config(num_labels=300, semantic_loss_ignore_index=65535)
    processor = OCRNetImageProcessor(do_resize=False, size_divisor=51).follow(config)
    labels = processor(image, np.full((64, 96), 255, np.uint16), return_tensors="pt")["labels"]
    assert labels.shape == (1, 102, 102) and labels[0, :64, :96].unique().tolist() == [255]
    assert labels[0, 64:].unique().tolist() == labels[0, :, 96:].unique().tolist() == [65535]
    reduced = processor(image, np.arange(96)[None].repeat(64, 0), do_reduce_labels=True, return_tensors="pt")["labels"]
    assert reduced[0, 0, :96].tolist() == [65535, *range(95)]


@pytest.mark.parametrize(("patch_size", "divisor"), [(8, 16), (16, 16), (32, 32)])
def test_processor_pads_to_whole_patches(patch_size, divisor):
    config = CASES["segmenter"].make_config(patch_size=patch_size)
    assert SegmenterImageProcessor().follow(config).size_divisor == divisor
    assert SegFormerImageProcessor().size_divisor is SegFormerImageProcessor().follow(config).size_divisor


def test_what_is_saved_agrees(model, tmp_path):
    model.save_pretrained(tmp_path)
    OCRNetImageProcessor().save_pretrained(tmp_path)
    load_model(tmp_path)[1].save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again/preprocessor_config.json").read_text())["align_corners"] is True
