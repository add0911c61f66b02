"""Exact frames of a video file, through PyAV: frame i is the i-th frame that a decode of the whole file gives.

What is exact and how: `video_index` lists the presentation times of all frames. Where a container stores them (MP4, MOV,
Matroska, WebM) the decoder starts at the last key frame shown no later than the frame wanted, and every frame that comes
out must be the one that the index expects there; if one is not, the file is decoded from its start, checked the same
way, and what fails that is BadData. Other containers (AVI, MPEG-TS, ...) are always decoded from their start. Damage
inside a picture that the decoder conceals without saying so cannot be told from the picture.

Frames come upright: a display matrix (a phone's rotation by a multiple of 90 degrees, a mirror) is applied, as players
and OpenCV do. Annotations made on such pictures fit; size_hw is the upright size. Decoding uses one thread per video, so
that forks are safe and worker processes do not fight; many videos are read in many threads or processes.
"""

import itertools
import operator
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable
from typing import Any

import numpy as np

from penstock.errors import BadData, UsageError
from penstock.readers.video_index import (
    VideoIndex,
    frames_of,
    libav_errors,
    open_stream,
    packets_of,
    turned,
    video_index,
)
from penstock.source import check_index

SEEK_COST = 8
"""Frames that may be decoded in vain before a jump forward seeks."""


class Video:
    """The frames of one video file.

    Safe to read from many threads (one decodes at a time); survives a fork; pickles with its index and without its
    decoder.

    Args:
        path: the file.
        index: what `video_index(path)` gave earlier; None makes it, which reads the file once without decoding it
            (see `video_index`).

    Raises:
        MissingExtra: PyAV is not installed.
        SourceNotFound: no such file.
        BadData: no video, no frames, a truncated or damaged file, pictures that are too large.
    """

    def __init__(self, path: str | os.PathLike[str], *, index: VideoIndex | None = None) -> None:
        self.path = os.fspath(path)
        self.index = video_index(self.path) if index is None else index
        self._states: dict[int, _State] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_states": {}}

    def __len__(self) -> int:
        return len(self.index.pts)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the frames as given, upright."""
        return self.index.size_hw

    @property
    def fps(self) -> float:
        """Average frames per second, as the container states it, or measured where it does not."""
        return self.index.fps

    def time_s(self, i: int) -> float:
        """Seconds from the first frame to frame i; i / fps where the file states no times."""
        return self.index.time_s(check_index(operator.index(i), len(self)))

    def __getitem__(self, i: int) -> np.ndarray:
        """Frame i as (H, W, 3) uint8 RGB; a negative i counts from the end.

        Raises:
            IndexError: outside.
            BadData: the file is damaged there, or changed since it was indexed.
        """
        return self.read([i])[0]

    def read(self, indices: Iterable[int]) -> list[np.ndarray]:
        """Frames in the order asked, each (H, W, 3) uint8 RGB. Each stretch is decoded once, in ascending order.

        Raises:
            IndexError: one is outside.
            BadData: as `video[i]`.
        """
        wanted = [check_index(operator.index(i), len(self)) for i in indices]
        found: dict[int, np.ndarray] = {}
        state = self._states.setdefault(os.getpid(), _State())
        with state.lock:
            for i in sorted(set(wanted)):
                found[i] = self._frame(state, i)
        once: set[int] = set()
        frames = []
        for i in wanted:
            frames.append(found[i].copy() if i in once else found[i])
            once.add(i)
        return frames

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        state = self._states.get(os.getpid())
        if state is not None:
            with state.lock:
                state.close()

    def _frame(self, state: "_State", i: int) -> np.ndarray:
        try:
            with libav_errors(self.path):
                if state.decoder is None:
                    state.decoder = _Decoder(self.path, self.index)
                try:
                    frame = state.decoder.frame(i)
                except _Lost:
                    state.close()
                    state.decoder = _Decoder(self.path, self.index)
                    frame = state.decoder.frame(i, seek=False)
                pixels: np.ndarray = frame.to_ndarray(format="rgb24")
        except _Lost as lost:
            state.close()
            raise BadData(f"{self.path}: frame {i} of {len(self)}: {lost}; the file is damaged") from lost
        except BaseException:
            state.close()
            raise
        upright = turned(pixels, self.index.turn)
        if upright.shape[:2] != self.size_hw:
            raise BadData(f"{self.path}: frame {i}: expected {self.size_hw} (H, W), got {upright.shape[:2]}")
        return upright


class VideoPool:
    """Many videos by path, a bounded number of them open.

    Thread-safe; survives a fork; pickles empty. Indexes of the last `max_known` videos are kept.

    Args:
        max_open: files open at most; more only while more threads than that read different videos at once.
        max_known: videos whose index is remembered.
    """

    def __init__(self, max_open: int = 8, *, max_known: int = 1024) -> None:
        if not 1 <= max_open <= max_known:
            raise UsageError(f"VideoPool: expected 1 <= max_open <= max_known, got {max_open} and {max_known}")
        self.max_open = max_open
        self.max_known = max_known
        self._states: dict[int, _PoolState] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_states": {}}

    def frames(self, path: str | os.PathLike[str], indices: Iterable[int]) -> list[np.ndarray]:
        """As `Video(path).read(indices)`: (H, W, 3) uint8 RGB each."""
        with _Borrowed(self, path) as video:
            return video.read(indices)

    def video(self, path: str | os.PathLike[str]) -> Video:
        """The video itself, for its length, size and times. Frames are better read through `frames`."""
        with _Borrowed(self, path) as video:
            return video

    def close(self) -> None:
        """Close every file and forget every index."""
        state = self._states.pop(os.getpid(), None)
        for entry in list(state.entries.values()) if state else []:
            if entry.video is not None:
                entry.video.close()

    def num_open(self) -> int:
        """Files open in this process."""
        state = self._states.get(os.getpid())
        return 0 if state is None else len(state.opened)


class _Lost(Exception):
    """The decoder gave another frame than the index expects."""


class _State:
    """What belongs to one process: a forked child has its own, and leaves its parent's alone."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.decoder: _Decoder | None = None

    def close(self) -> None:
        if self.decoder is not None:
            self.decoder.container.close()
            self.decoder = None


