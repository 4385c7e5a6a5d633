"""The folder that results go to: only files that were written here before may be replaced, and they are no inputs.

A hidden file in the folder, `.segtx_results`, lists what was written, a line of JSON each: name and SHA-256 of the
content. A file that is not listed is the user's, and so is one that was changed since.
"""

import hashlib
import json
import os
import threading
from pathlib import Path


LIST = ".segtx_results"


class Results:
    """A folder of results.

    Args:
        folder: is made if it is not there.

    Raises:
        ValueError: if it is a file, or below one.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(os.path.normpath(folder))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"`output_dir` {folder} is not a folder ({error}); choose another") from error
        self._written = read_list(self.folder)
        self._claimed: dict[str, str] = {}
        self._lock = threading.Lock()

    def claim(self, name: str | Path, source: str | Path) -> Path:
        """The path of the result with that name, kept for the source that it is made of.

        Raises:
            ValueError: if there is a file of the user, the result of another source is there, or it would lie outside.
        """
        path = Path(os.path.normpath(self.folder / name))
        if not path.is_relative_to(self.folder):
            raise ValueError(f"{source}: its result would be {path}, which is not in {self.folder}; give another name")
        other = self._claimed.setdefault(self._key(path), str(source))  # file systems may not tell A from a
        if other != str(source):
            raise ValueError(f"{source}: its result would be {path}, which is that of {other}; rename one of them")
        above = next(place for place in path.parents if os.path.lexists(place))
        if not above.is_dir():
            raise ValueError(f"{source}: its result would be {path}, but {above} is not a folder; move it")
        if os.path.lexists(path) and not self._is_own(path):
            raise ValueError(
                f"{source}: its result would be {path}, which exists and was not written by hf_segtx, or was changed "
                "since; move it, or choose another `output_dir`"
            )
        return path

    def write(self, path: Path, content: bytes) -> None:
        """Writes a claimed file; it is whole or not there.

        Raises:
            OSError: if that fails.
        """
        unfinished = self.unfinished(path)
        try:
            unfinished.write_bytes(content)
            self.finish(unfinished, path)
        except OSError as error:
            raise OSError(f"{path} cannot be written ({error})") from error
        finally:
            unfinished.unlink(missing_ok=True)

    def unfinished(self, path: Path) -> Path:
        """Where a claimed file is written that `finish` puts into its place."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_name(f".unfinished-{os.getpid()}-{threading.get_ident()}{path.suffix}")

    def finish(self, unfinished: Path, path: Path) -> None:
        """Lists the file, then moves it into its place: what is listed and not there does no harm."""
        content = sha256(unfinished)
        with self._lock:
            known = self._written.setdefault(self._key(path), set())
            if content not in known:
                known.add(content)
                entry = {"file": path.relative_to(self.folder).as_posix(), "sha256": content}
                with open(self.folder / LIST, "a", encoding="utf-8") as file:
                    file.write(json.dumps(entry) + "\n")
        os.replace(unfinished, path)

    def _key(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix().casefold()

    def _is_own(self, path: Path) -> bool:
        if path.is_symlink() or not path.is_file():
            return False
        content, key = sha256(path), self._key(path)
        if content not in self._written.get(key, ()):
            self._written = read_list(self.folder)  # another process may have written it
        return content in self._written.get(key, ())


def read_list(folder: Path) -> dict[str, set[str]]:
    """{name of a file below the folder, without case: SHA-256 of what was written to it}; empty without a list."""
    written: dict[str, set[str]] = {}
    try:
        lines = (folder / LIST).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):  # no list, or none of ours: then no file is ours
        return written
    for line in lines:
        try:
            entry = json.loads(line)
            written.setdefault(entry["file"].casefold(), set()).add(entry["sha256"])
        except (ValueError, TypeError, KeyError, AttributeError):  # torn by a killed process
            continue
    return written


def is_result(file: Path, lists: dict[Path, dict]) -> bool:
    """Whether a file was written by an earlier run, or is such a file that was changed since.

    Args:
        lists: those that were read so far, by folder; grows.
    """
    file = Path(os.path.abspath(file))
    for folder in file.parents:
        if folder not in lists:
            lists[folder] = read_list(folder)
        if file.relative_to(folder).as_posix().casefold() in lists[folder]:
            return True
    return False


def sha256(file: Path) -> str:
    """Of the content of a file."""
    digest = hashlib.sha256()
    with open(file, "rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
