"""A small cycle model: mask to words to mask, trained from nothing on a CPU in minutes. Real, and small; no double of a big one.

B pictures, H x W pixels (a multiple of 4), L words of a vocabulary of V.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from penstock.errors import UsageError
from penstock.models.caption_protocols import FoundMasks

_PAD, _END = 0, 1
_CROP = 16
"""Side of the square that the object's box is looked at in."""


class CycleModel(nn.Module):
    """Captioner (four convolutions over the object's box, its place beside them, then a GRU) and segmenter (a small U-Net whose
    layers are scaled and shifted by the words: FiLM, Perez et al. 2018).

    Args:
        words: the vocabulary.
        max_words: longest caption.
        width: channels at half the size of the picture, a multiple of 8.
        temperature: of soft words.

    Raises:
        UsageError: no words, or a word twice.
    """

    def __init__(self, words: Sequence[str], *, max_words: int = 4, width: int = 32, temperature: float = 0.7) -> None:
        super().__init__()
        if not words or len(set(words)) < len(words):
            raise UsageError("CycleModel: expected words, each once")
        self.words = ["", "<end>", *words]
        self.max_words, self.temperature = max_words, temperature
        self._number = {word: number for number, word in enumerate(self.words)}
        vocabulary, half, twice = len(self.words), width // 2, 2 * width
        self.look = nn.Sequential(
            _convolution(4, width),
            _convolution(width, twice, 2),
            _convolution(twice, twice, 2),
            _convolution(twice, width),
        )
        self.begin = nn.Linear(width * (_CROP // 4) ** 2 + 4, twice)
        self.embed = nn.Embedding(vocabulary, width)
        self.speak = nn.GRUCell(width, twice)
        self.choose = nn.Linear(twice, vocabulary)
        self.listen = nn.Embedding(vocabulary, width)
        self.hear = nn.GRU(width, twice, batch_first=True)
        self.down = nn.ModuleList([_convolution(5, half), _convolution(half, width, 2), _convolution(width, twice, 2)])
        self.up = nn.ModuleList([_convolution(twice + width, width), _convolution(width + half, half)])
        self.films = nn.ModuleList([nn.Linear(twice, 2 * size) for size in (half, width, twice, width, half)])
        self.out = nn.Conv2d(half, 1, 1)

    def captions(self, images: torch.Tensor, masks: torch.Tensor) -> list[str]:
        """The likeliest word, one after the other; see `Captioner`."""
        with torch.no_grad():
            numbers, _ = self._say(images, masks, soft=False)
        return [self._text(row) for row in numbers.tolist()]

    def soft_captions(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """(B, L, V): the words of `captions` forward, their probabilities backward."""
        _, words = self._say(images, masks, soft=True)
        return words

    def caption_loss(self, images: torch.Tensor, masks: torch.Tensor, captions: Sequence[str]) -> torch.Tensor:
        """(B,) mean cross-entropy of the words; 0 for "".

        Raises:
            UsageError: a word that is not in the vocabulary.
        """
        wanted = self._numbers(captions, end=True).to(images.device)
        state, word = self._seen(images, masks), wanted.new_full((len(wanted),), _END)
        total = images.new_zeros(len(wanted))
        for place in range(wanted.shape[1]):
            state = self.speak(self.embed(word), state)
            step = F.cross_entropy(self.choose(state).float(), wanted[:, place], reduction="none", ignore_index=_PAD)
            total, word = total + step, wanted[:, place]
        spoken = torch.tensor([float(bool(text)) for text in captions], device=images.device)
        return total * spoken / (wanted != _PAD).sum(dim=1).clamp(min=1)

    def segment(
        self, images: torch.Tensor, captions: Sequence[str] | torch.Tensor, masks: torch.Tensor | None = None
    ) -> FoundMasks:
        """Logits (B, H, W); every answer has a mask. `masks` is not needed: the model does not answer in words."""
        heard = self._heard(captions, images.device)
        levels: list[torch.Tensor] = []
        found = torch.cat([images, _coordinates(images)], dim=1)
        for layer, film in zip(self.down, self.films[:3], strict=True):
            found = _filmed(layer(found), film(heard))
            levels.append(found)
        for layer, film, beside in zip(self.up, self.films[3:], levels[-2::-1], strict=True):
            larger = F.interpolate(found, beside.shape[-2:], mode="nearest")
            found = _filmed(layer(torch.cat([larger, beside], dim=1)), film(heard))
        logits = self.out(found)[:, 0]
        return FoundMasks(logits=logits, has_mask=torch.ones(len(images), dtype=torch.bool, device=images.device))

    def _seen(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """(B, C): the object by its box, stretched to a square, and where the box lies."""
        boxes = _boxes(masks)
        whole = torch.cat([images, masks[:, None].to(images.dtype)], dim=1)
        centre, size = boxes[:, :2], boxes[:, 2:]
        turn = torch.diag_embed(size)  # (B, 2, 2)
        grid = F.affine_grid(
            torch.cat([turn, centre[..., None]], dim=2), [len(images), 4, _CROP, _CROP], align_corners=False
        )
        crop = F.grid_sample(whole, grid.to(whole.dtype), align_corners=False)
        features = self.look(crop).flatten(1)
        return torch.tanh(self.begin(torch.cat([features, boxes.to(features.dtype)], dim=1)))

    def _say(self, images: torch.Tensor, masks: torch.Tensor, *, soft: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Numbers (B, L), and where `soft` words (B, L, V)."""
        state = self._seen(images, masks)
        embedded = self.embed(torch.full((len(images),), _END, device=images.device))
        numbers, words = [], []
        ended = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        for _ in range(self.max_words):
            state = self.speak(embedded, state)
            scores = self.choose(state).float()
            scores = scores.index_fill(1, torch.tensor([_PAD], device=images.device), -torch.inf)
            number = scores.argmax(dim=1)
            ended = ended | (number == _END)
            number = torch.where(ended, _PAD, number)
            numbers.append(number)
            if soft:
                shares = (scores / self.temperature).softmax(dim=1)
                hard = F.one_hot(number, len(self.words)).to(shares.dtype)
                word = hard + shares - shares.detach()
                words.append(torch.where(ended[:, None], hard, word))
                embedded = words[-1].to(self.embed.weight.dtype) @ self.embed.weight
            else:
                embedded = self.embed(number)
        return torch.stack(numbers, dim=1), torch.stack(words, dim=1) if soft else torch.empty(0)

    def _heard(self, captions: Sequence[str] | torch.Tensor, device: torch.device) -> torch.Tensor:
        if isinstance(captions, torch.Tensor):
            words = captions.to(self.listen.weight.dtype) @ self.listen.weight
        else:
            words = self.listen(self._numbers(captions, end=False).to(device))
        _, last = self.hear(words)
        heard: torch.Tensor = last[0]
        return heard

    def _numbers(self, captions: Sequence[str], *, end: bool) -> torch.Tensor:
        rows = []
        for text in captions:
            unknown = [word for word in text.split() if word not in self._number]
            if unknown:
                raise UsageError(
                    f"CycleModel: {text!r}: {unknown[0]!r} is no word of the vocabulary of {len(self.words) - 2}"
                )
            words = [self._number[word] for word in text.split()][: self.max_words]
            words += [_END] * (end and bool(words) and len(words) < self.max_words)
            rows.append(words + [_PAD] * (self.max_words - len(words)))
        return torch.tensor(rows, dtype=torch.int64).reshape(len(captions), self.max_words)

    def _text(self, numbers: Sequence[int]) -> str:
        return " ".join(self.words[number] for number in numbers if number > _END)


def _convolution(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, stride, 1), nn.GroupNorm(4, outside), nn.SiLU())


def _filmed(features: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    scale, shift = numbers[:, :, None, None].chunk(2, dim=1)
    return F.silu(features * (1 + scale) + shift)


def _boxes(masks: torch.Tensor) -> torch.Tensor:
    """(B, 4): centre x, y and half width, half height of each mask's box, in -1..1 of the picture; of all of it if empty."""
    found = []
    for axis in (1, 2):  # columns, then rows
        taken = (masks > 0).any(dim=axis)
        length = taken.shape[1]
        empty = ~taken.any(dim=1)
        first = torch.where(empty, 0, taken.to(torch.uint8).argmax(dim=1))
        last = torch.where(empty, length, length - taken.flip(1).to(torch.uint8).argmax(dim=1))
        found.append(torch.stack([first + last, last - first], dim=1).float() / length)
    columns, rows = found
    return torch.stack([columns[:, 0] - 1, rows[:, 0] - 1, columns[:, 1], rows[:, 1]], dim=1)


def _coordinates(images: torch.Tensor) -> torch.Tensor:
    """(B, 2, H, W) x, y from -1 to 1."""
    count, _, height, width = images.shape
    ys = torch.linspace(-1, 1, height, device=images.device, dtype=images.dtype)[:, None].expand(height, width)
    xs = torch.linspace(-1, 1, width, device=images.device, dtype=images.dtype)[None].expand(height, width)
    return torch.stack([xs, ys])[None].expand(count, 2, height, width)
