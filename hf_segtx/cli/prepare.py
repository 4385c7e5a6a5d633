"""Turns a data set into sharded Parquet with embedded files, as the Hub and `--streaming` want it.

    segtx prepare --train_dir data/cityscapes --output_dir prepared/cityscapes
    segtx prepare --train_dir data/train --validation_dir data/val --push_to_hub --hub_dataset_id USER/cracks
    segtx prepare --dataset_name OWNER/NAME --revision main --classes_file ade20k --output_dir prepared/name
    segtx train --dataset_name prepared/cityscapes --streaming

A folder whose layout has splits gives all of them: train, validation, test. Column `image` holds the image files as
they are (PNG, JPEG, TIFF, .npy, ...), `label` PNG masks of train ids, 0 .. K - 1, and 255 where nothing counts: the
labels are mapped here, once. Class names and colours are in classes.json, id2label.json and the metadata of every file;
README.md is the card.

Every sample is read and checked on the way. A run that was stopped goes on after its last whole file. Uploads are
private unless --public is given: see first whether the terms of the data let you share them.
"""

from dataclasses import dataclass
from pathlib import Path

from ..data.settings import DataSettings
from ..settings import setting
from .flags import FlagParser, check_output_dir
from .training_flags import named_flags


DATA_ARGUMENTS = """
    dataset_name dataset_config_name revision train_dir validation_dir image_column_name label_column_name classes_file
    do_reduce_labels num_channels on_error allow_lossy_masks streaming cache_dir token
""".split()


@dataclass
class PrepareSettings:
    """Results."""

    output_dir: str = setting("prepared", "Empty or new folder for the Parquet files.")
    splits: list[str] = setting([], "Splits to write; else train, validation and test, as far as they are there.")
    shard_size: float = setting(500.0, "Of a Parquet file, about, in MB.", "(0, 1e9]")
    num_workers: int = setting(2, "Processes that read.", "[0, 1024]")
    push_to_hub: bool = setting(False, "Upload the data set.")
    hub_dataset_id: str | None = setting(None, "Data set on the Hub to upload to; else the name of output_dir.")
    public: bool = setting(False, "Everybody may see the upload.")


def run(command_line: list[str]) -> int:
    """The command; returns its exit status."""
    parser = FlagParser("prepare", __doc__)
    parser.add_dataclass(DataSettings, DATA_ARGUMENTS)
    parser.add_dataclass(PrepareSettings)
    arguments = parser.parse_args(command_line)
    data, settings = (parser.values_of(dataclass_, arguments) for dataclass_ in (DataSettings, PrepareSettings))
    check_output_dir(settings.output_dir)
    if not (data.train_dir or data.validation_dir or data.dataset_name):
        raise ValueError("give --train_dir, --validation_dir or --dataset_name")
    try:
        with named_flags(DataSettings, PrepareSettings):
            _prepare(data, settings)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"; {settings.output_dir} is not complete yet, the same command goes on after its last whole file"
        ) from None
    return 0


def _prepare(data: DataSettings, settings: PrepareSettings) -> None:
    from ..data.parquet import upload, write_parquet

    repository = settings.hub_dataset_id or Path(settings.output_dir).resolve().name
    prepared = write_parquet(
        data,
        settings.output_dir,
        splits=settings.splits,
        shard_size=settings.shard_size,
        num_workers=settings.num_workers,
        repository=repository if settings.push_to_hub else None,
    )
    for split, texts in prepared.left_out.items():
        print("".join(f"left out of {split}: {text}\n" for text in texts), end="")
    counts = ", ".join(f"{count} samples in {split}" for split, count in prepared.rows.items())
    print(f"{settings.output_dir}: {prepared.title}, {counts}")
    if settings.push_to_hub:
        address = upload(settings.output_dir, repository, public=settings.public, token=data.token)
        print(f"uploaded to {address}")
