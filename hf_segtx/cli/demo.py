"""Shows a model in the browser: pictures, videos, camera; classes switched on and off, confidence, entropy.

    segtx demo outputs/segformer_scenes                                  # an app at http://127.0.0.1:7860
    segtx demo outputs/run outputs/other_run                             # two models, with a slider between them
    segtx demo outputs/run --push_to_hub USER/NAME                       # the app as a Space of the Hub
    segtx demo outputs/run --push_to_hub USER/NAME --dry_run             # only writes what it would upload
    segtx demo outputs/run --static page                                 # a page that needs no server of yours
    segtx demo outputs/run --static page --push_to_hub USER/NAME         # that page as a static Space

The app is Gradio's (`pip install hf_segtx[demo]`) and serves several visitors at once, each on their own. The page of
--static is HTML, the model as ONNX and onnxruntime-web of npm (`npm` is needed once, to fetch it): pictures are
segmented in the visitor's browser and never leave it. It opens from any web server or static Space, not as a file.
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ..settings import setting
from .flags import FlagParser, check_output_dir
from .model_flags import ModelSettings, load
from .training_flags import named_flags


@dataclass
class DemoSettings:
    """Demo."""

    host: str = setting("127.0.0.1", "Address that the app answers at; 0.0.0.0 lets other machines in.")
    port: int = setting(7860, "Of the app; 0: the first free one from 7860 on.", "[0, 65535]")
    static: str | None = setting(None, "Folder for a page that computes in the visitor's browser.")
    runtime: str | None = setting(
        None, "Folder or .tgz of the npm package onnxruntime-web for --static; else `npm` fetches it."
    )
    push_to_hub: str | None = setting(None, "USER/NAME of a Space to upload to.")
    dry_run: bool = setting(False, "Write what --push_to_hub would upload to --output_dir, without the network.")
    output_dir: str = setting("space", "Folder of --dry_run.")


def run(command_line: list[str]) -> int:
    """The command; returns its exit status."""
    parser = FlagParser("demo", __doc__)
    parser.add_argument("model", help="Folder of a saved or exported model, or Hub name.")
    parser.add_argument("second_model", nargs="?", help="Another one, to be compared with it.")
    parser.add_dataclass(DemoSettings)
    parser.add_dataclass(ModelSettings)
    arguments = parser.parse_args(command_line)
    settings = parser.values_of(DemoSettings, arguments)
    model_settings = parser.values_of(ModelSettings, arguments)
    check_output_dir(settings.output_dir)
    names = [name for name in (arguments.model, arguments.second_model) if name]
    if settings.dry_run and not settings.push_to_hub:
        raise ValueError("--dry_run shows what --push_to_hub would upload; give USER/NAME of a Space")
    if settings.static and len(names) > 1:
        raise ValueError("--static shows one model; leave the second one out")
    with named_flags(DemoSettings, ModelSettings):
        if settings.static:
            _static(names[0], settings, model_settings)
        elif settings.push_to_hub:
            _space(names, settings, model_settings)
        else:
            _app(names, settings, model_settings)
    return 0


def _app(names: list[str], settings: DemoSettings, model_settings: ModelSettings) -> None:
    """Serves until Ctrl-C."""
    from ..demo import serve

    titles = [Path(name).resolve().name if Path(name).exists() else name for name in names]
    if len(set(titles)) < len(titles):
        titles = names if names[0] != names[1] else [f"{title} ({index})" for index, title in enumerate(titles, 1)]
    models = {title: load(name, model_settings, optimize=True) for title, name in zip(titles, names)}
    serve(models, server_name=settings.host, server_port=settings.port or None)


def _space(names: list[str], settings: DemoSettings, model_settings: ModelSettings) -> None:
    """Writes the app as a Space, and uploads it."""
    from ..demo import push_space, write_space
    from ..hub import check_token

    if settings.dry_run:
        _list(write_space(settings.output_dir, names, settings.push_to_hub), settings.push_to_hub)
        return
    check_token(model_settings.token)
    with TemporaryDirectory() as folder:
        write_space(folder, names, settings.push_to_hub)
        print(f"uploaded to {push_space(folder, settings.push_to_hub, model_settings.token)}")


def _static(name: str, settings: DemoSettings, model_settings: ModelSettings) -> None:
    """Writes the page, and uploads it if asked."""
    from ..demo import push_space, write_static_page
    from ..hub import check_token

    if settings.push_to_hub and not settings.dry_run:
        check_token(model_settings.token)
    folder = write_static_page(name, *load(name, model_settings), settings.static, runtime=settings.runtime)
    if settings.push_to_hub and not settings.dry_run:
        print(f"uploaded to {push_space(folder, settings.push_to_hub, model_settings.token)}")
        return
    _list(folder, settings.push_to_hub or "any static web server")
    print(f"to look at it: python -m http.server --directory {settings.static}")


def _list(folder: Path, place: str) -> None:
    """Prints the files for a Space or another server; those of the library in a line."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    own = [file for file in files if file.relative_to(folder).parts[0] != "hf_segtx"]
    print(f"{folder}: {len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:.1f} MB, for {place}")
    for file in own:
        print(f"  {file.relative_to(folder)}  {file.stat().st_size} bytes")
    if len(own) < len(files):
        print(f"  hf_segtx/  {len(files) - len(own)} files of the library")
