"""Checkpoint folders that are broken: the message says which file, and what to do."""

import errno
import json
import os
import shutil
from contextlib import nullcontext

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from tiny import CASES
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, BertConfig

from hf_segtx import SegFormerImageProcessor
from hf_segtx.inference import load_model
from hf_segtx.training import checkpoints
from hf_segtx.training.checkpoints import save_checkpoint, save_final


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    CASES["segformer"].make_model().save_pretrained(folder)
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


def put_nan(folder):
    state = load_file(folder / "model.safetensors")
    state["decode_head.classifier.bias"][1] = float("nan")
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


CONFIGURATIONS = [  # fields, and what the message says of them
    ({"depths": "many"}, "'depths'.* expected a list"),
    ({"depths": [1, 1]}, "depths has 2 entries, hidden_sizes 4; give one a stage"),
    ({"hidden_sizes": [-8, 16, 24, 32]}, "hidden_sizes: -8 is out of range; give 1 to"),
    ({"hidden_sizes": []}, "depths has 4 entries, hidden_sizes 0"),
    ({"decoder_hidden_size": 0}, "decoder_hidden_size: 0 is out of range; give 1 to"),
    ({"decoder_hidden_size": 2**40}, "decoder_hidden_size: 1099511627776 is out of range"),
    ({"num_attention_heads": [3, 2, 3, 4]}, "num_attention_heads 3 does not divide hidden size 8; choose a divisor"),
    ({"num_channels": None}, "'num_channels' expected int, got NoneType"),
    ({"hidden_act": "zelu"}, "hidden_act: Value must be one of .*'gelu'.* got zelu"),
    ({"classifier_dropout_prob": float("nan")}, "classifier_dropout_prob: nan is out of range; give 0 to below 1"),
    ({"id2label": ["a", "b", "c", "d"]}, 'id2label is a list; give an object of ids and names: {"0": "road"}'),
    (
        {"id2label": {"1": "a", "2": "b"}},
        r"the ids \[1, 2\]; give every id from 0 on a name, 0 has none",
    ),
    ({"id2label": {"0": "a", "2": "b"}}, "give every id from 0 on a name, 1 has none"),
    ({"id2label": {"a": "0"}}, r"id2label has the keys \['a'\]; give ids from 0 on"),
    ({"id2label": {}}, "give every id from 0 on a name, 0 has none"),
    ({"id2label": {"0": None}}, "id2label has the name None; give names as texts"),
    ({"num_labels": 0, "id2label": None}, "num_labels: 0 is out of range; give a whole number from 1"),
    ({"dtype": "float33"}, "no attribute 'float33'"),
]


@pytest.mark.parametrize(
    ("damage", "file", "cure"),
    [
        *(
            (lambda folder, fields=fields: change_config(folder, **fields), "/config.json: ", cure)
            for fields, cure in CONFIGURATIONS
        ),
        *(
            (lambda folder, text=text: (folder / "config.json").write_text(text), f"/config.json {words}", "")
            for text, words in (("[]", "holds a list"), ("3", "holds a int"), ('"a"', "holds a str"))
        ),
        (cut_off, "/model.safetensors is cut off", "download it again"),
        (put_pointer, "/model.safetensors is cut off or no safetensors file", "download it again"),
        (put_foreign, r" lacks \d+ weights, such as backbone", "it has conv1.weight: hf_segtx.weights.load_original"),
        (put_nan, "the tensor decode_head.classifier.bias has values that are not finite", "damaged"),
        (put_other_shape, r"classifier.weight is \(7, 16, 1, 1\), but config.json", "take both from the same"),
        (unlink("model.safetensors"), "no file named model.safetensors", "directory"),
        (unlink("config.json"), " is not the folder of a model", "config.json"),
        (unlink("preprocessor_config.json"), " has no preprocessor_config.json", r"SegFormerImageProcessor\(.*save"),
        (lambda folder: (folder / "config.json").write_text('{"model'), "/config.json' is not a valid JSON", ""),
        (lambda folder: change_config(folder, model_type="new"), "/config.json: model_type 'new'", "trust_remote_code"),
        (lambda folder: BertConfig().save_pretrained(folder), "BertConfig", "Model type should be one of"),
        (lambda folder: pickle_weights(folder, code=Code()), "the pickled weights of .* are refused", "safetensors"),
    ],
)
def test_error_names_file_and_cure(whole, tmp_path, damage, file, cure):
    folder = shutil.copytree(whole, tmp_path / "broken")
    damage(folder)
    with pytest.raises((ValueError, OSError), match=f"(?s){file}.*{cure}"):
        load_model(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"depths": [1, 1]}, "depths has 2 entries, hidden_sizes 4"), ({"hidden_dropout_prob": 2}, "2 is out of range")],
)
def test_fields_that_override_are_checked(whole, fields, message):
    """By all who read a configuration, also where transformers would set them one by one."""
    for load in (
        lambda: load_model(whole, config=fields),
        lambda: CASES["segformer"].row.config.from_pretrained(whole, **fields),
        lambda: AutoConfig.from_pretrained(whole, **fields),
        lambda: AutoModelForSemanticSegmentation.from_pretrained(whole, **fields),
    ):
        with pytest.raises(ValueError, match=f"(?s){whole}/config.json: .*{message}"):
            load()


