"""What `load_data` can be told: ranges, keywords, and that its settings need nothing but Python."""

import subprocess
import sys

import numpy as np
import pytest

from hf_segtx.data import DataSettings, load_data


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_val_split": float("nan")}, r"train_val_split is nan; it must"),
        ({"train_val_split": 1}, r"train_val_split is 1.0; it must"),
        ({"train_val_split": "0.1"}, "train_val_split is '0.1'; it must be a number"),
        ({"max_train_samples": 0}, r"max_train_samples is 0; it must be at least 1"),
        ({"max_eval_samples": 2.0}, "max_eval_samples is 2.0; it must be a whole number"),
        ({"num_channels": True}, "num_channels is True; it must be a whole number"),
        ({"seed": None}, "seed is None; it must be a whole number"),
        ({"num_channels": -3}, "num_channels is -3; it must"),
        ({"seed": -1}, "seed is -1; it must"),
        ({"on_error": "ignore"}, "on_error is 'ignore'; it must be 'raise' or 'skip'"),
        ({"train_dir": "a", "dataset_name": "b"}, "give either dataset_name or train_dir and validation_dir"),
        ({"train_dir": "a", "streaming": True}, "streaming is for dataset_name"),
    ],
)
def test_wrong_values_name_the_parameter(values, message):
    with pytest.raises(ValueError, match=message):
        DataSettings(**values)
    with pytest.raises(ValueError, match=message):
        load_data(DataSettings(), **values)


def test_keywords_are_fields_on_top_of_settings():
    settings = DataSettings(max_train_samples=np.int64(5), max_eval_samples=7)
    for arguments, keywords in (((), vars(settings)), ((settings,), {})):
        assert [len(part) for part in load_data(*arguments, **keywords)[:2]] == [5, 7]
    assert [len(part) for part in load_data(settings, max_train_samples=2)[:2]] == [2, 7]
    assert load_data(settings, train_split=None)[0] is None
    with pytest.raises(TypeError, match="knows no 'max_train_sample'; did you mean max_train_samples?"):
        load_data(max_train_sample=2)
    with pytest.raises(TypeError, match="knows no 'zzz'; there are dataset_name, "):
        load_data(zzz=2)


def test_settings_are_there_before_torch():
    """The commands make their flags of them and answer before anything slow is imported."""
    code = "import hf_segtx.cli, hf_segtx.data.settings, sys; print(*{'torch', 'numpy', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", ["dataset_config_name", "revision", "image_column_name", "label_column_name"])
def test_what_is_for_tables_is_refused_for_folders(name):
    with pytest.raises(ValueError, match=f"{name} is 'x', which is for dataset_name"):
        DataSettings(train_dir="data", **{name: "x"})
