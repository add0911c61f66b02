"""What is known of a video file without decoding it all: the times of its frames, where decoding can start, its size."""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from penstock.errors import BadData, MissingExtra, SourceNotFound

MAX_PIXELS = 1 << 26
"""Of one frame; a larger one is taken for a bomb. 8K video has 2^25."""

NO_PTS = -(1 << 63)
"""Stands in `VideoIndex.pts` for a frame without a time."""

FORMATS = "mov,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,ivf,nut,h264,hevc,m4v,mpegvideo,y4m,yuv4mpegpipe,gif,apng"
"""Containers that are opened; never playlists, which name other files."""

_SEEKABLE = ("mov", "matroska")
"""Containers that store the time of each packet, in an order that seeking keeps."""

_ONE_TO_ONE = ("h264", "hevc", "av1", "vp9", "ffv1", "mjpeg", "png", "prores", "rawvideo")
"""Codecs of which, inside those containers, each packet gives one frame."""

_SEGMENT = b"\x18\x53\x80\x67"


@dataclass(frozen=True, kw_only=True)
class VideoIndex:
    """Where the frames of a video are. It pickles, and may be kept by a reader to open the file faster."""

    pts: np.ndarray
    """(N,) int64: time of each frame in presentation order, in units of time_base; NO_PTS where there is none."""
    key_pts: np.ndarray
    """(K,) int64, ascending: times of the packets at which decoding can start; none where it starts at the front."""
    key_dts: np.ndarray
    """(K,) int64: their times of decoding, by which some containers seek."""
    key_frames: np.ndarray
    """(K,) int64: the first frame shown at or after each."""
    time_base: Fraction
    size_hw: tuple[int, int]
    """Of the frames upright."""
    turn: str
    """How a stored frame becomes upright: any of "t" (transpose), "h" (mirror left-right), "v" (top-bottom), in order."""
    fps: float
    """Frames per second: the average that the container states, else the measured one; NaN where there is neither."""
    identity: tuple[int, int]
    """Size in bytes and time of change (ns) of the file."""

    def pts_of(self, i: int) -> int | None:
        """Time of frame i in units of time_base."""
        pts = int(self.pts[i])
        return None if pts == NO_PTS else pts

    def time_s(self, i: int) -> float:
        """Seconds from the first frame to frame i; i / fps where there are no times."""
        first, pts = self.pts_of(0), self.pts_of(i)
        return i / self.fps if first is None or pts is None else float((pts - first) * self.time_base)

    def key_before(self, i: int) -> int | None:
        """The last key that is shown no later than frame i; None if decoding must start at the front."""
        key = int(np.searchsorted(self.key_pts, self.pts[i], side="right")) - 1
        return key if key >= 0 else None


def video_index(path: str | os.PathLike[str]) -> VideoIndex:
    """The index of a video file.

    Packets are read without decoding them, and one frame is decoded. Everything is decoded, once, where packets do not
    tell which frames there will be: other containers than MP4, MOV, Matroska and WebM; codecs that may hide or drop
    frames (MPEG-4 part 2, VP8, ...); interlaced video; times that are missing or there twice; a stream that does not
    begin with a key frame. The number of frames that the container states is never believed.

    Raises:
        MissingExtra: PyAV is not installed.
        SourceNotFound: no such file.
        BadData: no video, no frames, a truncated or damaged file, pictures that are too large, or a display matrix that
            is no multiple of 90 degrees. Truncation that falls between two packets is not noticed in containers other
            than MP4, MOV, Matroska and WebM: nothing there tells it.
    """
    path = os.fspath(path)
    with libav_errors(path):
        container, stream = open_stream(path)
        with container:
            packets = [_Packet(packet) for packet in packets_of(path, container, stream) if packet.size]
            _check_complete(path, container, stream, packets)
            format_name, codec = container.format.name, stream.codec_context.name
            progressive = int(getattr(stream.codec_context, "field_order", 0) or 0) <= 1
            time_base, rate = stream.time_base, stream.average_rate or stream.guessed_rate
        stored = format_name.startswith(_SEEKABLE) and _have_times(packets)
        trusted = stored and progressive and codec in _ONE_TO_ONE and _begins_with_key(packets)
        container, stream = open_stream(path)
        with container:
            decoded = frames_of(packets_of(path, container, stream))
            first = next(decoded, None)
            if first is None:
                raise BadData(f"{path}: expected a video of at least one frame, got none from {len(packets)} packets")
            turn = _turn(path, first)
            shape = (first.width, first.height) if "t" in turn else (first.height, first.width)
            pts = [packet.pts for packet in packets if not packet.discard] if trusted else _times(path, first, decoded)
    times = np.array([NO_PTS if one is None else one for one in pts], np.int64)
    if trusted:
        times.sort()
    seekable = stored and NO_PTS not in times and bool((np.diff(times) > 0).all())
    keys = sorted((one.pts, one.pts if one.dts is None else one.dts) for one in packets if one.key) if seekable else []
    key_pts, key_dts = np.array(keys, np.int64).reshape(-1, 2).T
    stat = os.stat(path)
    return VideoIndex(
        pts=times,
        key_pts=key_pts,
        key_dts=key_dts,
        key_frames=np.searchsorted(times, key_pts),
        time_base=time_base,
        size_hw=shape,
        turn=turn,
        fps=float(rate) if rate else _measured_fps(times, time_base),
        identity=(stat.st_size, stat.st_mtime_ns),
    )


