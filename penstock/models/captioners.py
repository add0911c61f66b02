"""Opens a cycle model, captioner and segmenter in one, by its spec: `cycle`, the built-in small one, or `florence2:FOLDER`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import xxhash

from penstock import registry
from penstock.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from torch import nn

MAX_WORDS = 8
"""Of the built-in model's captions; of a longer sentence the first so many are learned."""
BASIC_WORDS = (
    *("black", "blue", "brown", "green", "grey", "orange", "pink", "purple", "red", "white", "yellow"),
    *("big", "small", "long", "round", "dark", "light", "striped", "plain"),
    *("left", "right", "top", "bottom", "middle", "front", "back", "near", "far"),
    *("animal", "background", "clothing", "food", "furniture", "ground", "part", "person", "plant", "thing", "vehicle"),
)
"""The built-in model's vocabulary where no human sentence is in the mixture. Then nothing teaches it what a word means: it
makes a code of them that finds the object again."""


@dataclass(frozen=True, kw_only=True)
class OpenedCycle:
    """A model for the dual loop, and what goes with it."""

    model: "nn.Module"
    """A `Captioner` and a `Segmenter`."""
    identity: Mapping[str, object]
    """Plain values: what must be the same for a run to be continued."""
    learning_rate: float
    """That suits it."""
    untaught: Literal["pseudo", "soft"]
    """Where its captions come from in a mixture without human sentences."""


def require_cycle(spec: str) -> None:
    """Refuses, before any data are looked at, what `open_cycle` would refuse for its name alone.

    Raises:
        UsageError: no model of that name, or `sa2va`, which is not trained here.
    """
    name, _, text = spec.partition(":")
    known = registry.names("captioners")
    if name not in known:
        raise UsageError(f"model {spec!r}: expected one of {', '.join(known)}")
    if name == "sa2va":
        from penstock.models.sa2va import open_sa2va

        open_sa2va(text, (), 0)


def open_cycle(spec: str = "cycle", *, words: Sequence[str] = (), seed: int = 0) -> OpenedCycle:
    """Opens captioner and segmenter: everything that can be wrong with them is said here, before any work.

    Args:
        spec: NAME or NAME:TEXT; `cycle` is the built-in small model, which needs no weights; `florence2:TEXT` see
            `penstock.models.florence2.open_florence2`. Outside packages add names through the entry point
            `penstock.captioners`: a function of (text after the colon, words of the mixture, seed).
        words: of the human sentences in the mixture, each once; models with words of their own pass them over.
        seed: of weights that begin at random.

    Raises:
        UsageError: unknown spec.
        SourceNotFound, BadData: weights are not there, or damaged.
        MissingExtra: an optional package is needed.
    """
    name, _, text = spec.partition(":")
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtra("torch", "train", f"model {spec}") from error
    require_cycle(spec)
    make = cast(Callable[[str, Sequence[str], int], OpenedCycle], registry.find("captioners", name))
    return make(text, words, seed)


def open_built_in(text: str, words: Sequence[str], seed: int) -> OpenedCycle:
    """The small cycle model, from random weights.

    Args:
        text: empty.
        words: its vocabulary; empty: `BASIC_WORDS`.
        seed: of the weights.

    Raises:
        UsageError: a text is given.
    """
    import torch

    from penstock.models.cycle import CycleModel

    if text:
        raise UsageError(f"model cycle:{text}: expected cycle, it takes no more")
    vocabulary = sorted(set(words)) or list(BASIC_WORDS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CycleModel(vocabulary, max_words=MAX_WORDS)
    digest = xxhash.xxh3_64_hexdigest(" ".join(vocabulary).encode("utf-8", "surrogateescape"))
    identity = {"model": "cycle", "words": f"{len(vocabulary)} words {digest}", "model_seed": seed}
    return OpenedCycle(model=model, identity=identity, learning_rate=2e-3, untaught="soft")
