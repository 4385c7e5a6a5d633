"""Models written for transformers and for mmsegmentation: read back, they compute the same."""

import json

import pytest
import torch
from tiny import CASES
from transformers import AutoConfig, AutoModelForSemanticSegmentation

from hf_segtx.weights import load_original
from hf_segtx.weights.conversion import convert
from hf_segtx.weights.to_mmsegmentation import mmsegmentation_state, save_for_mmsegmentation
from hf_segtx.weights.to_transformers import save_for_transformers


def trained(name, **fields):
    """A tiny model whose norms and biases are not those of a new one."""
    model = CASES[name].make_model(**fields)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
    return model


def logits_of(model, **inputs):
    with torch.no_grad():
        return model(torch.linspace(-2, 2, 3 * 64 * 96).sin().view(1, 3, 64, 96), **inputs).logits


def test_transformers_reads_our_segformer(tmp_path):
    model = trained("segformer")
    processor = CASES["segformer"].row.processor(size={"height": 64, "width": 96})
    assert save_for_transformers(model, processor, tmp_path) == []
    assert AutoConfig.from_pretrained(tmp_path).model_type == "segformer"
    theirs, report = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert type(theirs).__module__.startswith("transformers.models.segformer")
    assert not report["missing_keys"] and not report["unexpected_keys"]
    expected = logits_of(model)
    torch.testing.assert_close(logits_of(theirs.eval()), expected, rtol=0, atol=1e-5 * float(expected.std()))
    theirs.save_pretrained(tmp_path / "again")
    from safetensors.torch import load_file

    again, ours = load_file(tmp_path / "again" / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert again.keys() == ours.keys() and all(torch.equal(again[name], ours[name]) for name in ours)


def test_what_a_processor_loses_is_said(tmp_path):
    processor = CASES["segformer"].row.processor(window_size=64)
    lost = save_for_transformers(trained("segformer"), processor, tmp_path)
    assert len(lost) == 2 and "squashed to 512" in lost[0] and "windows" in lost[1]
    processor = CASES["segformer"].row.processor(do_resize=False)
    assert "padded to multiples of 32" in save_for_transformers(trained("segformer"), processor, tmp_path)[0]


@pytest.mark.slow
def test_transformers_js_finds_what_it_needs(tmp_path):
    """Oracle: the model itself. The names are those that transformers.js asks for."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model, processor = trained("segformer"), CASES["segformer"].row.processor(size={"height": 64, "width": 96})
    model.save_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "ours")
    _, notes = convert(tmp_path / "ours", tmp_path / "js", to="transformers_js")
    files = ["onnx/model.onnx", "onnx/model_fp16.onnx", "onnx/model_quantized.onnx"]
    assert [note.split(":")[0] for note in notes] == files
    assert json.loads((tmp_path / "js" / "config.json").read_text())["model_type"] == "segformer"
    preprocessing = json.loads((tmp_path / "js" / "preprocessor_config.json").read_text())
    assert preprocessing["image_processor_type"].startswith("SegformerImageProcessor")
    expected = logits_of(model)
    pixel_values = torch.linspace(-2, 2, 3 * 64 * 96).sin().view(1, 3, 64, 96).numpy()
    for file, bound in zip(files, (1e-5, 0.02, 0.2)):  # rounding of 24, 11 and 8 bits through a few layers
        session = onnxruntime.InferenceSession(tmp_path / "js" / file)
        assert [value.name for value in session.get_outputs()] == ["logits"]
        (logits,) = session.run(None, {"pixel_values": pixel_values})
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=0, atol=bound * float(expected.std()))


@pytest.mark.parametrize(
    "fields",
    [
        {"position_encoding": "learned"},
        {"decoder_projection_norm": True},
        {"decoder_stages": [1, 2, 3]},
        {"decoder_fusion": False, "decoder_stages": [3]},
        {"layer_norm_eps": 1e-6},
        {"embedding_layer_norm_eps": 1e-6},
    ],
    ids=str,
)
def test_what_transformers_cannot_express_is_refused(fields, tmp_path):
    model = CASES["segformer"].make_model(**fields)
    with pytest.raises(ValueError, match=f"{next(iter(fields))} is .* cannot express"):
        save_for_transformers(model, CASES["segformer"].row.processor(), tmp_path)
    assert not any(tmp_path.iterdir())


def test_others_are_not_in_transformers(tmp_path):
    with pytest.raises(ValueError, match="transformers has no SETR"):
        save_for_transformers(CASES["setr"].make_model(), CASES["setr"].row.processor(), tmp_path)


@pytest.mark.parametrize(
    "name, fields",
    [
        ("segformer", {"decoder_projection_norm": True, "layer_norm_eps": 1e-6, "embedding_layer_norm_eps": 1e-6}),
        ("setr", {"decode_head": "naive"}),
        ("setr", {"decode_head": "pup"}),
        ("setr", {"decode_head": "mla", "mla_align_corners": False, "mla_classifier_kernel_size": 1}),
        ("segmenter", {"decode_head": "mask"}),
        ("segmenter", {"decode_head": "linear"}),
        ("ocrnet", {}),
        ("ocrnet", {"backbone_type": "resnet", "hidden_sizes": [8, 8, 16, 16], "stem_hidden_sizes": [8]}),
        ("ocrnet", {"backbone_type": "resnet", "hidden_sizes": [8, 8, 16, 16], "stem_hidden_sizes": [8, 8, 16]}),
    ],
    ids=str,
)
def test_mmsegmentation_names_are_read_back(name, fields, tmp_path):
    """Oracle: `load_original`, which reads files of mmsegmentation itself."""
    model = trained(name, **fields)
    settings = save_for_mmsegmentation(model, tmp_path / "m.pth")
    assert settings
    what_weights_do_not_say = "num_attention_heads feature_indices image_size decoder_upsampling align_corners".split()
    what_weights_do_not_say += "decoder_num_attention_heads layer_norm_eps position_resize_mode output_stride".split()
    overrides = {key: getattr(model.config, key) for key in what_weights_do_not_say if hasattr(model.config, key)}
    again = load_original(tmp_path / "m.pth", **overrides)
    expected = logits_of(model)
    torch.testing.assert_close(logits_of(again), expected, rtol=0, atol=1e-5 * float(expected.std()))
    assert list(again.config.id2label.values()) == list(model.config.id2label.values())


def test_what_mmsegmentation_cannot_express_is_refused():
    for name, fields in {
        "segformer": {"decoder_projection_norm": False},
        "setr": {"decode_head": "mla", "mla_classifier_kernel_size": 3},
        "segmenter": {"use_distillation_token": True},
    }.items():
        with pytest.raises(ValueError, match="is .* cannot express"):
            mmsegmentation_state(CASES[name].make_model(**fields))
