"""Data sets as tables: of the Hub, of `datasets`, Parquet files and WebDataset archives -> pairs of undecoded files.

    name, folder, file or address -> find_tables -> for each split (image, mask) pairs, and the labels

Streaming reads Parquet files and archives where they are, and only the parts that are used; else `datasets` loads all.
"""

import functools
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .files import IMAGE_SUFFIXES
from .folders import IMAGE_FOLDERS
from .labels import CONTRACT_FILES, Labels, contract_file


IMAGE_COLUMNS = ("image", "pixel_values", "img")
LABEL_WORDS = ("label", "annotation", "mask", "segment", "ground_truth")
POOL_SIZE = 512  # samples of shards that are shuffled together: they are in memory, undecoded


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
    table = _first_row(kind, table[0], token) if streaming else table
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
        candidates = [name for name in pictures if name != label_column]
        named = [name for name in IMAGE_COLUMNS if name in candidates]
        image_column = (named or candidates)[0] if named or len(candidates) == 1 else None
    if image_column is None or label_column is None:
        missing = "mask" if label_column is None else "image"
        raise ValueError(
            f"no certain {missing} column among {columns}; give image_column_name and label_column_name "
            "(both of type Image; masks hold class ids)"
        )
    return image_column, label_column


def _is_array(feature) -> bool:
    """Whether a feature holds (H, W) numbers: Array2D, or lists of lists."""
    import datasets

    if isinstance(feature, datasets.Array2D):
        return True
    return hasattr(feature, "feature") and hasattr(feature.feature, "feature")


_NOT_FOUND = (
    "the data set {} cannot be loaded ({}); check the name (OWNER/NAME on the Hub, or a folder or file), the network "
    "and, if it is private, token"
)


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
        raise ValueError(_NOT_FOUND.format(name, f"{type(error).__name__}: {error}")) from error
    return tables if isinstance(tables, dict) else datasets.DatasetDict({"train": tables})


def _files_at(address: str, token: str | bool | None) -> tuple[str, dict[str, list[str]]]:
    """Kind ("parquet" or "webdataset"), and files of each split, at an address; splits as `datasets` finds them."""
    from datasets import DownloadConfig
    from datasets.data_files import DataFilesDict, get_data_patterns

    if address.endswith((".parquet", ".tar")):
        return "parquet" if address.endswith(".parquet") else "webdataset", {"train": [address]}
    config = DownloadConfig(token=token)
    patterns = get_data_patterns(address, config)
    found = DataFilesDict.from_patterns(patterns, base_path=address, download_config=config)
    for kind, suffix in (("parquet", ".parquet"), ("webdataset", ".tar")):
        splits = {str(split): [file for file in files if file.endswith(suffix)] for split, files in found.items()}
        if splits := {split: files for split, files in splits.items() if files}:
            return kind, splits
    raise FileNotFoundError(f"no .parquet and no .tar file at {address}")


def load_shards(
    name: str, config_name: str | None = None, *, token: str | bool | None = None, revision: str | None = None
) -> tuple[str, dict[str, list[str]]]:
    """The files of each split of a data set, of the Hub, in a local folder or at an address; they are not read.

    Returns:
        "parquet" or "webdataset", and split -> files.

    Raises:
        ValueError: if it consists of other files.
    """
    import datasets

    path = Path(name).resolve()
    try:
        if "://" in name or path.is_file():
            return _files_at(str(path) if path.is_file() else name, token)
        source = str(path) if path.exists() else name
        builder = datasets.load_dataset_builder(source, config_name, token=token, revision=revision)
    except Exception as error:  # of datasets, huggingface_hub and the network
        raise ValueError(_NOT_FOUND.format(name, f"{type(error).__name__}: {error}")) from error
    if builder.name not in ("parquet", "webdataset"):
        raise ValueError(
            f"{name}: streaming reads Parquet files and WebDataset archives, these are of the kind {builder.name!r}; "
            "omit streaming, or convert them with `segtx prepare`"
        )
    return builder.name, {str(split): list(files) for split, files in builder.config.data_files.items()}


def _first_row(kind: str, file: str, token: str | bool | None):
    """A `datasets.Dataset` of one row of a Parquet file, with its features, or of an archive's first sample."""
    import datasets

    if kind == "webdataset":
        _, members = next(tar_samples(file, token), (None, {}))
        features, row = datasets.Features(), {}
        for column, (begin, end) in members.items():
            is_picture = Path(f"sample.{column}").suffix.lower() in IMAGE_SUFFIXES - {".npy"}
            features[column] = datasets.Image() if is_picture else datasets.Value("binary")
            with _open_range(file, token) as stream:
                stream.seek(begin)
                content = stream.read(end - begin)
            row[column] = {"bytes": content, "path": None} if is_picture else content
        return datasets.Dataset.from_list([row], features)
    import pyarrow
    import pyarrow.parquet

    system, path = _file_system(file, token)
    try:
        with system.open(path, "rb") as stream:
            batch = next(pyarrow.parquet.ParquetFile(stream).iter_batches(1), None)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file}: cannot be read as Parquet ({error}); write it again") from error
    if batch is None:
        raise ValueError(f"{file}: there are no rows in it; remove it")
    return datasets.Dataset(pyarrow.Table.from_batches([batch]))


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
            system, path = _file_system(f"{folder}/{file}", token)
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


