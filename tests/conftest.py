"""What holds for every test: one thread per library, no network, reproducible examples, a seed that is fixed and printed."""

import os
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy, OpenCV or torch is imported anywhere
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture.providers import Constants, HypothesisProvider

from penstock.settings import KEYS

_CACHE = tempfile.TemporaryDirectory(prefix="penstock-test-cache-", ignore_cleanup_errors=True)
os.environ["PENSTOCK_CACHE_DIR"] = _CACHE.name  # the user's own indexes are never touched

if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # as of a job in the background, and its children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

SEED = int(os.environ.get("PENSTOCK_TEST_SEED", "0"))

# Examples would else hang on constants in the modules that other tests of this process imported.
HypothesisProvider._local_constants = property(lambda provider: Constants())

# No clocks: neither for an example nor for making one.
settings.register_profile(
    "deterministic", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("deterministic")


def pytest_report_header() -> str:
    """The seed, for whoever repeats the run."""
    return f"seed: PENSTOCK_TEST_SEED={SEED}"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The run's seed; shown with a test that fails."""
    print(f"{request.node.nodeid}: PENSTOCK_TEST_SEED={SEED}")
    return SEED


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """A generator that starts anew in every test."""
    return np.random.default_rng(seed)


@pytest.fixture
def loader_threads() -> Callable[[], list[threading.Thread]]:
    """Gives the loader threads of this test that live; what another test keeps alive is not its concern."""
    others = set(threading.enumerate())
    return lambda: [
        one for one in threading.enumerate() if one.name.startswith("penstock-loader") and one not in others
    ]


@pytest.fixture
def no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder without settings, and none of the user's."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for key in KEYS.values():
        if key.name != "cache_dir":
            monkeypatch.delenv(key.variable, raising=False)