class _Decoder:
    """An open file that gives frames in presentation order from where it stands."""

    def __init__(self, path: str, index: VideoIndex) -> None:
        self._index = index
        self.container, self._stream = open_stream(path, index.identity)
        self._path = path
        self._frames = frames_of(packets_of(path, self.container, self._stream))
        self._next = 0
        self._first_pts: int | None = None
        self._last: Any = None

    def frame(self, i: int, *, seek: bool = True) -> Any:
        """Frame i.

        Raises:
            _Lost: the decoder gave something else.
        """
        if i == self._next - 1 and self._last is not None:
            return self._last
        key = self._index.key_before(i) if seek else None
        if key is not None and (i < self._next or self._index.key_frames[key] > self._next + SEEK_COST):
            self._seek(key)
        elif i < self._next:
            raise _Lost("it lies behind, and the file has no key frame to start from")
        while self._next <= i:
            self._advance()
        return self._last

    def _advance(self) -> None:
        frame = next(self._frames, None)
        while frame is not None and self._first_pts is not None and frame.pts is not None:
            if frame.pts >= self._first_pts:
                self._first_pts = None
            else:  # shown before the key frame, decoded after it: it may lack what it refers to
                frame = next(self._frames, None)
        expected = self._index.pts_of(self._next)
        if frame is None:
            raise _Lost(f"the decoder ends after {self._next} frames")
        if frame.pts != expected:
            raise _Lost(f"expected time {expected} at frame {self._next}, the decoder gave {frame.pts}")
        if frame.is_corrupt:
            raise _Lost(f"the decoder marks frame {self._next} as damaged")
        self._last = frame
        self._next += 1

    def _seek(self, key: int) -> None:
        """Stand at a key frame.

        Raises:
            _Lost: no seek leads to it.
        """
        pts, dts = int(self._index.key_pts[key]), int(self._index.key_dts[key])
        self._last = None
        for target in dict.fromkeys((pts, dts)):
            self.container.seek(target, stream=self._stream, backward=True)
            packets = packets_of(self._path, self.container, self._stream)
            for packet in packets:
                if packet.pts == pts and packet.is_keyframe:
                    self._frames = frames_of(itertools.chain([packet], packets))
                    self._next = int(self._index.key_frames[key])
                    self._first_pts = pts
                    return
                if packet.is_keyframe and packet.pts is not None and packet.pts > pts:
                    break
        raise _Lost(f"no seek leads to the key frame at time {pts}")


class _Entry:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.video: Video | None = None


class _PoolState:
    """What belongs to one process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.entries: OrderedDict[str, _Entry] = OrderedDict()
        self.opened: OrderedDict[str, _Entry] = OrderedDict()
        self.used: Counter[str] = Counter()


class _Borrowed:
    """A pool's video, kept open while it is used."""

    def __init__(self, pool: VideoPool, path: str | os.PathLike[str]) -> None:
        self._pool = pool
        self._path = os.fspath(path)
        self._state = pool._states.setdefault(os.getpid(), _PoolState())

    def __enter__(self) -> Video:
        state = self._state
        with state.lock:
            entry = state.entries.setdefault(self._path, _Entry())
            state.entries.move_to_end(self._path)
            state.opened[self._path] = entry
            state.opened.move_to_end(self._path)
            state.used[self._path] += 1
        try:
            with entry.lock:
                if entry.video is None:
                    entry.video = Video(self._path)
                return entry.video
        except BaseException:
            self._give_back(forget=True)
            raise

    def __exit__(self, *error: object) -> None:
        self._give_back(forget=isinstance(error[1], BadData))

    def _give_back(self, *, forget: bool) -> None:
        """Close what is over the limits and not in use."""
        state, idle = self._state, []
        with state.lock:
            state.used[self._path] -= 1
            if not state.used[self._path]:
                del state.used[self._path]
                if forget:
                    state.entries.pop(self._path, None)
                    idle.append(state.opened.pop(self._path, None))
            for name in [name for name in state.opened if name not in state.used]:
                if len(state.opened) > self._pool.max_open:
                    idle.append(state.opened.pop(name))
            for name in [name for name in state.entries if name not in state.opened]:
                if len(state.entries) > self._pool.max_known:
                    del state.entries[name]
            for entry in idle:
                if entry is not None and entry.video is not None:
                    entry.video.close()
