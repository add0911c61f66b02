"""What stages with a model share."""

import multiprocessing

import pytest

from penstock.stages.workers import one_thread, worker_number


@pytest.mark.parametrize(("name", "number"), [("MainProcess", 0), ("SpawnProcess-3", 3), ("SpawnProcess-3:12", 12)])
def test_workers_are_numbered_by_the_names_of_their_processes(
    name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "name", name)
    assert worker_number() == number


def test_torch_works_on_one_thread_of_the_cpu_and_is_left_as_it_was() -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread("cuda:0"):
            assert torch.get_num_threads() == 2
        with one_thread("cpu"):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
