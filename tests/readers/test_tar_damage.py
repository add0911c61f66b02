"""Damaged TARs: whatever is whole is kept, whatever is cut is named."""

import gzip
import io
import logging
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.readers.sa1b_tar import Sa1bTar, Sa1bTarStream
from penstock.testing import make_sa1b_tar

SETTINGS = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def _whole() -> tuple[bytes, list[tarfile.TarInfo]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        make_sa1b_tar(
            path, 3, feature_size=4, channels=2, picture_size=32, size_hw=(20, 24), edge_sizes=(8,), map_sizes=(8,)
        )
        content = path.read_bytes()
    return content, tarfile.open(fileobj=io.BytesIO(content)).getmembers()


WHOLE, MEMBERS = _whole()
DATA_END = MEMBERS[-1].offset_data + -(-MEMBERS[-1].size // 512) * 512


def offered(path: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Keys with failures, and problems; after checking that random access and stream agree."""
    random, stream = Sa1bTar([path]), Sa1bTarStream([path, path.with_name("other")])
    found = [(one.key, one.failure) for one in random.candidates()]
    assert found == [(one.key, one.failure) for one in stream.candidates()]
    assert [problem.error for problem in random.problems] == [problem.error for problem in stream.problems[:-1]]
    for row in range(len(random)):
        random[row]
    return found, [problem.message for problem in random.problems]


@SETTINGS
@given(st.integers(0, len(WHOLE)))
def test_a_tar_cut_anywhere_keeps_its_whole_pairs(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "cut.tar"
    path.write_bytes(WHOLE[:cut])
    found, problems = offered(path)
    whole = [member.name for member in MEMBERS if member.offset_data + member.size <= cut]
    keys = [f"sa_{n}" for n in range(3) if {f"sa_{n}.jpg", f"sa_{n}_features.npz"} <= set(whole)]
    assert [key for key, failure in found if not failure] == keys
    inside = [member for member in MEMBERS if member.offset_data <= cut < member.offset_data + member.size]
    for member in inside:
        (failure,) = [failure for key, failure in found if key == member.name[:4]]
        assert f"expected {member.size} bytes, found {cut - member.offset_data}" in failure
    boundaries = {0, DATA_END} | {member.offset for member in MEMBERS}
    assert bool(problems) == (cut == 0 or (cut < DATA_END and cut not in boundaries))
    for problem in problems:
        assert str(path) in problem
        assert f"byte {cut}" in problem or f"byte {cut - cut % 512}" in problem  # the latter for a cut header


@SETTINGS
@given(st.integers(20, len(gzip.compress(WHOLE, mtime=0)) - 1))
def test_a_compressed_tar_cut_anywhere_keeps_what_can_be_decoded(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "cut.tar.gz"
    path.write_bytes(gzip.compress(WHOLE, mtime=0)[:cut])
    source = Sa1bTarStream([path, tmp_path / "other"])
    found = list(source.candidates())
    readable = [one.key for one in found if not one.failure]
    assert readable == ["sa_0", "sa_1", "sa_2"][: len(readable)]
    assert source.problems[0].error in ("EOFError", "ReadError")


@SETTINGS
@given(st.integers(0, DATA_END - 1), st.integers(0, 255))
def test_any_changed_byte_never_raises(tmp_path: Path, position: int, value: int) -> None:
    path = tmp_path / "changed.tar"
    path.write_bytes(WHOLE[:position] + bytes([value]) + WHOLE[position + 1 :])
    found, _ = offered(path)
    before = [n for n in range(3) if MEMBERS[2 * n + 1].offset_data + MEMBERS[2 * n + 1].size <= position]
    assert [key for key, failure in found if not failure][: len(before)] == [f"sa_{n}" for n in before]


def test_a_damaged_header_is_a_problem_not_the_end(tmp_path: Path) -> None:
    at = MEMBERS[2].offset
    (tmp_path / "a.tar").write_bytes(WHOLE[:at] + b"\xff" * 512 + WHOLE[at + 512 :])
    found, (problem,) = offered(tmp_path / "a.tar")
    assert found == [("sa_0", "")]
    assert f"damaged at byte {at}" in problem


def test_a_missing_end_mark_is_tolerated_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.tar").write_bytes(WHOLE[:DATA_END])
    with caplog.at_level(logging.WARNING):
        found, problems = offered(tmp_path / "a.tar")
    assert (len(found), problems) == (3, [])
    assert "no end-of-archive mark" in caplog.text


def test_concatenated_tars_are_a_problem_not_a_silent_loss(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(WHOLE + WHOLE)
    found, (problem,) = offered(tmp_path / "a.tar")
    assert len(found) == 3
    assert "concatenated" in problem


def test_concatenated_gzip_members_are_one_tar(tmp_path: Path) -> None:
    middle = len(WHOLE) // 2
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(WHOLE[:middle]) + gzip.compress(WHOLE[middle:]))
    source = Sa1bTarStream([tmp_path / "a.tar.gz"])
    assert [one.key for one in source.candidates()] == ["sa_0", "sa_1", "sa_2"]
    assert not source.problems


@pytest.mark.parametrize("size", ["-512", "99999999999999999999", "x"])
def test_a_hostile_size_in_a_pax_header_ends_the_scan(tmp_path: Path, size: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, headers in (("a.jpg", {}), ("a.npz", {}), ("b.jpg", {"size": size}), ("b.npz", {})):
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = 3, headers
            tar.addfile(member, io.BytesIO(b"123"))
    found, problems = offered(tmp_path / "a.tar")
    assert found[0] == ("a", "")
    assert len(problems) == 1 or size == "x"
