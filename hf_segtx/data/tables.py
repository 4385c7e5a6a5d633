"""Data sets as tables: of the Hub, of `datasets`, Parquet files and WebDataset archives -> pairs of undecoded files.

    name, folder, file or address -> find_tables -> for each split (image, mask) pairs, and the labels

Streaming reads them where they are (see shards); else `datasets` loads all.
"""

import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from .folders import IMAGE_FOLDERS
from .labels import CONTRACT_FILES, Labels, contract_file
from .shards import NOT_FOUND, ParquetRecords, TarRecords, file_system, first_row, load_shards


IMAGE_COLUMNS = ("image", "pixel_values", "img")
LABEL_WORDS = ("label", "annotation", "mask", "segment", "ground_truth")


def find_tables(
    name: str,
    config_name: str | None = None,
    *,
    split: str | None = None,
    image_column_name: str | None = None,
    label_column_name: str | None = None,
    labels: Labels | None = None,
    do_reduce_labels: bool = False,
    cache_dir: str | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    streaming: bool = False,
) -> tuple[dict[str, Callable[[], Sequence]], Labels]:
    """For each split of a data set a function that opens its (image, mask) pairs of undecoded files, and its labels.

    Args:
        split: whose first row tells which columns are meant; by default the first split's.
        labels: instead of those beside the data.

    The others as in `load_data`, which see also for what is raised.
    """
    if streaming:
        kind, tables = load_shards(name, config_name, token=token, revision=revision)
    else:
        tables = load_tables(name, config_name, cache_dir=cache_dir, token=token, revision=revision)
    table = tables[split if split in tables else next(iter(tables))]
    table = first_row(kind, table[0], token) if streaming else table
    columns = find_columns(table, image_column_name, label_column_name)
    labels = labels or _table_labels(name, table, columns[1], do_reduce_labels, token, revision)
    open_records = TableRecords
    if streaming:
        open_records = functools.partial(ParquetRecords if kind == "parquet" else TarRecords, token=token)
    return {split: functools.partial(open_records, files, *columns) for split, files in tables.items()}, labels


def find_columns(table, image_column: str | None = None, label_column: str | None = None) -> tuple[str, str]:
    """Names of the image and label columns of a `datasets.Dataset`: by name among those of type Image, else by mode.

    Raises:
        ValueError: if they are not there or not certain; the message lists the columns.
    """
    import datasets

    columns = "; ".join(f"{name}: {type(feature).__name__}" for name, feature in table.features.items())
    for column in (image_column, label_column):
        if column is not None and column not in table.features:
            raise ValueError(f"there is no column {column!r}; the columns are {columns}")
    pictures = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
    arrays = [name for name, feature in table.features.items() if _is_array(feature)]
    if label_column is None:
        candidates = [name for name in pictures + arrays if name != image_column]
        named = [name for name in candidates if any(word in name.lower() for word in LABEL_WORDS)]
        if not named:
            modes = {name: table[0][name].mode for name in candidates if name in pictures and name not in IMAGE_COLUMNS}
            named = [name for name, mode in modes.items() if mode[0] in "1LPI"]
        label_column = named[0] if len(named) == 1 else next((name for name in named if name == "label"), None)
    if image_column is None:
        image_column = _image_among([name for name in pictures if name != label_column])
    if image_column is None or label_column is None:
        missing = "mask" if label_column is None else "image"
        raise ValueError(
            f"no certain {missing} column among {columns}; give image_column_name and label_column_name "
            "(both of type Image; masks hold class ids)"
        )
    return image_column, label_column


def find_image_column(table, image_column: str | None = None) -> str:
    """Name of the image column of a `datasets.Dataset` that may have no masks.

    Raises:
        ValueError: if it is not there or not certain; the message lists the columns.
    """
    import datasets

    columns = "; ".join(f"{name}: {type(feature).__name__}" for name, feature in table.features.items())
    pictures = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
    found = image_column or _image_among(pictures)
    if found not in table.features:
        which = f"no column {found!r}" if found else "no certain image column"
        raise ValueError(f"there is {which}; give image_column_name; the columns are {columns}")
    return found


