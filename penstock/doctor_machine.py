"""The doctor on the machine: packages, devices, memory, limits, disks."""

import importlib
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from penstock.doctor_verdict import Verdict, fail, off, ok, warn

PACKAGES = {
    "numpy": ("numpy", "", "arrays"),
    "pillow": ("PIL", "", "pictures"),
    "opencv-python-headless": ("cv2", "images", "pictures, masks"),
    "simplejpeg": ("simplejpeg", "images", "JPEG"),
    "pycocotools": ("pycocotools.mask", "coco", "RLE and polygon masks: COCO, SA-1B, SA-V, RefCOCO, YouTube-VIS"),
    "av": ("av", "video", "SA-V videos"),
    "lmdb": ("lmdb", "lmdb", "the *-lmdb readers"),
    "torch": ("torch", "train", "training, tensors of the compat classes"),
}
"""Package -> module, extra (empty: always installed), what it is for."""

NEEDED_FILES = 4096
NEEDED_SHARED_BYTES = 1 << 30
NEEDED_DISK_BYTES = 10 << 30
PROBE_BYTES = 256 << 20


def check_packages() -> list[Verdict]:
    """Python, penstock, and each package: there, importable, or what to install."""
    found = [ok("packages", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    for package, (module, extra, purpose) in PACKAGES.items():
        try:
            importlib.import_module(module)
            found.append(ok("packages", package, f"{metadata.version(package)}: {purpose}"))
        except ModuleNotFoundError as error:
            if error.name and error.name.partition(".")[0] != module.partition(".")[0]:
                found.append(_broken(package, error, extra))
            else:
                how = f"pip install 'penstock[{extra}]'" if extra else f"pip install {package}"
                found.append(off("packages", package, f"not installed: {purpose}", how))
        except (ImportError, OSError, RuntimeError, AttributeError, metadata.PackageNotFoundError) as error:
            found.append(_broken(package, error, extra))
    return found


def check_machine() -> Iterator[Verdict]:
    """Cores, memory, GPUs, and the limits that workers meet."""
    yield ok(
        "machine", "cores", f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}"
    )
    memory = _memory_bytes()
    if memory:
        yield ok("machine", "memory", f"{memory / 1e9:.1f} GB")
    yield from _devices()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < NEEDED_FILES:
        message = f"{soft} at once (at most {hard}): many workers over many files need more"
        yield warn("machine", "open files", message, f"ulimit -n {min(hard, 65536) if hard > 0 else 65536}")
    else:
        yield ok("machine", "open files", f"{soft} at once")
    yield from _shared_memory()


def check_disks(folders: Mapping[str, Path], *, measure: bool) -> Iterator[Verdict]:
    """Free space and, where asked, speed of the disks below some folders; whether they can be written."""
    for name, folder in folders.items():
        existing = next((each for each in (folder, *folder.absolute().parents) if each.is_dir()), None)
        if existing is None:
            yield fail("disks", name, f"{folder}: no such folder, and none above it", "correct the path")
            continue
        free = shutil.disk_usage(existing).free
        text = f"{folder}: {free / 1e9:.0f} GB free"
        if not os.access(existing, os.W_OK):
            state = warn if name == "cache_dir" else off
            yield state("disks", name, f"{text}; it cannot be written", f"chmod, or another {name}")
            continue
        if free < NEEDED_DISK_BYTES:
            yield warn("disks", name, text, "make room: conversions need about 1.7 times the input")
        else:
            yield ok("disks", name, text)
        if measure:
            yield _speed(name, existing)


def _broken(package: str, error: Exception, extra: str) -> Verdict:
    """Installed, and does not import."""
    how = f"pip install --force-reinstall {package}" + (f", or do without the extra {extra}" if extra else "")
    return fail("packages", package, f"installed, but cannot be imported: {type(error).__name__}: {error}", how)


def _devices() -> Iterator[Verdict]:
    torch = sys.modules.get("torch")
    if torch is None:
        yield off("machine", "GPU", "not looked for: torch is not installed")
        return
    if not torch.cuda.is_available():
        yield off("machine", "GPU", f"torch {torch.__version__} sees none: training and embedding run on the CPU")
        return
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        yield ok("machine", f"GPU {number}", f"{properties.name}, {properties.total_memory / 1e9:.0f} GB")


def _memory_bytes() -> int:
    """Memory that this process may take: the machine's, or less where a control group says so; 0 where unknown."""
    found = []
    try:
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        found += [int(text)] if text.isdecimal() else []
    except (OSError, ValueError):  # no control groups here, or no such number
        pass
    return min(found, default=0)


def _shared_memory() -> Iterator[Verdict]:
    path = Path("/dev/shm")
    if not path.is_dir():
        return
    total = shutil.disk_usage(path).total
    text = f"{total / 1e9:.1f} GB in {path}"
    if total < NEEDED_SHARED_BYTES:
        yield warn("machine", "shared memory", f"{text}: torch's DataLoader workers may run out",
                   "docker run --shm-size=8g, or num_workers=0; penstock's own loader does not use it")  # fmt: skip
    else:
        yield ok("machine", "shared memory", text)


def _speed(name: str, folder: Path) -> Verdict:
    """Writes and reads back a file, past the page cache as far as the system lets us."""
    block = os.urandom(1 << 20) * 8
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            start = time.perf_counter()
            for _ in range(PROBE_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            written = PROBE_BYTES / (time.perf_counter() - start)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            start = time.perf_counter()
            while file.read(8 << 20):
                pass
            read = PROBE_BYTES / (time.perf_counter() - start)
    except OSError as error:
        return fail("disks", f"{name} speed", f"{folder}: {error}", "make room, or choose another folder")
    return ok("disks", f"{name} speed", f"writes {written / 1e6:.0f} MB/s, reads {read / 1e6:.0f} MB/s (256 MiB)")
