"""Loader: batches from a source in a sampler's order, filled by threads into warm, leased memory."""

import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from penstock.buffers import Batch, BufferPool, Copier, CudaCopier, Transfers
from penstock.errors import StateMismatch, UsageError
from penstock.feed import Feed, Plan, Progress, Work
from penstock.fill import Filler, Transform
from penstock.samplers import Epochs, Sampler
from penstock.source import Source, snapshot

if TYPE_CHECKING:
    import torch

STATE_VERSION = 1


class Loader:
    """Batches from a source.

    `for batch in loader` runs to the end of an epoch (of `epochs` epochs) and the next one goes on from there, with
    another order. After a `break`, or after `load_state_dict`, it goes on with the first batch not yet taken. The order
    is the sampler's, whatever the number of threads or ranks: step t of an epoch takes positions [t * batch_size,
    (t + 1) * batch_size), and rank r its r-th share of them.

    A batch is views into one of a few buffers. The buffer serves another batch once the last view is gone, so a batch
    may be kept; who keeps many makes the pool grow up to `max_leased`, with a warning. `Batch.copy` avoids that.

    Args:
        source: any source. With `gather`, fixed fields are copied without the GIL; otherwise `source[i]` is called in
            the threads. With `done_rows`, only the rows done at this moment are drawn.
        batch_size: rows of a global batch, over all ranks.
        fields: names of the fields read; None for all.
        sampler: the order of 0..n-1, n rows that can be drawn; None for `Epochs(n)`: exact shuffle, seed 0.
        epochs: epochs that one `for` runs over; None: without end. One that was broken off is ended by the next.
        drop_last: leave out the rows of an epoch that do not fill a batch. If not, the last batch is shorter, split
            over the ranks as evenly as can be; a rank may get 0 rows, and takes as many steps as the others.
        output: "numpy", or "torch" for tensors over the same memory.
        threads: threads that fill; 2 saturate memory, more hide the latency of cold or remote data.
        prefetch: batches in work ahead of the consumer.
        rank: this process, 0..world_size-1.
        world_size: processes that share each global batch; divides batch_size.
        io: "mmap", "pread" or "direct" (see `Store.gather`), or "auto": by measured residency, at each epoch.
        max_leased: buffers that may exist; None: 64, or what fits into 8 GiB.
        errors: "raise", or "substitute": a row whose data are bad is replaced by one drawn from the same source by a
            hash of (seed, position, attempt), and counted. Transient read errors are retried three times either way,
            and errors of a program always raise.
        max_failures: with "substitute": failed reads allowed, a count or a share of the rows drawn ("1%"; of the first
            1,000 at least).
        transform: record -> record, in the filling threads. Its first result fixes types and shapes of the batch.
        pin: pinned memory; "auto": where output is "torch" and CUDA is there.
        keys: look up `Batch.row_keys()` in the filling threads rather than on first use.

    Raises:
        UsageError: a setting is out of range, or not one batch fits into an epoch.
        SchemaError: a name in `fields` is no field.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        fields: Sequence[str] | None = None,
        sampler: Sampler | None = None,
        epochs: int | None = 1,
        drop_last: bool = True,
        output: str = "numpy",
        threads: int = 2,
        prefetch: int = 3,
        rank: int = 0,
        world_size: int = 1,
        io: str = "auto",
        max_leased: int | None = None,
        errors: str = "raise",
        max_failures: int | str = "1%",
        transform: Transform | None = None,
        pin: bool | str = "auto",
        keys: bool = False,
    ) -> None:
        counts = {"batch_size": batch_size, "threads": threads, "prefetch": prefetch, "epochs": epochs}
        for name, value in counts.items():
            _require(value is None or value >= 1, name, "1 or more", value)
        divides = world_size >= 1 and batch_size % world_size == 0
        _require(divides, "world_size", f"a divisor of the global batch of {batch_size} rows", world_size)
        _require(0 <= rank < world_size, "rank", f"0..{world_size - 1}", rank)
        _require(output in ("numpy", "torch"), "output", "numpy or torch", output)
        _require(errors in ("raise", "substitute"), "errors", "raise or substitute", errors)
        _require(io in ("auto", "mmap", "pread", "direct"), "io", "auto, mmap, pread or direct", io)
        _require(pin in (True, False, "auto"), "pin", "True, False or auto", pin)
        self.digest, rows = snapshot(source)
        num_rows = len(source) if rows is None else len(rows)
        _require(num_rows > 0, "source", "at least one row that is done", f"{num_rows} of {len(source)} rows")
        order: Sampler = Epochs(num_rows) if sampler is None else sampler
        _require(order.num_rows == num_rows, "sampler", f"{num_rows} rows, all that can be drawn", order.num_rows)
        continuous = getattr(order, "continuous", False)
        fits = not drop_last or continuous or num_rows >= batch_size
        _require(fits, "batch_size", f"at most {num_rows} rows (or drop_last=False)", batch_size)
        self.plan = Plan(
            sampler=order, batch_size=batch_size, drop_last=drop_last, rank=rank, world_size=world_size,
            continuous=continuous,
        )  # fmt: skip
        self.epochs, self.max_leased, self.pin = epochs, max_leased, pin
        self._work = Work(threads=threads, prefetch=prefetch, io=io, output=output, keys=keys)
        self._progress = Progress(max_failures=max_failures)
        self._progress.allowed()
        substitute = errors == "substitute"
        self._filler = Filler(source, rows, fields, transform=transform, substitute=substitute, seed=order.seed)
        self._copier: str | Copier | None = None
        self._pool: BufferPool | None = None
        self._feed: weakref.ref[Feed] | None = None
        self._pid = os.getpid()

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.plan)

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the first not yet taken. Ends an iterator started before.

        Raises:
            SchemaError: the transform gives what no field can hold.
        """
        self._end()
        if self._pid != os.getpid():
            self._pool, self._pid = None, os.getpid()
        stop = None if self.epochs is None else self.plan.end_of_epoch(self._progress.consumed, self.epochs)
        pool = self._pool = self._pool or self._make_pool()
        transfers = Transfers(_copier(self._copier)) if self._copier else None
        feed = Feed(self.plan, self._filler, pool, self._progress, self._work, stop=stop, transfers=transfers)
        self._feed = weakref.ref(feed)
        return feed

    def to(self, device: "str | torch.device | Copier") -> "Loader":
        """Batches on a device; returns this loader.

        The copies run on a stream of their own from pinned memory, one batch ahead; a buffer goes back only when its
        copy is done. "cpu" undoes it. An object with the methods of `Copier` serves other devices.

        Raises:
            UsageError: output is not "torch", or there is no such device.
        """
        _require(self._work.output == "torch", "to", "output='torch'", self._work.output)
        self._end()
        if isinstance(device, Copier):
            self._copier = device
        else:
            self._copier = _cuda_device(device)
        self._pool = None
        return self

    def seek(self, batch: int) -> None:
        """The next batch taken is this one, counted from the start of the first epoch; 0 starts again."""
        _require(batch >= 0, "seek", "0 or more", batch)
        self._end()
        self._progress.consumed = batch

    def state_dict(self) -> dict[str, int | str | bool]:
        """Where the consumer stands: batches taken, not those in work; and what the order depends on. Fits JSON."""
        return {
            "version": STATE_VERSION,
            "consumed": self._progress.consumed,
            "batch_size": self.plan.batch_size,
            "drop_last": self.plan.drop_last,
            "seed": self.plan.sampler.seed,
            "sampler": self.plan.sampler.identity(),
            "data": self.digest,
            "world_size": self.plan.world_size,
        }

    def load_state_dict(self, state: Mapping[str, int | str | bool]) -> None:
        """Goes on where a loader stood that had taken `consumed` batches; ranks and threads may differ from then.

        Raises:
            StateMismatch: the state is of other data or of another order; the message names what differs.
        """
        ours = self.state_dict()
        names = [name for name in ours if name not in ("consumed", "world_size")]
        differing = [f"{n}: expected {ours[n]!r}, got {state.get(n)!r}" for n in names if state.get(n) != ours[n]]
        consumed = state.get("consumed")
        if not isinstance(consumed, int) or consumed < 0:
            differing.append(f"consumed: expected 0 or more, got {consumed!r}")
        if differing:
            raise StateMismatch(f"Loader: the state belongs to other data or settings: {'; '.join(differing)}")
        self.seek(int(state["consumed"]))

    def report(self) -> dict[str, object]:
        """What this process has drawn so far.

        Returns:
            batches, drawn, bytes: filled for the consumer; substituted, retried: rows, reads; failed: class of the
            error -> reads; wait_s: seconds the consumer spent in the loader; io, residency: the mode in use and the
            share of sampled pages found in the page cache (None: not measured); buffers, buffer_bytes: buffers
            allocated, size of each.
        """
        pool, progress = self._pool, self._progress
        return {
            "batches": progress.batches,
            "drawn": progress.drawn,
            "bytes": progress.num_bytes,
            "substituted": progress.tally.substituted,
            "retried": progress.tally.retried,
            "failed": dict(progress.tally.failed),
            "wait_s": progress.wait_s,
            "io": self._filler.io if self._filler.gathered else "rows",
            "residency": progress.residency,
            "buffers": pool.allocated if pool else 0,
            "buffer_bytes": pool.buffer_bytes if pool else 0,
        }

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_pool": None, "_feed": None}

    def _end(self) -> None:
        running = self._feed() if self._feed else None
        if running is not None and self._pid == os.getpid():
            running.close("a newer iterator of the same loader, to(), seek() or load_state_dict() ended this one")
        self._feed = None

    def _make_pool(self) -> BufferPool:
        filler, plan = self._filler, self.plan
        first = plan.positions(self._progress.consumed)
        if len(first):
            filler.learn(first.start, int(plan.sampler.rows(first.start, first.start + 1)[0]))
        fixed = [field for field in filler.schema.fields if not field.is_variable]
        usual = self._work.prefetch + 2 + (3 if self._copier else 0)  # one the caller has, one he is letting go
        wanted = self.pin is True or (self.pin == "auto" and self._work.output == "torch")
        pinned = wanted and _has_cuda()
        _require(pinned or self.pin is not True, "pin", "'auto' or False where there is no CUDA device", self.pin)
        pool = BufferPool(fixed, plan.local_rows, usual=usual, most=self.max_leased, pinned=pinned)
        pool.reserve(min(usual - 1, len(plan) * (self.epochs or usual)))
        return pool


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _cuda_device(device: "str | torch.device") -> str | None:
    import torch

    found = torch.device(device)
    if found.type == "cpu":
        return None
    _require(found.type == "cuda" and torch.cuda.is_available(), "to", "cpu, or cuda where CUDA is there", device)
    return str(found)


def _copier(device: str | Copier) -> Copier:
    if not isinstance(device, str):
        return device
    import torch

    return CudaCopier(torch.device(device))


def _require(holds: bool, name: str, expected: str, found: object) -> None:
    if not holds:
        raise UsageError(f"Loader: {name}: expected {expected}, got {found!r}")
