"""Frame i is frame i: every test video carries its frame numbers as a pattern of black and white squares."""

import multiprocessing
import operator
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import BadData, SourceNotFound, UsageError
from penstock.readers import video_index as index_module
from penstock.readers.video import Video, VideoPool
from penstock.readers.video_index import turned, video_index

av = pytest.importorskip("av")

SHARED = Path(__file__).parents[2].parent / "shared"
HEIGHT, WIDTH, SQUARE = 48, 64, 16


def picture(number: int) -> np.ndarray:
    """Bit b of the number is the square b, white for 1; the rest is a colour of its own."""
    pixels = np.full((HEIGHT, WIDTH, 3), (number * 37 % 256, 90, 160), np.uint8)
    for bit in range(8):
        top, left = bit // 4 * SQUARE, bit % 4 * SQUARE
        pixels[top : top + SQUARE, left : left + SQUARE] = 255 * (number >> bit & 1)
    return pixels


def number_of(pixels: np.ndarray) -> int:
    centres = [pixels[bit // 4 * SQUARE + 8, bit % 4 * SQUARE + 8].mean() for bit in range(8)]
    return sum(1 << bit for bit, value in enumerate(centres) if value > 128)


@dataclass
class Kind:
    name: str
    codec: str = "libx264"
    options: dict[str, str] = field(default_factory=lambda: {"preset": "ultrafast"})
    pix_fmt: str = "yuv420p"
    times: Callable[[int], int] = int
    rate: int = 25
    frames: int = 50
    rotation: int | None = None
    one_decode: bool = False
    """Whether the index needs all frames decoded."""


X264 = {"preset": "ultrafast", "bf": "3", "g": "12", "sc_threshold": "0"}
KINDS = {
    kind.name: kind
    for kind in (
        Kind("b_frames.mp4", options={**X264, "b_strategy": "0"}),
        Kind("open_gop.mp4", options={**X264, "b_strategy": "0", "x264-params": "open-gop=1"}),
        Kind("open_gop.mkv", options={**X264, "b_strategy": "0", "x264-params": "open-gop=1"}),
        Kind("late_start.mp4", options=X264, times=lambda i: 1000 + i),
        Kind("vfr.mp4", options=X264, times=lambda i: i * i + i),
        Kind("vfr.mkv", options=X264, times=lambda i: 7 + i * 4 + i % 2),
        Kind("one_key.mp4", options={"preset": "ultrafast", "bf": "2", "g": "1000"}),
        Kind("x265.mp4", codec="libx265", options={"preset": "ultrafast", "x265-params": "keyint=12:log-level=none"}),
        Kind("vp9.webm", codec="libvpx-vp9", options={"g": "12", "cpu-used": "8", "deadline": "realtime"}, frames=20),
        Kind(
            "vp8.webm", codec="libvpx", options={"g": "12", "auto-alt-ref": "1", "lag-in-frames": "8"}, one_decode=True
        ),
        Kind("mpeg4.mp4", codec="mpeg4", options={"bf": "2", "g": "10"}, one_decode=True),
        Kind("mpeg4.avi", codec="mpeg4", options={"bf": "2", "g": "10"}, one_decode=True),
        Kind("stream.ts", options=X264, one_decode=True),
        Kind("raw.h264", options=X264, one_decode=True),
        Kind("same_times.mkv", codec="ffv1", options={}, pix_fmt="bgr0", rate=2500, frames=30, one_decode=True),
        Kind("lossless.mkv", codec="ffv1", options={"g": "5"}, pix_fmt="bgr0"),
        Kind("turned.mp4", options=X264, rotation=-90, frames=5),
    )
}


def write_video(path: Path, kind: Kind) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(kind.codec, rate=kind.rate, options=kind.options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, kind.pix_fmt
        stream.codec_context.time_base = Fraction(1, kind.rate)
        stream.codec_context.thread_count = 1
        if kind.rotation is not None:
            stream.set_display_rotation(kind.rotation)
        for number in range(kind.frames):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24").reformat(format=kind.pix_fmt)
            frame.pts, frame.time_base = kind.times(number), Fraction(1, kind.rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def sequential(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("videos")

    def make(name: str) -> Path:
        if KINDS[name].codec not in av.codecs_available:
            pytest.skip(f"this PyAV has no encoder {KINDS[name].codec}")
        path = folder / name
        return path if path.exists() else write_video(path, KINDS[name])

    return make


@pytest.mark.parametrize("name", [name for name in KINDS if name != "turned.mp4"])
def test_every_frame_is_the_one_of_a_sequential_decode(made: Callable[[str], Path], name: str) -> None:
    path, kind = made(name), KINDS[name]
    truth = sequential(path)
    video = Video(path)
    assert len(video) == len(truth) == kind.frames
    assert video.size_hw == (HEIGHT, WIDTH)
    forward = video.read(range(len(video)))
    order = np.random.default_rng(0).permutation(len(video))[:16].tolist()
    for i, frame in [*enumerate(forward), *((i, video[i]) for i in order)]:
        assert frame.dtype == np.uint8
        assert np.array_equal(frame, truth[i]), f"frame {i}"
        assert number_of(frame) == i


@pytest.mark.parametrize("name", list(KINDS))
def test_the_index_decodes_only_where_packets_do_not_tell(
    made: Callable[[str], Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    times = index_module._times
    monkeypatch.setattr(index_module, "_times", lambda *given: decoded.append(1) or times(*given))
    video_index(made(name))
    assert bool(decoded) == KINDS[name].one_decode


def test_lossless_pixels_are_those_that_went_in(made: Callable[[str], Path]) -> None:
    video = Video(made("lossless.mkv"))
    for i in (49, 0, 23, 24, 11, -1):
        assert np.array_equal(video[i], picture(i % 50))


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    st.sampled_from(["b_frames.mp4", "open_gop.mp4", "open_gop.mkv", "vfr.mp4", "x265.mp4", "mpeg4.avi"]),
    st.lists(st.lists(st.integers(-50, 49), max_size=6), max_size=6),
)
def test_any_order_of_reads_gives_the_frames_asked(
    made: Callable[[str], Path], name: str, reads: list[list[int]]
) -> None:
    video = Video(made(name))
    for indices in reads:
        assert [number_of(frame) for frame in video.read(indices)] == [i % 50 for i in indices]


def test_random_access_decodes_from_the_key_frame_and_forward_access_never_seeks(
    made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from penstock.readers.video import _Decoder

    counts = {"_advance": 0, "_seek": 0, "__init__": 0}

    def counted(name: str) -> None:
        original = getattr(_Decoder, name)

        def call(self: _Decoder, *given: object) -> object:
            counts[name] += 1
            return original(self, *given)

        monkeypatch.setattr(_Decoder, name, call)

    for name in counts:
        counted(name)
    video = Video(made("b_frames.mp4"))
    for i in range(50):
        video[i]
    assert counts == {"_advance": 50, "_seek": 0, "__init__": 1}
    video[49]
    assert counts["_advance"] == 50, "the last frame is kept"
    video[38]
    assert counts["_seek"] == 1
    assert counts["_advance"] <= 50 + 12
    assert counts["__init__"] == 1


def test_times_count_from_the_first_frame(made: Callable[[str], Path]) -> None:
    assert [Video(made("vfr.mp4")).time_s(i) for i in (0, 1, 7, -1)] == pytest.approx([0, 2 / 25, 56 / 25, 2450 / 25])
    late = Video(made("late_start.mp4"))
    assert [late.time_s(i) for i in (0, 1, 49)] == pytest.approx([0, 1 / 25, 49 / 25])
    assert late.fps == pytest.approx(25)
    assert Video(made("raw.h264")).time_s(10) == pytest.approx(10 / Video(made("raw.h264")).fps)


def test_a_frame_asked_twice_is_two_arrays(made: Callable[[str], Path]) -> None:
    first, second = Video(made("vfr.mp4")).read([3, 3])
    first[:] = 0
    assert number_of(second) == 3


def test_index_outside_raises_index_error(made: Callable[[str], Path]) -> None:
    video = Video(made("vfr.mp4"))
    for call in (video.__getitem__, video.time_s, lambda i: video.read([0, i])):
        for i in (50, -51):
            with pytest.raises(IndexError):
                call(i)


def test_frames_cut_off_by_an_edit_list_are_not_counted(made: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "edited.mp4"
    with av.open(str(made("b_frames.mp4"))) as source, av.open(str(path), "w") as copy:
        copy_stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                shift = int(5 / 25 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy_stream
                copy.mux(packet)
    truth = sequential(path)
    video = Video(path)
    assert len(video) == len(truth) == 45
    assert av.open(str(path)).streams.video[0].frames == 50, "the container counts the ones cut off"
    for i in (44, 0, 20, 7, 6, 8):
        assert np.array_equal(video[i], truth[i])
        assert number_of(video[i]) == i + 5


def test_a_wrong_frame_count_in_the_container_is_not_believed(made: Callable[[str], Path], tmp_path: Path) -> None:
    content = bytearray(made("mpeg4.avi").read_bytes())
    for tag, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):
        at = content.find(tag) + offset
        assert int.from_bytes(content[at : at + 4], "little") == 50
        content[at : at + 4] = (999).to_bytes(4, "little")
    path = tmp_path / "wrong.avi"
    path.write_bytes(content)
    assert av.open(str(path)).streams.video[0].frames == 999
    assert len(Video(path)) == 50


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_rotation_is_applied_as_players_do(tmp_path: Path, rotation: int) -> None:
    kind = KINDS["turned.mp4"]
    kind = Kind(kind.name, options=kind.options, rotation=rotation, frames=3)
    path = write_video(tmp_path / kind.name, kind)
    video = Video(path)
    upright = np.rot90(sequential(path)[2], rotation // 90)
    assert np.array_equal(video[2], upright)
    assert video.size_hw == upright.shape[:2]
    cv2 = pytest.importorskip("cv2")
    theirs = cv2.VideoCapture(str(path)).read()[1][..., ::-1].astype(int)
    assert np.abs(theirs - video[0]).mean() < 3


def test_steps_of_a_turn() -> None:
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    assert np.array_equal(turned(pixels, "h"), pixels[:, ::-1])
    assert np.array_equal(turned(pixels, "v"), pixels[::-1])
    assert np.array_equal(turned(pixels, "tv"), np.rot90(pixels))


def test_a_skewed_picture_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "skewed.mp4", Kind("skewed.mp4", rotation=30, frames=2))
    with pytest.raises(BadData, match="multiple of 90"):
        Video(path)


def test_threads_share_a_video(made: Callable[[str], Path]) -> None:
    video = Video(made("open_gop.mp4"))
    order = np.random.default_rng(1).integers(0, 50, 60).tolist()
    with ThreadPoolExecutor(6) as threads:
        assert [number_of(frame) for frame in threads.map(video.__getitem__, order)] == order


def test_fork_and_spawn_read_on(made: Callable[[str], Path]) -> None:
    video = Video(made("open_gop.mp4"))
    pool = VideoPool()
    assert number_of(video[20]) == 20
    pool.frames(video.path, [3])
    state = video._states[os.getpid()]
    with state.lock:  # as if another thread were reading at the moment of the fork
        child = os.fork()
        if not child:
            good = number_of(video[21]) == 21 and number_of(pool.frames(video.path, [4])[0]) == 4
            os._exit(0 if good else 1)
        assert os.waitpid(child, 0)[1] == 0
    assert number_of(video[22]) == 22
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as workers:
        assert number_of(workers.submit(operator.getitem, video, 33).result()) == 33


def test_pickles_without_handles(made: Callable[[str], Path]) -> None:
    video, pool = Video(made("vfr.mkv")), VideoPool(max_open=3)
    first = video[9]
    pool.frames(video.path, [1])
    copy = pickle.loads(pickle.dumps(video))
    assert not copy._states
    assert np.array_equal(copy[9], first)
    empty = pickle.loads(pickle.dumps(pool))
    assert (empty.max_open, empty.num_open()) == (3, 0)


def test_pool_bounds_open_files_and_keeps_indexes(
    made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{i}.mkv" for i in range(6)]
    for path in paths:
        path.write_bytes(made("lossless.mkv").read_bytes())
    indexed = []
    monkeypatch.setattr("penstock.readers.video.video_index", lambda path: indexed.append(path) or video_index(path))
    pool = VideoPool(max_open=2, max_known=4)

    def files() -> int:
        links = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        return sum(link.startswith(str(tmp_path)) for link in links)

    for path in [*paths, *paths[2:]]:
        assert number_of(pool.frames(path, [7])[0]) == 7
        assert pool.num_open() <= 2
        if os.path.isdir("/proc/self/fd"):
            assert files() <= 2
    assert len(indexed) == 6, "the last four were remembered"
    with ThreadPoolExecutor(8) as threads:
        jobs = [(path, i) for i in (3, 30, 8) for path in paths]
        results = list(threads.map(lambda job: number_of(pool.frames(job[0], [job[1]])[0]), jobs))
    assert results == [i for _, i in jobs]
    assert pool.num_open() <= 2
    assert len(pool.video(paths[0])) == 50
    pool.close()
    assert pool.num_open() == 0
    with pytest.raises(SourceNotFound):
        pool.frames(tmp_path / "none.mp4", [0])
    assert pool.num_open() == 0
    with pytest.raises(UsageError):
        VideoPool(0)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", ["b_frames.mp4", "lossless.mkv", "vp9.webm", "fast.mp4"])
def test_truncated_files_are_refused(made: Callable[[str], Path], tmp_path: Path, name: str, share: float) -> None:
    whole = tmp_path / name
    if name == "fast.mp4":
        with (
            av.open(str(made("b_frames.mp4"))) as source,
            av.open(str(whole), "w", options={"movflags": "faststart"}) as o,
        ):
            stream = o.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    o.mux(packet)
    else:
        whole.write_bytes(made(name).read_bytes())
    assert len(Video(whole)) == KINDS.get(name, KINDS["b_frames.mp4"]).frames
    whole.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    with pytest.raises(BadData, match=name):
        Video(whole)


def test_what_is_no_video_is_refused_by_name(made: Callable[[str], Path], tmp_path: Path) -> None:
    contents = {
        "empty.mp4": b"",
        "text.mp4": b"hello" * 100,
        "noise.mp4": np.random.default_rng(0).bytes(5000),
        "list.mp4": b"#EXTM3U\n#EXTINF:1,\nb_frames.mp4\n#EXT-X-ENDLIST\n",
        "concat.mp4": f"ffconcat version 1.0\nfile '{made('b_frames.mp4')}'\n".encode(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadData, match=name):
            Video(tmp_path / name)
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(BadData, match=r"sound\.mp4.*expected a video"):
        Video(sound)
    for missing in (tmp_path / "none.mp4", tmp_path):
        with pytest.raises(SourceNotFound):
            Video(missing)


def test_a_video_without_frames_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "bgr0"
        container.start_encoding()
    with pytest.raises(BadData, match=r"none\.mkv"):
        Video(path)


def test_a_file_that_changed_and_a_large_picture_are_refused(
    made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "\u043a\u043e\u0442 'a: b%d.mp4"
    path.write_bytes(made("vfr.mp4").read_bytes())
    video = Video(path)
    assert number_of(video[5]) == 5
    video.close()
    path.write_bytes(made("late_start.mp4").read_bytes())
    with pytest.raises(BadData, match="changed"):
        video[6]
    monkeypatch.setattr(index_module, "MAX_PIXELS", 1000)
    with pytest.raises(BadData, match="1000 pixels"):
        Video(path)


def test_an_index_that_the_decoder_contradicts_is_bad_data(made: Callable[[str], Path]) -> None:
    from dataclasses import replace

    video = Video(made("b_frames.mp4"))
    wrong = video.index.pts.copy()
    wrong[30] += 1
    liar = Video(video.path, index=replace(video.index, pts=wrong))
    assert number_of(liar[29]) == 29
    with pytest.raises(BadData, match="frame 30 of 50"):
        liar[30]
    early = Video(video.path, index=replace(video.index, key_pts=video.index.key_pts + 1))
    assert [number_of(early[i]) for i in (40, 2, 30)] == [40, 2, 30], "decoded from the start where no seek is right"


def test_a_stream_that_turns_up_late_is_bad_data() -> None:
    class Container:
        streams = (1,)

        def demux(self, stream: object) -> list[object]:
            raise IndexError("list index out of range")

    with pytest.raises(BadData, match=r"late\.ts: expected 1 streams"):
        list(index_module.packets_of("late.ts", Container(), None))


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    st.sampled_from(["b_frames.mp4", "lossless.mkv", "mpeg4.avi"]),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damaged_bytes_never_end_in_another_error(
    made: Callable[[str], Path], tmp_path: Path, name: str, changes: list[tuple[float, int]]
) -> None:
    content = bytearray(made(name).read_bytes())
    for place, value in changes:
        content[int(place * len(content))] = value
    path = tmp_path / name
    path.write_bytes(content)
    video, frames = None, []
    with suppress(BadData):
        video = Video(path)
        frames = video.read([0, len(video) - 1, len(video) // 2])
    if video is not None:
        assert all(frame.shape == (*video.size_hw, 3) for frame in frames)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data")
@pytest.mark.parametrize("pattern", ["data/videos/*.mp4", "data/sav/sav_train/sav_900/*.mp4"])
def test_shared_videos(pattern: str) -> None:
    for path in SHARED.glob(pattern):
        video = Video(path)
        with av.open(str(path)) as container:
            truth = [
                frame.to_ndarray(format="rgb24") if i % 40 == 5 else None
                for i, frame in enumerate(container.decode(video=0))
            ]
        assert len(video) == len(truth)
        for i in range(len(truth) - 1, -1, -1):
            if truth[i] is not None:
                assert np.array_equal(video[i], truth[i])
    assert "sav" not in pattern or len(video) == 40
