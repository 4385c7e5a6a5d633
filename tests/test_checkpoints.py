"""Checkpoint folders that are broken: the message says which file, and what to do."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSemanticSegmentation, BertConfig

from hf_segtx import SegFormerConfig, SegFormerForSemanticSegmentation, SegFormerImageProcessor
from hf_segtx.inference import load_model


SIZES = {"hidden_sizes": [8] * 4, "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 16}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    SegFormerForSemanticSegmentation(SegFormerConfig(**SIZES, num_labels=3)).save_pretrained(folder)
    SegFormerImageProcessor().save_pretrained(folder)
    return folder


def change_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def cut_off(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def put_pointer(folder):
    """What a clone without git-lfs leaves."""
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 1\n")


def put_foreign(folder):
    save_file({"conv1.weight": torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})


def put_other_shape(folder):
    state = load_file(folder / "model.safetensors")
    state["decode_head.classifier.weight"] = torch.zeros(7, 16, 1, 1)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


class Code:
    """Unpickled, it runs a function: that of a thief, say."""

    def __reduce__(self):
        return pytest.fail, ("code of the checkpoint ran",)


def pickle_weights(folder, **more):
    torch.save({**load_file(folder / "model.safetensors"), **more}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def unlink(name):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "file", "cure"),
    [
        (cut_off, "/model.safetensors is cut off", "download it again"),
        (put_pointer, "/model.safetensors is cut off or no safetensors file", "download it again"),
        (put_foreign, " lacks 124 weights, such as backbone", "it has conv1.weight: hf_segtx.weights.load_original"),
        (put_other_shape, r"classifier.weight is \(7, 16, 1, 1\), but config.json", "take both from the same"),
        (unlink("model.safetensors"), "no file named model.safetensors", "directory"),
        (unlink("config.json"), " is not the folder of a model", "config.json"),
        (unlink("preprocessor_config.json"), " has no preprocessor_config.json", r"SegFormerImageProcessor\(.*save"),
        (lambda folder: (folder / "config.json").write_text('{"model'), "/config.json' is not a valid JSON", ""),
        (lambda folder: change_config(folder, model_type="new"), "/config.json: model_type 'new'", "trust_remote_code"),
        (lambda folder: change_config(folder, depths="many"), "/config.json: .*'depths'", "expected a list"),
        (lambda folder: BertConfig().save_pretrained(folder), "BertConfig", "Model type should be one of"),
        (lambda folder: pickle_weights(folder, code=Code()), "the pickled weights of .* are refused", "safetensors"),
    ],
)
def test_error_names_file_and_cure(whole, tmp_path, damage, file, cure):
    folder = shutil.copytree(whole, tmp_path / "broken")
    damage(folder)
    with pytest.raises((ValueError, OSError), match=f"(?s){file}.*{cure}"):
        load_model(folder)


def test_pickled_tensors_load(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "pickled")
    pickle_weights(folder)
    weights = load_file(whole / "model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in load_model(folder)[0].state_dict().items())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_off, "/model.safetensors is cut off"),
        (lambda folder: pickle_weights(folder, code=Code()), "are refused"),
    ],
)
def test_auto_class_says_the_same(whole, tmp_path, damage, message):
    folder = shutil.copytree(whole, tmp_path / "broken")
    damage(folder)
    with pytest.raises(ValueError, match=message):
        AutoModelForSemanticSegmentation.from_pretrained(folder)
