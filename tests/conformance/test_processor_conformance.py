"""transformers' common image-processor tests over every `Case` of tests/tiny.py, and a few that they lack."""

import subprocess
import sys
import tempfile
import unittest

import hf_tests
from tiny import CASES
from transformers import set_seed


hf = hf_tests.load()


def make_processor_test(case):
    class Tester(hf.image_processing.ImageProcessingTester):
        def __init__(self, parent, **kwargs):
            kwargs.setdefault("size", {"height": 32, "width": 16})  # multiples of every `size_divisor`: no padding
            kwargs.setdefault("num_labels", case.num_labels)
            super().__init__(parent, **kwargs)

        def _get_image_processing_classes(self):
            return {"torchvision": case.row.processor, "pil": case.row.processor_pil}

    mixins = hf.image_processing.ImageProcessingTestMixin, hf.image_processing.PostProcessSemanticSegmentationTestMixin

    class Base(*mixins):
        image_processor_tester_class = Tester
        test_cast_dtype = True

        def setUp(self):
            set_seed(0)
            super().setUp()

        def test_pil_can_run_without_torchvision(self):
            """As the (slow) mixin test, whose sub-process does not import the package and so cannot know the class."""
            processor = self.image_processing_classes["pil"](**self.image_processor_dict)
            with tempfile.TemporaryDirectory() as folder:
                processor.save_pretrained(folder)
                code = (
                    f"import sys; sys.path[:0] = {sys.path!r}; sys.modules['torchvision'] = None\n"
                    "import numpy as np, hf_segtx\nfrom transformers import AutoImageProcessor\n"
                    f"p = AutoImageProcessor.from_pretrained({folder!r}, backend='pil')\n"
                    f"assert type(p).__name__ == {type(processor).__name__!r}, type(p)\n"
                    f"p(np.zeros((40, 50, 3), np.uint8), return_tensors='np')\n"
                )
                done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr[-800:])

    return type(f"{case.name}ImageProcessingTest", (Base, unittest.TestCase), {"__module__": __name__})


for _case in CASES.values():
    globals()[f"{_case.name}ImageProcessingTest"] = make_processor_test(_case)
