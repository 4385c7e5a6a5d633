"""transformers' common backbone tests over the encoders."""

import unittest

import hf_tests
from tiny import CASES

from hf_segtx.architectures import BACKBONES


hf = hf_tests.load()
# The tiny configuration whose encoder each is, by model_type.
TINY = {
    "segtx_mit": ("segformer", {}),
    "segtx_vit": ("setr", {}),
    "segtx_hrnet": ("ocrnet", {}),
    "segtx_dilated": ("ocrnet", {"backbone_type": "resnet", "stem_hidden_sizes": [8]}),
}


class ModelTester:
    """The `model_tester` that the mixin talks to."""

    def __init__(self, config_class):
        self.config_class = config_class

    def prepare_config_and_inputs_for_common(self):
        name, fields = TINY[self.config_class.model_type]
        config = self.config_class.of_encoder(CASES[name].make_config(**fields), out_indices=[1, 2, 3, 4])
        config._attn_implementation = "eager"  # which alone returns attentions
        return config, {"pixel_values": hf.modeling.floats_tensor((2, 3, 64, 64))}


def make_test(config_class, backbone):
    def set_up(self):
        self.model_tester = ModelTester(config_class)

    body = {
        "__module__": __name__,
        "all_model_classes": (backbone,),
        "config_class": config_class,
        "has_attentions": backbone.has_attentions,
        "setUp": set_up,
    }
    return type(f"{backbone.__name__}Test", (hf.backbone.BackboneTesterMixin, unittest.TestCase), body)


for _config_class, _backbone in BACKBONES.items():
    globals()[f"{_backbone.__name__}Test"] = make_test(_config_class, _backbone)