def open_stream(path: str, identity: tuple[int, int] | None = None) -> tuple[Any, Any]:
    """An open PyAV container and its video stream, decoding in one thread.

    Args:
        path: the file.
        identity: size and time of change that it must have; None checks none.

    Raises:
        SourceNotFound: no such file.
        BadData: it has no video stream, its pictures are too large, or it changed.
    """
    av = _av()
    if not Path(path).is_file():
        raise SourceNotFound(f"{path}: no such file; expected a video")
    stat = os.stat(path)
    if identity is not None and (stat.st_size, stat.st_mtime_ns) != identity:
        raise BadData(f"{path}: the file changed since it was indexed; open the video again")
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
    container = av.open(f"file:{path}", options=options, metadata_errors="replace")
    try:
        stream = container.streams.best("video")
        if stream is None:
            raise BadData(f"{path}: expected a video, got a file of {len(container.streams)} streams without any")
        codec = stream.codec_context
        if codec is None:
            raise BadData(f"{path}: expected a video that can be decoded, got one of an unknown codec")
        if not 0 < codec.width * codec.height <= MAX_PIXELS:
            raise BadData(f"{path}: expected at most {MAX_PIXELS} pixels, got {codec.height} x {codec.width}")
        codec.thread_count = 1
        codec.options = {"max_pixels": str(MAX_PIXELS)}
    except BaseException:
        container.close()
        raise
    return container, stream


def packets_of(path: str, container: Any, stream: Any) -> Iterator[Any]:
    """The packets of a stream from where the container stands, the empty one that flushes the decoder included.

    Raises:
        BadData: another stream turns up on the way, which a damaged file does.
    """
    try:
        yield from container.demux(stream)
    except IndexError as error:  # PyAV looks up a stream that was not there when it opened the file
        raise BadData(f"{path}: expected {len(container.streams)} streams, met another one in the middle") from error


def frames_of(packets: Iterable[Any]) -> Iterator[Any]:
    """The decoded frames of packets, in presentation order."""
    for packet in packets:
        yield from packet.decode()


@contextmanager
def libav_errors(path: str) -> Iterator[None]:
    """What libav finds wrong with the data becomes BadData; errors of the system stay as they are."""
    av = _av()
    try:
        yield
    except av.error.FFmpegError as error:
        if isinstance(error, OSError) and not (error.errno in (errno.EIO, errno.EPERM) and _can_be_read(path)):
            raise
        raise BadData(f"{path}: expected a whole video file: {error}") from error


def turned(pixels: np.ndarray, turn: str) -> np.ndarray:
    """(H, W, 3) uint8 as stored to upright, contiguous; see `VideoIndex.turn`."""
    for step in turn:
        pixels = {"t": pixels.swapaxes(0, 1), "h": pixels[:, ::-1], "v": pixels[::-1]}[step]
    return np.ascontiguousarray(pixels)


