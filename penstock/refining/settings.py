"""The knobs of refinement, and their named profiles."""

from dataclasses import dataclass
from typing import Literal, get_args

from penstock.errors import UsageError

Matcher = Literal["prompt", "overlap"]
Profile = Literal["penstock", "seed"]


@dataclass(frozen=True, kw_only=True)
class RefineSettings:
    """How proposals become a new id map. Lengths in pixels of the frame unless they say otherwise."""

    matcher: Matcher = "prompt"
    """"prompt": each object is prompted for; "overlap": automatic masks find their object."""
    profile: Profile = "penstock"
    """"seed" with "overlap": the original's five passes (reference 2.3), without the gate."""
    points_per_side: int = 32
    """Of the grid of automatic points."""
    iou_threshold: float = 0.3
    """Of the seed's passes."""
    min_pixels: int = 16
    """An object of at least so many pixels always survives."""
    invalid: tuple[int, ...] = ()
    """Ids that are no object, besides 0 and below."""
    inside_share: float = 0.5
    """A proposal belongs to an object if more than this share of it lies inside,"""
    covers_share: float = 0.85
    """or if it covers this share of the object."""
    cut_share: float = 0.2
    """A proposal of which the second object has more than this share is cut along the coarse map."""
    band_share: float = 0.0075
    """Width of the uncertain band along a boundary, of the diagonal."""
    poles: int = 3
    """Points inside, per object."""
    negatives: int = 3
    """Points in the cores of neighbours, per object."""
    gate: bool = True
    min_core_recall: float = 0.97
    area_change: float = 0.35
    """An object may grow or shrink by this share, plus its band."""
    residual_limit_share: float = 0.008
    """How far the nearest id may be from a pixel that has none, of the diagonal."""

    def __post_init__(self) -> None:
        """Checks every value.

        Raises:
            UsageError: a value is out of range; the message names the setting and the range.
        """
        for name, known in (("matcher", get_args(Matcher)), ("profile", get_args(Profile))):
            if getattr(self, name) not in known:
                raise UsageError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.profile == "seed" and self.matcher != "overlap":
            raise UsageError(f"profile 'seed' needs matcher 'overlap', got {self.matcher!r}")
        for name, (low, high) in _SHARES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"{name}: expected {low}..{high}, got {value!r}")
        for name, (lowest, highest) in _COUNTS.items():
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int) or not lowest <= count <= highest:
                raise UsageError(f"{name}: expected a whole number {lowest}..{highest}, got {count!r}")

    @property
    def uses_gate(self) -> bool:
        """Whether objects pass the gate."""
        return self.gate and self.profile != "seed"


_SHARES: dict[str, tuple[float, float]] = {
    "iou_threshold": (0, 1),
    "inside_share": (0, 1),
    "covers_share": (0, 1),
    "cut_share": (0, 1),
    "band_share": (0, 0.1),
    "min_core_recall": (0, 1),
    "area_change": (0, 100),
    "residual_limit_share": (0, 1),
}
_COUNTS = {"points_per_side": (1, 1024), "min_pixels": (1, 1 << 26), "poles": (1, 64), "negatives": (0, 64)}
