"""Segments pictures and videos: label maps as PNG, overlays with a legend.

    segtx predict outputs/segformer_scenes photo.jpg
    segtx predict outputs/camvid/best frames/ --output_dir predictions
    segtx predict nvidia/segformer-b0-finetuned-ade-512-512 'holiday/**/*.jpg' drive.mp4
    segtx predict outputs/camvid/best camera:0 --max_frames 500      # Ctrl-C ends it, too

Writes, for each picture, `NAME_labels.png` (palette image, the pixel value is the class id) and `NAME_overlay.png`; for
a georeferenced TIFF also `NAME_labels.tif` at the same place on Earth (needs `pip install rasterio`). For each video or
camera `NAME_overlay.mp4`, or with `--frames` a folder NAME with the two pictures of each frame (`pip install av`).
With `--format` the label maps of pictures are also written as outlines, exact to the pixel, to be corrected in tools of
annotation: `coco` (`annotations.coco.json`), `labelme` (`NAME.json`) or `yolo` (`data.yaml`, `labels/NAME.txt`); or for
a test server, in a folder to be zipped: `cityscapes` (`cityscapes/NAME.png`, label ids) or `ade20k` (`ade20k/NAME.png`,
classes from 1 on).
Folders below a folder or pattern stay; pictures that would get the same name keep their suffix: `a.jpg_labels.png`.

Only files that this command wrote are replaced, and they are never taken for pictures to segment; the hidden file
`.segtx_results` in `--output_dir` lists them. What cannot be read or written is reported at the end, and the rest is
done; the exit status is then 1.
"""

import sys
from dataclasses import dataclass
from typing import Literal

from ..settings import setting
from .flags import FlagParser, as_flags
from .model_flags import ModelSettings, load
from .training_flags import named_flags


@dataclass
class PredictionSettings:
    """Results."""

    output_dir: str = setting("predictions", "Folder of the results.")
    format: Literal["coco", "labelme", "yolo", "cityscapes", "ade20k"] | None = setting(
        None, "Write the label maps of pictures also as outlines for tools of annotation, or for a test server."
    )
    alpha: float = setting(0.5, "Opacity of the overlay.", "[0, 1]")
    batch_size: int = setting(1, "Pictures that go through the model together.", "[1, inf)")
    frames: bool = setting(False, "Of videos, write the pictures of each frame instead of a film.")
    max_frames: int | None = setting(None, "Stop a video or camera after so many frames.", "[1, inf)")


def run(command_line: list[str]) -> int:
    """The command; returns its exit status."""
    parser = FlagParser("predict", __doc__)
    parser.add_argument("model", help="Folder of a saved model, or Hub name.")
    parser.add_argument("images", nargs="+", help="Files, folders, quoted glob patterns, camera:NUMBER, rtsp://...")
    parser.add_dataclass(PredictionSettings)
    parser.add_dataclass(ModelSettings)
    arguments = parser.parse_args(command_line)
    settings = parser.values_of(PredictionSettings, arguments)
    try:
        with named_flags(PredictionSettings, ModelSettings):
            failures = _predict(arguments, settings, parser.values_of(ModelSettings, arguments))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"; results that were written are in {settings.output_dir}") from None
    for message in failures.values():
        print(f"error: {as_flags(message, vars(settings))}", file=sys.stderr)
    return 1 if failures else 0


def _predict(arguments, settings: PredictionSettings, model_settings: ModelSettings) -> dict:
    """Predicts; returns what was wrong with the files that failed."""
    from ..prediction import Predictor, Results, find_sources, is_video, segment_images, segment_video

    names, passed_over = find_sources(arguments.images)
    if passed_over:
        print(f"passed over {len(passed_over)} results of earlier runs, such as {passed_over[0]}")
    if settings.format and (video := next(filter(is_video, names), None)):
        raise ValueError(f"format is for pictures, and {video} is a video; segment it in a run of its own")
    results = Results(settings.output_dir)
    predictor = Predictor(*load(arguments.model, model_settings), settings.alpha)
    images = {source: name for source, name in names.items() if not is_video(source)}
    failures = segment_images(predictor, images, results, settings.batch_size, settings.format)
    for video in filter(is_video, names):
        try:
            segment_video(
                predictor,
                video,
                names[video],
                results,
                as_frames=settings.frames,
                max_frames=settings.max_frames,
                batch_size=settings.batch_size,
            )
        except ValueError as error:
            failures[video] = str(error)
    print(f"{len(names) - len(failures)} of {len(names)} segmented, results in {settings.output_dir}")
    return failures
