"""A Space of the Hub: the Gradio app with its model and this version of the library, or a static page.

app.py requirements.txt README.md    what the Hub runs, what it installs, the card
hf_segtx/                            the library, as it is here
model/ model_2/                      checkpoints of this machine; those of the Hub stay where they are
"""

import re
import shutil
from collections.abc import Sequence
from importlib.metadata import requires, version
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, SpaceCard, SpaceCardData

from ..export.metadata import license_of
from ..export.runner import RECORD, is_exported
from ..hub import HUB_ERRORS, is_hub_name
from ..inference import load_model


APP = '''"""The demo of {title}; runs anywhere: `pip install -r requirements.txt && python app.py`."""

from hf_segtx.demo import serve
from hf_segtx.inference import load_model


serve({{
{models}
}})
'''
TEXT = """
# {title}

A demonstration of {models}: give a picture, a video or a camera, and see its segments. Made by `segtx demo`.
"""
STATIC_TEXT = """
# {title}

{title} in the browser: pictures stay on the machine of the visitor. Made by `segtx demo --static`. On a server of your
own: `python -m http.server --directory FOLDER`.
"""


def write_space(folder: str | Path, models: Sequence[str], repository: str) -> Path:
    """Writes the files of a Space into a folder that is empty or not there.

    Args:
        models: one or two folders of checkpoints or exports, or names on the Hub.
        repository: USER/NAME of the Space.

    Raises:
        ValueError: if the folder holds something, the name is none of the Hub, or a model cannot be loaded.
    """
    check_name(repository)
    folder = empty_folder(folder)
    lines, titles, bases = [], [], []
    for number, source in enumerate(models, start=1):
        place = "model" if number == 1 else f"model_{number}"
        title = str(source).strip("/") if is_hub_name(str(source)) else Path(source).resolve().name
        titles.append(title if title not in titles else f"{title} ({number})")
        if is_hub_name(str(source)):
            place, bases = str(source), [*bases, str(source)]
        else:
            copy_model(Path(source), folder / place)
        lines.append(f"    {titles[-1]!r}: load_model({place!r}),")
    (folder / "app.py").write_text(APP.format(title=" and ".join(titles), models="\n".join(lines)))
    (folder / "requirements.txt").write_text("\n".join(requirements()) + "\n")
    package = Path(__file__).parents[1]
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__", "*.py[co]"))
    data = SpaceCardData(
        title=repository.split("/")[-1],
        sdk="gradio",
        sdk_version=version("gradio"),
        app_file="app.py",
        license=known_license(models[0]),
        models=bases or None,
        tags=["hf_segtx", "semantic-segmentation"],
    )
    write_card(folder, data, TEXT.format(title=data.title, models=" and ".join(titles)))
    return folder


def copy_model(source: Path, target: Path) -> None:
    """The files that `load_model` reads, of an exported folder or of a checkpoint, and no others."""
    if not is_exported(source):
        model, processor = load_model(source)
        model.save_pretrained(target)
        processor.save_pretrained(target)
        return
    target.mkdir()
    folder = source if source.is_dir() else source.parent
    for file in sorted(folder.iterdir()):
        if file.name in ("config.json", "preprocessor_config.json", RECORD) or file.suffix in (".onnx", ".xml", ".bin"):
            shutil.copy(file, target)


def requirements() -> list[str]:
    """What hf_segtx needs, with the demo, as its own metadata say it."""
    lines = [line for line in requires("hf_segtx") or () if "extra ==" not in line or re.search("extra == .demo", line)]
    return sorted({line.partition(";")[0].strip() for line in lines})


def known_license(source: str | Path) -> str | None:
    """That of the model, if a card beside it says one."""
    found = license_of(str(source))
    return None if found == "unknown" else found


def write_static_card(folder: Path, title: str, license: str | None = None) -> None:
    """README.md of a folder that is a static Space. The headers let the page compute with several threads."""
    data = SpaceCardData(
        title=title,
        sdk="static",
        app_file="index.html",
        license=license,
        tags=["hf_segtx", "semantic-segmentation", "onnxruntime-web"],
        custom_headers={
            "cross-origin-embedder-policy": "require-corp",
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "cross-origin",
        },
    )
    write_card(folder, data, STATIC_TEXT.format(title=title))


def write_card(folder: Path, data: SpaceCardData, text: str) -> None:
    SpaceCard(f"---\n{data.to_yaml()}\n---\n{text}").save(folder / "README.md")


def check_name(repository: str) -> None:
    """Raises ValueError unless this is USER/NAME."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"push_to_hub is {repository!r}; give USER/NAME of the Space")


def empty_folder(folder: str | Path) -> Path:
    """The folder, made if it is not there.

    Raises:
        ValueError: if it holds something.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; choose another folder, or empty it")
    return folder


def push_space(folder: str | Path, repository: str, token: str | None = None) -> str:
    """Uploads a folder as a Space in one commit; returns its address.

    Raises:
        ValueError: if the upload fails.
    """
    folder = Path(folder)
    sdk = SpaceCard.load(folder / "README.md").data.sdk
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    api = HfApi(token=token)
    try:
        address = api.create_repo(repository, repo_type="space", space_sdk=sdk, exist_ok=True)
        api.create_commit(  # not upload_folder, which may make several commits
            address.repo_id,
            [CommitOperationAdd(file.relative_to(folder).as_posix(), file) for file in files],
            commit_message="Demo from hf_segtx",
            repo_type="space",
        )
    except (*HUB_ERRORS, RuntimeError) as error:  # what create_commit makes of a connection that breaks
        raise ValueError(f"the upload to {repository} failed ({error}); the same command repeats it") from error
    return str(address)
