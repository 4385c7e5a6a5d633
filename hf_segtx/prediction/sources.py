"""What people name on the command line -> files and streams, each with the name that its results get."""

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..data.files import IMAGE_SUFFIXES, files_below
from .results import is_result


VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}
STREAMS = ("camera:", "rtsp://", "rtmp://", "udp://", "http://", "https://")
RESULT_NAME = re.compile(
    r"(.+)_(labels\.(png|tif)|overlay\.(png|mp4)|(attention|regions|classes|occlusion|differences)\.png)", re.IGNORECASE
)


class Sources(NamedTuple):
    """names: {file or stream: path of its results below their folder, to which _labels.png and so on is added};
    passed_over: results of earlier runs among what was found."""

    names: dict[Path | str, Path]
    passed_over: list[Path]


def is_stream(source: str | Path) -> bool:
    """Whether it is a camera or an address."""
    return str(source).startswith(STREAMS)


def is_video(source: str | Path) -> bool:
    """Whether it has frames: a video, a camera or an address."""
    return is_stream(source) or Path(source).suffix.lower() in VIDEO_SUFFIXES


def find_sources(patterns: Sequence[str]) -> Sources:
    """The pictures, videos and streams that are named by files, folders, glob patterns, camera:NUMBER or addresses.

    Results of earlier runs are passed over. In folders and patterns, that are also files that are called like the
    results of another file there: `x_overlay.png` beside `x.jpg`.

    Raises:
        ValueError: if a pattern finds nothing.
    """
    names: dict[Path | str, Path] = {}
    passed_over, lists = [], {}
    for pattern in patterns:
        if is_stream(pattern):
            names[pattern] = Path("".join(letter if letter.isalnum() else "_" for letter in pattern))
            continue
        if not pattern.strip():
            raise ValueError("one of the names of pictures is empty; is a variable of the shell not set?")
        root, files = _files_of(pattern)
        stems = {file.with_suffix("") for file in files}
        results = []
        for file in files:
            called = RESULT_NAME.fullmatch(file.name) if str(file) != os.path.normpath(pattern) else None
            if is_result(file, lists) or (called and file.with_name(called[1]) in stems):
                results.append(file)
            else:
                relative = os.path.relpath(file, root)
                names[file] = Path(file.name if relative.startswith("..") else relative).with_suffix("")
        passed_over += results
        if not files and not glob.has_magic(pattern) and not os.path.exists(pattern):
            raise ValueError(f"{pattern}: there is no such file or folder")
        if not files:
            raise ValueError(f"{pattern}: no pictures or videos ({', '.join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))})")
        if len(files) == len(results):
            raise ValueError(f"{pattern}: nothing but results of earlier runs, such as {files[0]}")
    return Sources(_told_apart(names), sorted(set(passed_over) - set(names)))


def _files_of(pattern: str) -> tuple[Path, list[Path]]:
    """The folder that a pattern starts from, and its files."""
    root = Path(os.path.normpath(pattern))
    if root.is_dir():
        found = (Path(path) for _, _, path in files_below(root))
        return root, [file for file in found if file.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES]
    if root.is_file():
        return root.parent, [root]
    files = {Path(os.path.normpath(file)) for file in glob.glob(pattern, recursive=True) if Path(file).is_file()}
    fixed = Path(pattern).parts[:-1]
    wild = next((i for i, part in enumerate(fixed) if glob.has_magic(part)), len(fixed))
    return Path(os.path.normpath(Path(*fixed[:wild]))), sorted(files)


def _told_apart(names: dict[Path | str, Path]) -> dict[Path | str, Path]:
    """Other names for files that would have equal ones: a.jpg and a.png beside each other keep their suffixes, files
    of several folders these folders."""
    groups: dict[Path, list] = {}
    for file, name in names.items():
        groups.setdefault(name, []).append(file)
    groups = {name: files for name, files in groups.items() if len(files) > 1 and not any(map(is_stream, files))}
    folders = {os.path.abspath(file.parent) for files in groups.values() for file in files}
    common = os.path.commonpath(folders) if folders else ""
    told = dict(names)
    for files in groups.values():
        beside = Counter(file.parent for file in files)
        for file in files:
            if len(beside) > 1:
                told[file] = Path(os.path.relpath(file, common)).with_suffix("")
            if beside[file.parent] > 1:
                told[file] = told[file].with_name(file.name)
    return told
