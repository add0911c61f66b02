"""All claims of a store at once: for who puts another one in its place."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from penstock.store.claims import Claim
from penstock.store.manifest import Manifest
from penstock.store.sink import PLAN_WAIT_S


class Held:
    """A store whose parts, and whose manifest, nobody else may write.

    Attributes:
        manifest: that of now; nobody replaces it.
    """

    def __init__(self, path: Path, manifest: Manifest, claims: Sequence[Claim]) -> None:
        self.path, self.manifest = path, manifest
        self._claims = claims

    def moved(self, path: Path) -> None:
        """Says that the folder has another name now, so that its claims are given back there."""
        for claim in self._claims:
            claim.path = path / claim.path.relative_to(self.path)
        self.path = path


@contextmanager
def hold_all(path: Path, *, wait_s: float = 0.0) -> Iterator[Held]:
    """Takes every claim of a store: first the one to plan, for which it waits, then that of each part.

    Args:
        path: the store.
        wait_s: how long others may hold a part.

    Raises:
        SourceNotFound: there is no store.
        PartClaimed: another driver writes in it; the message says who.
    """
    with ExitStack() as undo:
        plan = Claim(path, name="_plan")
        plan.acquire(wait_s=PLAN_WAIT_S)
        undo.callback(plan.release)
        manifest = Manifest.load(path)
        claims = [plan]
        for entry in manifest.parts:
            claim = Claim(path / (entry.draft or entry.name))
            claim.acquire(wait_s=wait_s)
            undo.callback(claim.release)
            claims.append(claim)
        yield Held(path, manifest, claims)
