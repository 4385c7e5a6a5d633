"""Videos, cameras and streams: their frames, and what is written of them (needs `pip install av`)."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from .pictures import PictureFiles, Predictor
from .results import Results


CAMERAS = {"linux": ("v4l2", "/dev/video"), "darwin": ("avfoundation", ""), "win32": ("dshow", "video=")}


class Video:
    """Frames of a file, a camera or a stream, upright: iterate for PIL images.

    Args:
        source: file, camera:NUMBER or address.

    Raises:
        ValueError: if it cannot be opened or decoded, or PyAV is not installed.
    """

    def __init__(self, source: Path | str):
        try:
            import av
        except ImportError as error:
            raise ValueError(f"{source}: videos are read by PyAV; `pip install av`") from error
        self.errors, self.source = av.FFmpegError, source
        name, kind = str(source), None
        if name.startswith("camera:"):
            kind, prefix = CAMERAS[sys.platform]
            name = prefix + name.removeprefix("camera:")
        try:
            self.container = av.open(name, format=kind)
            self.stream = self.container.streams.video[0]
        except (av.FFmpegError, IndexError) as error:
            raise ValueError(f"{source} cannot be opened as a video ({error})") from error
        self.stream.thread_type = "AUTO"
        self.rate = self.stream.average_rate or 25  # frames a second
        self.length = self.stream.frames or None  # unknown of streams

    def __iter__(self) -> Iterator[Image.Image]:
        try:
            for frame in self.container.decode(self.stream):
                image = frame.to_image()
                yield image.rotate(frame.rotation, expand=True) if frame.rotation else image
        except self.errors as error:
            raise ValueError(f"{self.source} cannot be decoded further ({error})") from error

    def close(self) -> None:
        """Lets the file or camera go."""
        self.container.close()


class Frames:
    """The label map and the overlay of each frame, in a folder.

    Args:
        name: of the folder, below that of the results.
    """

    def __init__(self, results: Results, name: Path, video: Video):
        self.results, self.name, self.video, self.count = results, name, video, 0

    def write(self, predictor: Predictor, image: Image.Image, label_map: np.ndarray) -> None:
        """Writes those of the next frame."""
        files = PictureFiles(self.results, self.name / f"{self.count:06d}", self.video.source)
        files.write(predictor, image, label_map)
        self.count += 1

    def close(self) -> None:
        """Nothing is open."""


class Film:
    """An MP4 of the overlays above the legend of all classes, `NAME_overlay.mp4`.

    Args:
        name: path below the folder of results.

    Raises:
        ValueError: if there is a file of the user.
    """

    def __init__(self, results: Results, name: Path, video: Video):
        self.results, self.video = results, video
        self.target = results.claim(f"{name}_overlay.mp4", video.source)
        self.unfinished = results.unfinished(self.target)
        self.container = self.stream = None  # opened by the first frame, which tells the size

    def write(self, predictor: Predictor, image: Image.Image, label_map: np.ndarray) -> None:
        """Appends a frame."""
        import av  # is there: the frames came through it

        picture = predictor.draw(image, label_map, list(range(len(predictor.names))))
        if self.container is None:
            self.container = av.open(str(self.unfinished), "w")
            self.stream = self.container.add_stream("libx264", rate=self.video.rate)
            self.stream.width, self.stream.height = (edge + edge % 2 for edge in picture.size)  # the codec's condition
            self.stream.pix_fmt = "yuv420p"
        picture = picture.crop((0, 0, self.stream.width, self.stream.height))
        self.container.mux(self.stream.encode(av.VideoFrame.from_image(picture)))

    def close(self) -> None:
        """Puts the film into its place, if it has a frame."""
        if self.container is not None:
            self.container.mux(self.stream.encode())
            self.container.close()
            self.results.finish(self.unfinished, self.target)


def segment_video(
    predictor: Predictor,
    source: Path | str,
    name: Path,
    results: Results,
    *,
    as_frames: bool = False,
    max_frames: int | None = None,
    batch_size: int = 1,
) -> None:
    """Writes an overlay video, or a folder of pictures. Ctrl-C ends it at the frame: what came before is written.

    Args:
        source: video file, camera:NUMBER or address.
        name: path of the results below their folder.
        as_frames: write the pictures of each frame instead of a film.
        max_frames: stop after so many.
        batch_size: frames that go through the model together.

    Raises:
        ValueError: if the video cannot be read, or is torn, or a result is a file of the user; what came before the
            fault is written.
    """
    with closing(Video(source)) as video, closing((Frames if as_frames else Film)(results, name, video)) as out:
        lengths = [length for length in (video.length, max_frames) if length]
        bar = tqdm(total=min(lengths, default=None), unit="frame", desc=str(source))
        frames = islice(video, max_frames)
        with ThreadPoolExecutor(1) as pool, bar, suppress(KeyboardInterrupt):
            ahead = pool.submit(lambda: list(islice(frames, batch_size)))
            while images := ahead.result():
                ahead = pool.submit(lambda: list(islice(frames, batch_size)))
                for image, label_map in zip(images, predictor.predict(images), strict=True):
                    out.write(predictor, image, label_map)
                    bar.update()
