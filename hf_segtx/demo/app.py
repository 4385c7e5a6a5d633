"""The Gradio app: pictures and camera shots, videos, a live camera; one or two models.

What a visitor has seen is kept in the session of that visitor (`gr.State`), nothing in the module or the app. Models
compute for one visitor at a time, in the order of a queue; drawing does not wait for them.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..hub import without_folders
from ..prediction import Predictor, Results, segment_video
from .views import KINDS, Models, Seen, write_examples


try:
    import gradio as gr
except ImportError as error:
    raise ValueError(f"the demo is a Gradio app, and {error}; `pip install hf_segtx[demo]`") from error

MAX_FRAMES = 300  # of a video; the queue waits for them
HOUR = 3600  # seconds: how long files and sessions of visitors are kept
QUEUE = {"concurrency_limit": 1, "concurrency_id": "models"}


def undecoded(component):
    """The component, of pictures or videos, which hands over a file: `read_image` says what is wrong with it."""
    decode = component.preprocess

    def preprocess(payload):
        is_file = payload is not None and payload.path is not None  # frames of a live camera are none
        return payload.path if is_file else decode(payload)

    component.preprocess = preprocess
    return component


@contextmanager
def told_to_visitors() -> Iterator[None]:
    """What the library says is wrong becomes a message in the browser, without folders of this machine."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise gr.Error(without_folders(str(error)), title="This does not work", duration=None) from error


def serve(models: Mapping[str, tuple], **launch) -> None:
    """Runs the app until it is interrupted.

    Args:
        models: {title: (model in evaluation mode, image processor)}, one or two.
        launch: of `gr.Blocks.launch`, such as `server_name` and `server_port`.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = Models(models)
        build(found, write_examples(folder)).launch(css=style(found), theme=theme(), ssr_mode=False, **launch)


def theme():
    """Fonts of the visitor's machine: nothing is asked of other servers."""
    return gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"])


def style(models: Models) -> str:
    """CSS that makes the boxes of the classes a legend."""
    rules = [
        f"#legend input[name='{index}'] {{ background: rgb{color} !important; border: 2px solid white; }}"
        f"#legend input[name='{index}']:not(:checked) {{ opacity: 0.35; }}"
        for index, color in enumerate(models.colors)
    ]
    return "\n".join(rules)


def build(models: Models, examples: Sequence[str] = ()) -> gr.Blocks:
    """The app.

    Args:
        examples: picture files to try.
    """
    title = " and ".join(models.titles)
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(HOUR, HOUR)) as app:
        gr.Markdown(f"# {title}\n{len(models.names)} classes. Nothing that you show is kept for more than an hour.")
        with gr.Tab("Picture"):
            picture_tab(models, examples)
        with gr.Tab("Video"):
            video_tab(models)
        with gr.Tab("Camera"):
            camera_tab(models)
    return app


def picture_tab(models: Models, examples: Sequence[str]) -> None:
    """A picture beside what the models say of it, with a legend that switches classes on and off."""
    seen = gr.State(None, time_to_live=HOUR)
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            picture = gr.Image(label="Picture", sources=["upload", "webcam", "clipboard"], type="filepath")
            if examples:
                gr.Examples([[file] for file in examples], [picture], label="Drawn scenes")
        with gr.Column(scale=3, min_width=280):
            two = len(models.titles) > 1
            label = f"{models.titles[0]} | {models.titles[1]}" if two else "picture | segments"
            result = gr.ImageSlider(label=label, format="png", elem_id="result", slider_position=50 if two else 0)
            kind = gr.Radio(list(KINDS), value=KINDS[0], label="Show (confidence, entropy: dark is 0, bright is 1)")
            opacity = gr.Slider(0, 1, 0.5, step=0.05, label="Opacity", elem_id="opacity")
            legend = gr.CheckboxGroup(label="Classes", elem_id="legend", visible=False)
            downloads = [
                gr.DownloadButton(f"Label map (PNG), {title}" if two else "Label map (PNG)", interactive=False)
                for title in models.titles
            ]

    def nothing():
        unready = [gr.DownloadButton(value=None, interactive=False) for _ in downloads]
        return [None, gr.CheckboxGroup([], value=[], visible=False), *unready]

    def look(file: str | None):
        if file is None:
            return nothing()
        with told_to_visitors():
            found = models.see(file)
        shares = models.present(found).items()
        choices = [(f"{models.names[index]}  {share:.1%}", str(index)) for index, share in shares]
        files = [
            gr.processing_utils.save_bytes_to_cache(
                view.png, f"{Path(file).stem}_labels{number}.png", downloads[0].GRADIO_CACHE
            )
            for number, view in zip(("", "_2"), found.views)
        ]
        ready = [gr.DownloadButton(value=path, interactive=True) for path in files]
        return [found, gr.CheckboxGroup(choices, value=[key for _, key in choices], visible=True), *ready]

    def draw(found: Seen | None, kind: str, opacity: float, classes: list[str]):
        if found is None:
            return None
        pictures = models.draw(found, kind, opacity, [int(key) for key in classes])
        return tuple(pictures) if two else (found.image, *pictures)

    drawing = {"fn": draw, "inputs": [seen, kind, opacity, legend], "outputs": result, "show_progress": "hidden"}
    drawing |= {"trigger_mode": "always_last", "api_visibility": "private"}
    drawing |= {"concurrency_limit": 1, "concurrency_id": "draw"}  # quick, and what is asked last comes last
    looked = [seen, legend, *downloads]
    looking = undecoded(picture).change(look, picture, looked, **QUEUE, api_name="segment")
    looking.failure(nothing, None, looked).then(**drawing)  # what was seen before is not that of this file
    looking.success(**drawing)
    for control in (kind.input, opacity.change, legend.input):
        control(**drawing)


def video_tab(models: Models) -> None:
    """A video, and a film of the overlays of each model."""
    with gr.Row():
        video = gr.Video(label=f"Video (its first {MAX_FRAMES} frames)", sources=["upload", "webcam"])
        films = [gr.Video(label=title, interactive=False) for title in models.titles]
    opacity = gr.Slider(0, 1, 0.5, step=0.05, label="Opacity")

    def look(file: str | None, opacity: float, progress=gr.Progress(track_tqdm=True)):  # noqa: B008
        if file is None:
            raise gr.Error("Give a video first.")
        with tempfile.TemporaryDirectory() as folder, told_to_visitors():
            results, paths = Results(folder), []
            for number, predictor in enumerate(models.predictors):
                drawn = Predictor(predictor.model, predictor.processor, opacity)
                name = Path(f"video_{number + 1}")
                segment_video(drawn, file, name, results, max_frames=MAX_FRAMES)
                paths.append(f"{folder}/{name}_overlay.mp4")
            yield paths if len(paths) > 1 else paths[0]  # Gradio copies them before the folder goes

    gr.Button("Segment", variant="primary").click(
        look, [undecoded(video), opacity], films, **QUEUE, api_name="segment_video"
    )


def camera_tab(models: Models) -> None:
    """A live camera beside the overlay of the first model, some frames a second."""
    with gr.Row():
        camera = gr.Image(label="Camera", sources=["webcam"], streaming=True, type="filepath")
        overlay = gr.Image(label=models.titles[0], interactive=False, elem_id="camera_overlay")

    def look(file: str | None):
        if file is None:
            return None
        with told_to_visitors():
            found = models.see(file)
        return models.draw(found, KINDS[0], 0.5, range(len(models.names)))[0]

    undecoded(camera).stream(look, camera, overlay, **QUEUE, stream_every=0.3, time_limit=60, show_progress="hidden")
