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

Millions of images go into shards, each image once, by as many processes and machines as there are; what was killed is
started again and goes on. Images are files, Parquet or WebDataset, on disk, on the Hub or at an address:

    segtx predict outputs/camvid/best archive/ --shards parquet --output_dir labels
    accelerate launch -m hf_segtx predict outputs/camvid/best --dataset_name USER/photos --shards webdataset

Folders below a folder or pattern stay; pictures that would get the same name keep their suffix: `a.jpg_labels.png`.

Only files that this command wrote are replaced, and they are never taken for pictures to segment; the hidden file
`.segtx_results` in `--output_dir` lists them. What cannot be read or written is reported at the end, and the rest is
done; the exit status is then 1.
"""

import os
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


@dataclass
class ArchiveSettings:
    """Archives."""

    shards: Literal["parquet", "webdataset"] | None = setting(
        None, "Write shards: label maps, sizes, confidence and entropy of each image, instead of a file for each."
    )
    images_per_shard: int = setting(1000, "Images in a shard.", "[1, inf)")
    uncertainty: bool = setting(True, "Confidence and entropy of each image, too, which takes longer.")
    dataset_name: str | None = setting(
        None, "Instead of files: Parquet or WebDataset on the Hub (OWNER/NAME), in a folder, or at an address."
    )
    dataset_config_name: str | None = setting(None, "Configuration of that data set.")
    revision: str | None = setting(None, "Branch, tag or commit of that data set.")
    split: str | None = setting(None, "Its split; None is the only one.")
    image_column_name: str | None = setting(None, "Column of the images, if it cannot be guessed.")


def run(command_line: list[str]) -> int:
    """The command; returns its exit status."""
    parser = FlagParser("predict", __doc__)
    parser.add_argument("model", help="Folder of a saved model, or Hub name.")
    parser.add_argument("images", nargs="*", help="Files, folders, quoted glob patterns, camera:NUMBER, rtsp://...")
    parser.add_dataclass(PredictionSettings)
    parser.add_dataclass(ArchiveSettings)
    parser.add_dataclass(ModelSettings)
    arguments = parser.parse_args(command_line)
    settings = parser.values_of(PredictionSettings, arguments)
    archive = parser.values_of(ArchiveSettings, arguments)
    if bool(arguments.images) == bool(archive.dataset_name):
        parser.error("name images, or a data set by --dataset_name" + " and not both" * bool(arguments.images))
    if archive.dataset_name and not archive.shards:
        parser.error("--dataset_name needs --shards parquet or webdataset, which its label maps go to")
    try:
        with named_flags(PredictionSettings, ArchiveSettings, ModelSettings):
            model_settings = parser.values_of(ModelSettings, arguments)
            if archive.shards:
                return _predict_shards(arguments, settings, archive, model_settings)
            failures = _predict(arguments, settings, model_settings)
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
    predictor = Predictor(*load(arguments.model, model_settings, optimize=True), settings.alpha)
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


def _predict_shards(
    arguments, settings: PredictionSettings, archive: ArchiveSettings, model_settings: ModelSettings
) -> int:
    """Predicts this process's shards; returns the exit status."""
    import torch

    from ..prediction import Predictor, find_sources, is_video
    from ..prediction.archives import files_as_records, open_archive, segment_archive

    if archive.dataset_name:
        records = open_archive(
            archive.dataset_name,
            archive.dataset_config_name,
            split=archive.split,
            image_column_name=archive.image_column_name,
            token=model_settings.token,
            revision=archive.revision,
        )
    else:
        names, _ = find_sources(arguments.images)
        if video := next(filter(is_video, names), None):
            raise ValueError(f"shards are for pictures, and {video} is a video; segment it in a run of its own")
        records = files_as_records(names)
    if torch.accelerator.is_available() and model_settings.device is None:
        torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", 0)))
    rank, num_processes = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    errors = segment_archive(
        Predictor(*load(arguments.model, model_settings)),
        records,
        settings.output_dir,
        kind=archive.shards,
        images_per_shard=archive.images_per_shard,
        uncertainty=archive.uncertainty,
        batch_size=settings.batch_size,
        rank=rank,
        num_processes=num_processes,
    )
    for message in errors:
        print(f"error: {message}", file=sys.stderr)
    print(f"shards of process {rank + 1} of {num_processes} are in {settings.output_dir}")
    return 1 if errors else 0