def _image_among(candidates: list[str]) -> str | None:
    named = [name for name in IMAGE_COLUMNS if name in candidates]
    return (named or candidates)[0] if named or len(candidates) == 1 else None


def _is_array(feature) -> bool:
    """Whether a feature holds (H, W) numbers: Array2D, or lists of lists."""
    import datasets

    if isinstance(feature, datasets.Array2D):
        return True
    return hasattr(feature, "feature") and hasattr(feature.feature, "feature")


def load_tables(
    name: str,
    config_name: str | None = None,
    *,
    cache_dir: str | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
):
    """The splits of a data set as a `datasets.DatasetDict`.

    Args:
        name: of a Hub data set; or a local folder (parquet, imagefolder with masks, arrow of `save_to_disk`) or file.
    """
    import datasets

    if "://" in name:
        raise ValueError(f"{name}: an address is read with streaming=True; a data set of the Hub is OWNER/NAME")
    path = Path(name).resolve()
    kind = {".arrow": "arrow", ".parquet": "parquet", ".tar": "webdataset"}.get(path.suffix.lower())
    if path.is_file() and kind is None:
        raise ValueError(
            f"{name}: a data set file ends in .parquet, .arrow or .tar; folders of images, and .csv and .jsonl files "
            "of pairs, are given as train_dir"
        )
    if any((path / folder).is_dir() for folder in IMAGE_FOLDERS) and not list(path.glob("metadata.*")):
        raise ValueError(f"{name}: a folder with images/ and masks/ is given as train_dir, not dataset_name")
    try:
        if any((path / file).exists() for file in ("dataset_dict.json", "state.json")):
            tables = datasets.load_from_disk(str(path))
        elif path.is_file():
            tables = datasets.load_dataset(kind, data_files=str(path), cache_dir=cache_dir)
        else:
            source = str(path) if path.exists() else name
            tables = datasets.load_dataset(source, config_name, cache_dir=cache_dir, token=token, revision=revision)
    except Exception as error:  # of datasets, huggingface_hub, pyarrow and the network
        raise ValueError(NOT_FOUND.format(name, f"{type(error).__name__}: {error}")) from error
    return tables if isinstance(tables, dict) else datasets.DatasetDict({"train": tables})


def _table_labels(
    name: str, table, label_column: str, do_reduce_labels: bool, token: str | bool | None, revision: str | None
) -> Labels:
    """The contract of a data set: a file beside it (folder or repository), else class names in the column's type."""
    import datasets
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    if "://" in name:
        folder = name.rpartition("/")[0] if name.endswith((".parquet", ".tar")) else name.rstrip("/")
        for file in CONTRACT_FILES:
            system, path = file_system(f"{folder}/{file}", token)
            if system.exists(path):
                with tempfile.TemporaryDirectory() as temporary:
                    system.get_file(path, f"{temporary}/{file}")
                    return Labels.from_file(f"{temporary}/{file}", do_reduce_labels)
    elif Path(name).exists():
        if file := contract_file(name if Path(name).is_dir() else Path(name).parent):
            return Labels.from_file(file, do_reduce_labels)
    else:
        for file in CONTRACT_FILES:
            try:
                path = huggingface_hub.hf_hub_download(name, file, repo_type="dataset", token=token, revision=revision)
                return Labels.from_file(path, do_reduce_labels)
            except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled):
                continue
    feature = table.features[label_column]
    while hasattr(feature, "feature"):
        feature = feature.feature
    if isinstance(feature, datasets.ClassLabel):
        return Labels.from_id2label(feature.names, do_reduce_labels)
    raise ValueError(
        f"{name}: no class names; put a classes.json or id2label.json "
        '({"0": "sky", ...}) beside the data, or give such a file as classes_file'
    )


class TableRecords(Sequence):
    """The rows of a `datasets.Dataset` as (image, mask) pairs of undecoded files."""

    def __init__(self, table, image_column: str, label_column: str):
        import datasets

        for column in (image_column, label_column):
            if isinstance(table.features[column], datasets.Image):
                table = table.cast_column(column, datasets.Image(decode=False))
        self.table = table.select_columns([image_column, label_column])
        self.columns = image_column, label_column

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> tuple:
        values = self.table[row]
        return tuple(values[column] for column in self.columns)