def _can_be_read(path: str) -> bool:
    """Whether the system reads the whole file: libav says EIO of a file that ends too early, too, and
    EPERM where no seek in a damaged one leads anywhere.

    Raises:
        OSError: it does not.
    """
    with open(path, "rb") as opened:
        while opened.read(1 << 20):
            pass
    return True


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingExtra("av", "video", "decoding videos") from error
    return av


class _Packet:
    __slots__ = ("corrupt", "discard", "dts", "key", "pts")

    def __init__(self, packet: Any) -> None:
        self.pts: int | None = packet.pts
        self.dts: int | None = packet.dts
        self.key: bool = packet.is_keyframe
        self.discard: bool = packet.is_discard
        self.corrupt: bool = packet.is_corrupt


def _have_times(packets: list[_Packet]) -> bool:
    """Whether every packet has a presentation time of its own."""
    times = {packet.pts for packet in packets}
    return None not in times and len(times) == len(packets)


def _begins_with_key(packets: list[_Packet]) -> bool:
    """Whether the first packet is a key and none that is shown comes before it."""
    shown = [packet.pts for packet in packets if not packet.discard and packet.pts is not None]
    return bool(shown) and packets[0].key and packets[0].pts is not None and packets[0].pts <= min(shown)


def _check_complete(path: str, container: Any, stream: Any, packets: list[_Packet]) -> None:
    """Refuse a file whose end is missing."""
    damaged = sum(packet.corrupt for packet in packets)
    if damaged:
        raise BadData(f"{path}: {damaged} of {len(packets)} packets are cut off or damaged; copy the file again")
    if container.format.name.startswith("mov") and len(packets) < len(stream.index_entries):
        raise BadData(
            f"{path}: its index lists {len(stream.index_entries)} frames, the file holds {len(packets)}; it is truncated"
        )
    if container.format.name.startswith("matroska"):
        expected, found = _matroska_end(path), os.path.getsize(path)
        if expected > found:
            raise BadData(f"{path}: expected {expected} bytes, as its header says, got {found}; it is truncated")


def _matroska_end(path: str) -> int:
    """The byte at which the segment ends according to its header; 0 where that does not say."""
    with open(path, "rb") as opened:
        head = opened.read(4096)
    at = head.find(_SEGMENT) + len(_SEGMENT)
    if at < len(_SEGMENT) or at >= len(head) or not head[at]:
        return 0
    width = 9 - head[at].bit_length()
    size = int.from_bytes(head[at : at + width], "big") & ((1 << 7 * width) - 1)
    return 0 if size == (1 << 7 * width) - 1 else at + width + size


def _times(path: str, first: Any, rest: Iterator[Any]) -> list[int | None]:
    """Times of all frames, by decoding them."""
    times: list[int | None] = [first.pts]
    for frame in rest:
        times.append(frame.pts)
        if frame.is_corrupt:
            raise BadData(f"{path}: the decoder marks frame {len(times) - 1} as damaged")
    return times


def _turn(path: str, frame: Any) -> str:
    """The steps that make a frame upright, from its display matrix: x' = a x + c y, y' = b x + d y."""
    data = next((one for one in frame.side_data if one.type.name == "DISPLAYMATRIX"), None)
    if data is None:
        return ""
    matrix = np.frombuffer(bytes(data), "<i4")
    a, b, c, d = (int(matrix[place]) for place in (0, 1, 3, 4))
    if a and d and not b and not c:
        return ("h" if a < 0 else "") + ("v" if d < 0 else "")
    if b and c and not a and not d:
        return "t" + ("h" if c < 0 else "") + ("v" if b < 0 else "")
    raise BadData(f"{path}: expected a rotation by a multiple of 90 degrees, got the display matrix {matrix.tolist()}")


def _measured_fps(times: np.ndarray, time_base: Fraction | None) -> float:
    span = int(times[-1]) - int(times[0])
    return (len(times) - 1) / float(span * time_base) if span > 0 and time_base else float("nan")