class ParquetRecords(Sequence):
    """The rows of Parquet shards as (image, mask) pairs of undecoded files, read from the shards as they are.

    Nothing is copied or converted, and only the row groups that are asked for are read, from disk or the Hub.
    Whoever goes through the rows group by group reads each group once.

    Args:
        files: paths, or addresses that `fsspec` knows (hf://datasets/...).
    """

    def __init__(self, files: Sequence[str], image_column: str, label_column: str, token: str | bool | None = None):
        self.files = files
        self.columns = [image_column, label_column]
        self.token = token
        with ThreadPoolExecutor(16) as pool:
            self.metadata = list(pool.map(self._metadata, files))
        sizes = [[file.row_group(group).num_rows for group in range(file.num_row_groups)] for file in self.metadata]
        self.places = [(file, group) for file, groups in enumerate(sizes) for group in range(len(groups))]
        self.starts = np.cumsum([0, *(size for groups in sizes for size in groups)])  # first row of each group
        self.groups = np.repeat(np.arange(len(self.places)), np.diff(self.starts))  # the group of each row
        self.cache: dict = {}  # the newest groups, as many as `ShuffledBatches` mixes
        self.cache_size = 2 + POOL_SIZE // max(1, int(np.median(np.diff(self.starts))))

    def _open(self, file: str):
        system, path = _file_system(file, self.token)
        return system.open(path, "rb")

    def _metadata(self, file: str):
        import pyarrow.parquet

        with self._open(file) as stream:
            return pyarrow.parquet.read_metadata(stream)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, row: int) -> tuple:
        import pyarrow.parquet

        if not 0 <= row < len(self):
            raise IndexError(row)
        group = int(self.groups[row])
        if (table := self.cache.get(group)) is None:
            while len(self.cache) >= self.cache_size:
                self.cache.pop(next(iter(list(self.cache))), None)
            file, number = self.places[group]
            with self._open(self.files[file]) as stream:
                parquet = pyarrow.parquet.ParquetFile(stream, metadata=self.metadata[file], pre_buffer=True)
                table = parquet.read_row_group(number, columns=self.columns, use_threads=False)  # also when forked
            self.cache[group] = table
        return tuple(table[column][row - int(self.starts[group])].as_py() for column in self.columns)


class TarRecords(Sequence):
    """The samples of WebDataset archives as (image, mask) pairs of undecoded files, read from where they are.

    The headers in the archives are read once, to know where each file begins; then each sample is one read.

    Args:
        files: paths, or addresses that `fsspec` knows (hf://datasets/..., memory://...).
        image_column, label_column: what follows the name of a sample, such as "jpg" and "mask.png".

    Raises:
        ValueError: if an archive cannot be read, or a sample lacks one of both.
    """

    def __init__(self, files: Sequence[str], image_column: str, label_column: str, token: str | bool | None = None):
        self.files = files
        self.columns = image_column, label_column
        self.token = token
        with ThreadPoolExecutor(16) as pool:
            samples = [list(found) for found in pool.map(lambda file: list(tar_samples(file, token)), files)]
        self.names = [name for found in samples for name, _ in found]
        self.shards = np.repeat(np.arange(len(files)), [len(found) for found in samples])
        missing = [
            f"{files[self.shards[row]]}: {name} has no .{column}"
            for row, (name, members) in enumerate(sample for found in samples for sample in found)
            for column in self.columns
            if column not in members
        ]
        if missing:
            more = ", ..." if len(missing) > 5 else ""
            raise ValueError(f"{', '.join(missing[:5])}{more}; a sample is an image and a mask: remove or complete it")
        places = [[members[column] for column in self.columns] for found in samples for _, members in found]
        self.places = np.array(places, np.int64).reshape(-1, 2, 2)  # begin and end of both files

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> tuple:
        file, places = self.files[self.shards[row]], self.places[row]
        begin, end = int(places.min()), int(places.max())
        with _open_range(file, self.token) as stream:
            stream.seek(begin)
            content = stream.read(end - begin)  # the files of a sample follow each other
        return tuple(
            {"bytes": content[start - begin : stop - begin], "path": f"{file}/{self.names[row]}.{column}"}
            for column, (start, stop) in zip(self.columns, places.tolist(), strict=True)
        )


def tar_samples(file: str, token: str | bool | None = None) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Name, and column -> (begin, end) in the archive, of each sample; files with equal names up to the first dot."""
    name, members = None, {}
    try:
        with _open_range(file, token) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                folder, _, base = member.name.rpartition("/")
                stem, _, column = base.partition(".")
                if not member.isfile() or not stem or not column:
                    continue
                if f"{folder}/{stem}" != name:
                    if members:
                        yield name.lstrip("/"), members
                    name, members = f"{folder}/{stem}", {}
                members[column] = member.offset_data, member.offset_data + member.size
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{file}: cannot be read as an uncompressed tar archive ({error}); write it again") from error
    if members:
        yield name.lstrip("/"), members


def _open_range(file: str, token: str | bool | None):
    """A file of which small parts are read here and there: in blocks of 64 kB, not of megabytes."""
    system, path = _file_system(file, token)
    return system.open(path, "rb", block_size=2**16)


def _file_system(file: str, token: str | bool | None = None) -> tuple:
    """The `fsspec` file system and the path in it, of a path or an address."""
    import fsspec

    return fsspec.core.url_to_fs(file, **({"token": token} if token and file.startswith("hf://") else {}))
