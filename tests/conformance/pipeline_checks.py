"""What PipelineTesterMixin looks up for "image-segmentation"; the source distribution lacks transformers' own."""

import numpy as np
import pytest
from offline_images import url_to_local_path
from PIL import Image
from transformers import pipeline


class ImageSegmentationPipelineTests:
    """A pipeline of each tiny model on synthetic pictures."""

    def get_test_pipeline(
        self, model, tokenizer=None, image_processor=None, feature_extractor=None, processor=None, dtype="float32"
    ):
        """The pipeline and its inputs, as the mixin asks for them."""
        segmenter = pipeline("image-segmentation", model=model, image_processor=image_processor, dtype=dtype)
        path = url_to_local_path("synthetic://picture.jpg")
        return segmenter, [path, Image.open(path).convert("RGB")]

    def check(self, segmenter, result, size):
        """The masks of one image of `size` (width, height) partition it."""
        assert isinstance(result, list) and result
        labels = set(segmenter.model.config.id2label.values())
        total = np.zeros((size[1], size[0]), np.int64)
        for item in result:
            assert set(item) == {"score", "label", "mask"}
            assert item["label"] in labels and item["score"] is None
            assert item["mask"].size == size and item["mask"].mode == "L"
            mask = np.asarray(item["mask"])
            assert set(np.unique(mask)) <= {0, 255}
            total += mask == 255
        assert (total == 1).all()

    def run_pipeline_test(self, segmenter, examples):
        """Path, picture, grey picture, a batch of several sizes; other subtasks are refused."""
        size = Image.open(examples[0]).size
        self.check(segmenter, segmenter(examples[0]), size)
        self.check(segmenter, segmenter(examples[1], subtask="semantic"), size)
        self.check(segmenter, segmenter(Image.open(examples[0]).convert("L")), size)
        odd = examples[1].resize((97, 61))
        batch = segmenter([examples[1], odd, examples[0]], batch_size=2)
        for result, wanted in zip(batch, (size, (97, 61), size), strict=True):
            self.check(segmenter, result, wanted)
        for subtask in ("panoptic", "instance"):
            with pytest.raises(ValueError):
                segmenter(examples[1], subtask=subtask)
