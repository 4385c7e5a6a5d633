"""What `load_data` can be told: one dataclass, of which the commands make their flags. Needs nothing but Python."""

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal

from ..settings import check_settings, setting


@dataclass
class DataSettings:
    """Data.

    Without `dataset_name`, `train_dir` and `validation_dir` these are the embedded scenes.

    Raises:
        ValueError: for values that are out of their range or exclude each other.
    """

    dataset_name: str | None = setting(
        None, "Data set on the Hub (OWNER/NAME), or a local folder or file that `datasets` can load."
    )
    dataset_config_name: str | None = setting(None, "Configuration of that data set.")
    revision: str | None = setting(None, "Branch, tag or commit of that data set.")
    train_dir: str | None = setting(
        None,
        "Folder with images and masks in one of the known layouts, such as images/, masks/ and classes.json; or a file "
        "of pairs (.csv, .jsonl) or annotations (COCO's .json, YOLO's data.yaml).",
    )
    validation_dir: str | None = setting(None, "The same for validation.")
    train_split: str | None = setting("train", "Split to train on; None reads no training data.")
    validation_split: str | None = setting(
        None, "Split to validate on; None is the one called validation, val or valid."
    )
    train_val_split: float = setting(
        0.15,
        "Share of the training images that validate if there is no validation split; the same in every run.",
        "(0, 1)",
    )
    keep_near_duplicates_together: bool = setting(
        False, "Keep images that look almost alike, such as frames of a video, in one part if some are held out."
    )
    image_column_name: str | None = setting(None, "Column of the images, if it cannot be guessed.")
    label_column_name: str | None = setting(None, "Column of the masks, if it cannot be guessed.")
    classes_file: str | None = setting(
        None,
        "classes.json, id2label.json or name of a table of classes, such as cityscapes; None is what the data say.",
    )
    do_reduce_labels: bool = setting(False, "Mask value 0 is void and k is class k - 1 (ADE20K as distributed).")
    max_train_samples: int | None = setting(None, "Use only so many training images, evenly spread.", "[1, inf)")
    max_eval_samples: int | None = setting(None, "Use only so many validation images, evenly spread.", "[1, inf)")
    num_channels: int = setting(3, "Channels of the images.", "[1, 65536]")
    on_error: Literal["raise", "skip"] = setting(
        "raise", "What a sample that cannot be read does: stop, or be left out."
    )
    allow_lossy_masks: bool = setting(
        False, "Read masks that are JPEGs and the like, whose compression gives some pixels ids of other classes."
    )
    streaming: bool = setting(False, "Read the data set as it is needed, instead of downloading it first.")
    cache_dir: str | None = setting(None, "Folder where downloads are kept.")
    token: str | None = setting(None, "Hub token for downloads; None is that of `hf auth login`.")
    seed: int = setting(0, "Seed of the embedded training scenes.", f"[0, {2**32 - 1}]")

    def __post_init__(self):
        for name in ("max_train_samples", "max_eval_samples", "num_channels", "seed", "train_val_split"):
            value = getattr(self, name)
            kind, what = (Real, "number, such as 0.15") if name == "train_val_split" else (Integral, "whole number")
            if value is None and name.startswith("max_"):
                continue
            if isinstance(value, bool) or not isinstance(value, kind):
                raise ValueError(f"{name} is {value!r}; it must be a {what}")
            setattr(self, name, float(value) if kind is Real else int(value))  # numpy's numbers too
        check_settings(self)
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is {self.on_error!r}; it must be 'raise' or 'skip'")
        if self.dataset_name and (self.train_dir or self.validation_dir):
            raise ValueError("give either dataset_name or train_dir and validation_dir, not both")
        if self.streaming and not self.dataset_name:
            raise ValueError("streaming is for dataset_name; the files of folders are read one by one anyway")
        for name in ("dataset_config_name", "revision", "image_column_name", "label_column_name"):
            if getattr(self, name) is not None and not self.dataset_name:
                raise ValueError(f"{name} is {getattr(self, name)!r}, which is for dataset_name; omit it")
