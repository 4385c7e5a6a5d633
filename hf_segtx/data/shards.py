"""Parquet files and WebDataset archives, read where they are: on disk, on the Hub, at an address.

Nothing is copied, and only the parts that are used are read.
"""

import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .files import IMAGE_SUFFIXES


POOL_SIZE = 512  # samples of shards that are shuffled together: they are in memory, undecoded
NOT_FOUND = (
    "the data set {} cannot be loaded ({}); check the name (OWNER/NAME on the Hub, or a folder or file), the network "
    "and, if it is private, token"
)


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
        raise ValueError(NOT_FOUND.format(name, f"{type(error).__name__}: {error}")) from error
    if builder.name not in ("parquet", "webdataset"):
        raise ValueError(
            f"{name}: streaming reads Parquet files and WebDataset archives, these are of the kind {builder.name!r}; "
            "omit streaming, or convert them with `segtx prepare`"
        )
    return builder.name, {str(split): list(files) for split, files in builder.config.data_files.items()}


def first_row(kind: str, file: str, token: str | bool | None):
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

    system, path = file_system(file, token)
    try:
        with system.open(path, "rb") as stream:
            batch = next(pyarrow.parquet.ParquetFile(stream).iter_batches(1), None)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file}: cannot be read as Parquet ({error}); write it again") from error
    if batch is None:
        raise ValueError(f"{file}: there are no rows in it; remove it")
    return datasets.Dataset(pyarrow.Table.from_batches([batch]))


class ParquetRecords(Sequence):
    """The rows of Parquet shards as tuples of undecoded files, image and mask, read from the shards as they are.

    Nothing is copied or converted, and only the row groups that are asked for are read, from disk or the Hub.
    Whoever goes through the rows group by group reads each group once.

    Args:
        files: paths, or addresses that `fsspec` knows (hf://datasets/...).
        columns: that of the images, and that of the masks if there are any.
    """

    def __init__(self, files: Sequence[str], *columns: str, token: str | bool | None = None):
        self.files = files
        self.columns = list(columns)
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
        system, path = file_system(file, self.token)
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
    """The samples of WebDataset archives as tuples of undecoded files, image and mask, read from where they are.

    The headers in the archives are read once, to know where each file begins; then each sample is one read.

    Args:
        files: paths, or addresses that `fsspec` knows (hf://datasets/..., memory://...).
        columns: what follows the name of a sample: of the image, such as "jpg", and of the mask if there are any, such
            as "mask.png".

    Raises:
        ValueError: if an archive cannot be read, or a sample lacks one of them.
    """

    def __init__(self, files: Sequence[str], *columns: str, token: str | bool | None = None):
        self.files = files
        self.columns = columns
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
            raise ValueError(f"{', '.join(missing[:5])}{more}; remove such samples, or complete them")
        places = [[members[column] for column in self.columns] for found in samples for _, members in found]
        self.places = np.array(places, np.int64).reshape(-1, len(columns), 2)  # begin and end of each file

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
    system, path = file_system(file, token)
    return system.open(path, "rb", block_size=2**16)


def file_system(file: str, token: str | bool | None = None) -> tuple:
    """The `fsspec` file system and the path in it, of a path or an address."""
    import fsspec

    return fsspec.core.url_to_fs(file, **({"token": token} if token and file.startswith("hf://") else {}))
