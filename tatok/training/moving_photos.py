"""Clips for training: a camera that moves over photos, and pieces of real videos."""

from __future__ import annotations

import io
import itertools
import math
import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from tatok.schemas.errors import SourceError
from tatok.schemas.urls import open_to_read
from tatok.training.config import CameraMoves
from tatok.training.photos import EncodedPhoto, RandomCrops, decoding, random_of, this_stream

__all__ = ["VIDEO_EXTENSIONS", "RandomClips", "first_frame", "moving_photo"]

VIDEO_EXTENSIONS = ("mp4", "m4v", "mov", "3gp", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "m2ts", "mts", "flv")
"""Of the files that a folder of videos stands for: those that jobs take."""

_OBJECT_SIDE = (0.15, 0.5)  # over that of the picture


def moving_photo(
    photo: Image.Image,
    other: Image.Image,
    image_size: int,
    num_frames: int,
    moves: CameraMoves,
    rng: random.Random,
    *,
    smallest_crop: float = 0.7,
) -> Tensor:
    """A clip, uint8 [T, 3, S, S], of a camera over an RGB photo; a piece of the `other` one may cross it.

    Shift, zoom and rotation continue evenly from frame to frame; where the photo ends, its mirror image continues.
    """
    is_still = rng.random() < moves.still
    most_pan, most_zoom, most_degrees = (0.0, 0.0, 0.0) if is_still else (moves.pan, moves.zoom, moves.rotation_degrees)
    side = min(photo.size) * rng.uniform(smallest_crop, 1)
    x, y = (rng.uniform(side / 2, max(side / 2, length - side / 2)) for length in photo.size)
    pan_x, pan_y = (rng.uniform(-most_pan, most_pan) for _ in "xy")
    zoom, degrees = 1 + rng.uniform(-most_zoom, most_zoom), rng.uniform(-most_degrees, most_degrees)
    paste = _crossing(other, image_size, moves, rng) if rng.random() < moves.object else None
    noise = np.random.default_rng(rng.getrandbits(64))
    deviation = rng.uniform(0, moves.noise)
    # The reducing filter's work: transform() samples, and would alias.
    scale = max(1.0, side / image_size)
    canvas = _mirrored(photo.resize([max(1, round(length / scale)) for length in photo.size], Image.Resampling.LANCZOS))
    width, height = canvas.width // 3, canvas.height // 3
    frames = []
    for number in range(num_frames):
        # From a pixel of the frame to one of the canvas.
        step = side * zoom**number / scale / image_size
        angle = math.radians(degrees * number)
        centre = width + (x + pan_x * side * number) / scale, height + (y + pan_y * side * number) / scale
        cos, sin = step * math.cos(angle), step * math.sin(angle)
        half = image_size / 2
        matrix = (cos, -sin, centre[0] - half * (cos - sin), sin, cos, centre[1] - half * (sin + cos))
        frame = canvas.transform((image_size, image_size), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
        if paste is not None:
            piece, (left, top), (step_x, step_y) = paste
            frame.paste(piece, (round(left + step_x * number), round(top + step_y * number)), piece)
        pixels = np.asarray(frame.convert("RGB"), np.float32)
        pixels = pixels + deviation * noise.standard_normal(pixels.shape, np.float32)
        frames.append(pixels.round().clip(0, 255).astype(np.uint8))
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()


def _mirrored(photo: Image.Image) -> Image.Image:
    """Three by three of the photo, those beside it mirrored, so that edges meet."""
    array = np.asarray(photo)
    height, width = array.shape[:2]
    rows, columns = ((np.arange(-n, 2 * n)) for n in (height, width))
    rows, columns = (
        np.where((at // n) % 2 == 0, at % n, n - 1 - at % n) for at, n in ((rows, height), (columns, width))
    )
    return Image.fromarray(array[rows[:, None], columns])


def _crossing(
    other: Image.Image, image_size: int, moves: CameraMoves, rng: random.Random
) -> tuple[Image.Image, tuple[float, float], tuple[float, float]]:
    """An ellipse cut out of a photo, RGBA, where its corner is at first, and its step."""
    width, height = (max(2, round(image_size * rng.uniform(*_OBJECT_SIDE))) for _ in "wh")
    piece = other.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2).convert("RGBA")
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    piece.putalpha(Image.fromarray(((x**2 + y**2 <= 1) * 255).astype(np.uint8)))
    most = moves.object_step * image_size
    corner = rng.uniform(0, image_size - width), rng.uniform(0, image_size - height)
    return piece, corner, (rng.uniform(-most, most), rng.uniform(-most, most))


class RandomClips(IterableDataset[Tensor]):
    """An endless stream of clips, uint8 [T, 3, S, S], of moving photos and, for `video_share` of them, of videos.

    Half of them are mirrored. The same (seed, number of workers) gives the same stream; each `rank` has its own.
    `placed` resumes a stream at a place that it reported: (clips given, then the place of the photos, then of videos:
    pass, video in the pass's order, clips of it that were given). It decodes that video from its start.
    Raises SourceError, naming the file, where a photo or video cannot be decoded or no video has T frames.
    """

    START: tuple[int, ...] = (0, *RandomCrops.START, 0, 0, 0)

    def __init__(
        self,
        crops: RandomCrops,
        num_frames: int,
        moves: CameraMoves,
        *,
        videos: Sequence[str] = (),
        video_share: float = 0.0,
        video_fps: float = 8.0,
    ) -> None:
        self.crops = crops
        self.num_frames = num_frames
        self.moves = moves
        self.videos = list(videos)
        self.video_share = video_share if videos else 0.0
        self.video_fps = video_fps

    def placed(self, stream: int, num_streams: int, place: Sequence[int]) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
        """Clips of one worker's stream from a place on, each with the place after it."""
        name, split = self.crops.stream_name(stream, num_streams), 1 + len(RandomCrops.START)
        of_photos, of_videos = tuple(place[1:split]), tuple(place[split:])
        photos, videos = self.crops.payloads(name, of_photos), self._pieces(name, of_videos)
        for number in itertools.count(place[0]):
            rng = random_of(name, "clip", number)
            if rng.random() < self.video_share:
                frames, of_videos = next(videos)
                clip = self._cropped(frames, rng)
            else:
                (photo, _), (other, of_photos) = next(photos), next(photos)
                clip = moving_photo(
                    _rgb(photo),
                    _rgb(other),
                    self.crops.image_size,
                    self.num_frames,
                    self.moves,
                    rng,
                    smallest_crop=self.crops.smallest_crop,
                )
            yield (clip.flip(-1) if rng.random() < 0.5 else clip), (number + 1, *of_photos, *of_videos)

    def __iter__(self) -> Iterator[Tensor]:
        return (clip for clip, _ in self.placed(*this_stream(), self.START))

    def _pieces(self, name: str, place: Sequence[int]) -> Iterator[tuple[list[Image.Image], tuple[int, ...]]]:
        """Frames of clips of the videos, one after another from each, in a new order each pass, and the place after."""
        first_pass, first_video, num_given = place
        for number in itertools.count(first_pass):
            is_whole, num_clips = not (first_video or num_given), 0
            order = random_of(name, "videos", number).sample(self.videos, len(self.videos))
            for video in range(first_video, len(order)):
                frames = _frames(order[video], self.video_fps, num_given * self.num_frames)
                # The last frames of a video, too few for a clip, are left out.
                for given, clip in enumerate(zip(*[frames] * self.num_frames, strict=False), num_given + 1):
                    num_clips += 1
                    yield list(clip), (number, video, given)
                num_given = 0
            first_video = 0
            if is_whole and not num_clips:
                raise SourceError(
                    f"none of {', '.join(self.videos)} has {self.num_frames} frames at {self.video_fps:g} a second"
                )

    def _cropped(self, frames: Sequence[Image.Image], rng: random.Random) -> Tensor:
        """The same random square of every frame."""
        size = self.crops.image_size
        side = min(frames[0].size) * rng.uniform(self.crops.smallest_crop, 1)
        left, top = ((length - side) * rng.random() for length in frames[0].size)
        box = (left, top, left + side, top + side)
        squares = [frame.resize((size, size), Image.Resampling.BICUBIC, box=box) for frame in frames]
        return torch.from_numpy(np.stack([np.asarray(square) for square in squares])).permute(0, 3, 1, 2).contiguous()


def _rgb(photo: EncodedPhoto) -> Image.Image:
    with decoding(photo.path, photo.number), Image.open(io.BytesIO(photo.data)) as encoded:
        return encoded.convert("RGB")


def first_frame(path: str) -> Image.Image:
    """The first frame of a video; raises SourceError, naming the file, if there is none."""
    for frame in _frames(path, 1.0, 0):
        return frame
    raise SourceError(f"{path} has no frame; take it out", is_permanent=True)


def _frames(path: str, fps: float, num_skipped: int) -> Iterator[Image.Image]:
    """The frames of a video that are shown every 1 / fps seconds from the first one on, but not the first of these."""
    import av  # only where there are videos: training on photos does without FFmpeg
    from av.error import FFmpegError

    try:
        with open_to_read(path) as file, av.open(file, "r") as container:
            due: float | None = None
            number = 0
            for frame in container.decode(video=0):
                at_s = float(frame.time or 0.0)
                if due is None:
                    due = at_s
                if at_s >= due - 1e-6:
                    due += 1 / fps
                    number += 1
                    if number > num_skipped:
                        yield frame.to_image()
    except (OSError, IndexError, FFmpegError) as error:
        raise SourceError(f"cannot read frames from {path}: {error}; take it out") from error