SETTINGS = [  # of preprocessor_config.json
    {"size": "x"}, {"size": {"height": -1, "width": 0}}, {"size": {"shortest_edge": "x"}}, {"size_divisor": 0},
    {"size_divisor": [1, 2]}, {"window_size": -64}, {"window_size": [64, 64, 64]}, {"window_size": 2**40},
    {"window_stride": 1.5}, {"image_mean": []}, {"image_mean": ["x"]}, {"image_mean": {"r": 0.5}},
    {"image_std": [0.1, 0.2, 0]}, {"image_std": float("nan")}, {"rescale_factor": 0}, {"resample": 9},
    {"do_resize": 1}, {"do_normalize": {}}, {"align_corners": "yes"}, {"ignore_index": None, "do_pad": []},
    {"auto_map": []},
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_settings_of_the_processor_are_checked(whole, tmp_path, settings):
    """By `load_model` and by the Auto class, naming file, setting and value."""
    folder = shutil.copytree(whole, tmp_path / "broken")
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    name, value = list(settings.items())[-1]
    for load in (load_model, AutoImageProcessor.from_pretrained):
        with pytest.raises(ValueError) as error:
            load(folder)
        assert f"{file} " in str(error.value) and f"{name} is {value!r}; " in str(error.value)


@pytest.mark.parametrize("text", ["[]", "3", '"a"', "{", ""])
def test_settings_that_are_no_object(whole, tmp_path, text):
    folder = shutil.copytree(whole, tmp_path / "broken")
    (folder / "preprocessor_config.json").write_text(text)
    with pytest.raises((ValueError, OSError), match="preprocessor_config.json"):
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


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_weights_are_for_whom_the_umask_says(umask, tmp_path):
    """Written by `save_pretrained`, as the final model and as a checkpoint of a training."""
    before = os.umask(umask)
    try:
        model, processor = CASES["segformer"].make_model(), SegFormerImageProcessor()
        model.save_pretrained(tmp_path / "saved")
        (tmp_path / "run").mkdir()
        save_final(model, processor, tmp_path / "run")
        accelerator = Accelerator(cpu=True)
        prepared = accelerator.prepare(model)
        save_checkpoint(
            accelerator, lambda: nullcontext(prepared), processor, {"step": 1}, tmp_path / "run", is_best=True, limit=1
        )
    finally:
        os.umask(before)
    weights = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.safetensors") if "best" not in path.parts)
    assert {str(path) for path in weights} >= {
        "saved/model.safetensors", "run/model.safetensors", "run/step_1/model.safetensors",
        "run/step_1/training_state/model.safetensors",
    }  # fmt: skip
    assert all((tmp_path / path).stat().st_mode & 0o777 == 0o666 & ~umask for path in weights)


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    """What a run leaves after its first checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    accelerator = Accelerator(cpu=True)
    model = CASES["segformer"].make_model()
    model, _ = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    exported, state = lambda: nullcontext(model), {"step": 1, "plan": {}}
    save_checkpoint(accelerator, exported, SegFormerImageProcessor(), state, folder, is_best=True, limit=1)
    return folder


@pytest.mark.parametrize("resume", ["latest", "step_1"])
@pytest.mark.parametrize("keep", [None, 0, 0.5], ids=["missing", "empty", "half"])
@pytest.mark.parametrize(
    "name",
    ["config.json", "preprocessor_config.json", "trainer_state.json"]
    + [f"training_state/{name}" for name in ("random_states_0.pkl", "optimizer.bin", "model.safetensors")],
)
def test_damaged_checkpoint_is_not_resumed(saved_run, tmp_path, name, keep, resume):
    folder = shutil.copytree(saved_run, tmp_path / "run", symlinks=True)
    file = folder / "step_1" / name
    if keep is None:
        file.unlink()
    else:
        os.truncate(file, int(keep * file.stat().st_size))
    if name.endswith("config.json") and keep is not None or name.endswith("model.safetensors") and keep is None:
        return  # transformers says which; most runs have none
    with pytest.raises(ValueError) as error:
        checkpoint = checkpoints.checkpoint_to_resume(resume if resume == "latest" else str(folder / resume), folder)
        checkpoints.read_state(checkpoint, folder)
        checkpoints.check_training_state(checkpoint, 1, is_sharded=False)
    message = str(error.value)
    assert "step_1" in message and file.name in message and "step_N" in message


def test_state_of_every_process_is_needed(saved_run):
    checkpoints.check_training_state(saved_run / "step_1", 1, is_sharded=False)
    with pytest.raises(ValueError, match="random_states_1.pkl is missing; copy it again"):
        checkpoints.check_training_state(saved_run / "step_1", 2, is_sharded=False)
    (saved_run / checkpoints.PLAN_FILE).write_text("[")
    with pytest.raises(ValueError, match=f"{checkpoints.PLAN_FILE} is cut off or damaged .*start anew"):
        checkpoints.read_state(None, saved_run)


@pytest.mark.parametrize(
    ("limit", "error", "cure"),
    [
        (1000, RuntimeError("file write failed"), "a file may have 0.0 MB at most here; raise the limit .ulimit -f."),
        (-1, OSError(errno.EFBIG, os.strerror(errno.EFBIG)), "the file system takes no file so large; choose another"),
        (1000, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "MB are free there; make room"),
    ],
)
def test_write_error_names_the_limit_that_was_met(tmp_path, monkeypatch, limit, error, cure):
    monkeypatch.setattr(checkpoints.resource, "getrlimit", lambda which: (limit, limit))
    with pytest.raises(OSError, match=cure), checkpoints._cleaned_up(tmp_path / "x", "it"):
        raise error


def test_reading_process_that_goes_while_a_checkpoint_is_written_is_not_the_disk(tmp_path):
    """torch raises in whatever the main process does just then."""
    with pytest.raises(RuntimeError, match="^DataLoader worker"), checkpoints._cleaned_up(tmp_path / "x", "it"):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    with pytest.raises(OSError, match="could not write it .torn.; .* make room"):
        with checkpoints._cleaned_up(tmp_path / "x", "it"):
            raise RuntimeError("torn")
