"""Florence-2 (Xiao et al. 2023) as captioner and segmenter in one, by transformers' own classes.

Mask to words: `<REGION_TO_DESCRIPTION>` of the mask's box. Words to mask: `<REFERRING_EXPRESSION_SEGMENTATION>`, answered
in polygons of location tokens. B pictures, H x W pixels, L tokens of a vocabulary of V.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from penstock.errors import BadData, MissingExtra, UsageError
from penstock.models.caption_protocols import FoundMasks
from penstock.models.captioners import OpenedCycle
from penstock.models.florence2_polygons import BINS, bins_mask, box_bins, mask_bins
from penstock.models.hub import TOKENIZER, find_folder, read_json
from penstock.models.opened import hash_state
from penstock.models.protocols import PictureTransform
from penstock.models.torchvision_shim import ensure_torchvision
from penstock.models.transform import read_processor

SURE = 5.0
"""Logit of a pixel inside an answer's polygons; outside it is the negative."""
_DESCRIBE = ("What does the region", "describe?")
_LOCATE = ("Locate", "in the image with mask")
"""The two tasks as transformers' `Florence2Processor` words them."""
_NO_LOSS = -100
_TINY = "random:tiny"
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_NEEDS = (("config.json",), ("model*.safetensors", "pytorch_model*.bin"), _PROCESSORS, *TOKENIZER)


class Florence2(nn.Module):
    """Captioner and segmenter. It hears and says texts, so no gradient passes from one to the other, nor through a mask.

    It learns masks from the words of the right answer: `segment` with the true masks gives their cross-entropy.

    Args:
        network: a `Florence2ForConditionalGeneration`.
        tokenizer: its tokenizer, with `<loc_0>` to `<loc_999>`.
        transform: its pictures; sides are stretched.
        max_caption: longest caption, in tokens; longer ones are cut.
        max_answer: longest answer of polygons, in tokens; true outlines become coarser until they fit.
        beams: of the search for an answer; the published figures are of 3, at three times the cost.

    Raises:
        UsageError: a number that the network cannot keep, or another transform.
        BadData: the tokenizer is not that of Florence-2.
    """

    def __init__(
        self, network: Any, tokenizer: Any, transform: PictureTransform, *, max_caption: int = 64, max_answer: int = 512,
        beams: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        text = network.config.text_config
        longest = int(text.max_position_embeddings)
        if not (3 <= max_caption <= longest and 10 <= max_answer <= longest and beams >= 1):
            raise UsageError(
                f"Florence2: expected max_caption of 3..{longest}, max_answer of 10..{longest}, beams of 1 or more, got "
                f"{max_caption}, {max_answer}, {beams}"
            )
        if transform.resize != "squash":
            raise UsageError(f"Florence2: pictures are resized by {transform.resize!r}: expected 'squash'")
        self.network, self.tokenizer, self.transform = network, tokenizer, transform
        self.max_caption, self.max_answer, self.beams = max_caption, max_answer, beams
        self._longest = longest
        self._begin, self._end, self._pad = text.bos_token_id, text.eos_token_id, text.pad_token_id
        self._start = text.decoder_start_token_id
        words = [f"<loc_{number}>" for number in range(BINS)] + ["<sep>"]
        *self._locations, self._separator = tokenizer.convert_tokens_to_ids(words)
        unknown = {None, tokenizer.unk_token_id} & {*self._locations, self._separator}
        if unknown:
            raise BadData(f"Florence2: the tokenizer lacks <sep> or some of <loc_0>..<loc_{BINS - 1}>")
        self._bin = {token: number for number, token in enumerate(self._locations)}
        self.train()

    def captions(self, images: torch.Tensor, masks: torch.Tensor) -> list[str]:
        """The likeliest words, location tokens left out; "" for an empty mask. Dropout is off; see `Captioner`."""
        found = [""] * len(images)
        seen = [number for number in range(len(images)) if bool(masks[number].any())]
        if seen:
            with self._still():
                encoded = self._encoded(images[seen], self._describe(masks[seen]))
                answers = self._answers(encoded, self.max_caption)
            for number, answer in zip(seen, answers, strict=True):
                found[number] = self._text(answer)
        return found

    def caption_loss(self, images: torch.Tensor, masks: torch.Tensor, captions: Sequence[str]) -> torch.Tensor:
        """(B,) mean cross-entropy of the tokens and the end after them; 0 for "" and for an empty mask.

        Published models put the box after the words. Here it is not learned: they stop at the words' end.
        """
        taught = [number for number, text in enumerate(captions) if text.strip() and bool(masks[number].any())]
        if not taught:
            none: torch.Tensor = next(self.parameters()).sum() * images.new_zeros(len(images))
            return none
        labels = self._labels([self._ids(captions[number].strip()) for number in taught], self.max_caption)
        encoded = self._encoded(images[taught], self._describe(masks[taught]))
        loss = _cross_entropy(self._logits(encoded, labels), labels.to(images.device))
        return images.new_zeros(len(images)).index_put((torch.tensor(taught, device=images.device),), loss)

    def segment(
        self, images: torch.Tensor, captions: Sequence[str] | torch.Tensor, masks: torch.Tensor | None = None
    ) -> FoundMasks:
        """The polygons of the answers as logits (B, H, W) of +-`SURE`, which carry no gradient.

        With true masks `answer_loss` is the cross-entropy of their polygons, 0 for an empty caption or mask. In training mode
        the logits are then of the likeliest tokens after the right ones: one pass, and better than the model could do
        alone. In eval mode, and without masks, the answer is the model's own, one token after the other.

        Raises:
            UsageError: captions are soft words.
            MissingExtra: OpenCV or pycocotools is not installed.
        """
        if isinstance(captions, torch.Tensor):
            raise UsageError("Florence2: expected texts, got soft words: take captions of another kind than 'soft'")
        size = (int(images.shape[-2]), int(images.shape[-1]))
        if masks is None:
            with self._still():
                answers = self._answers(self._encoded(images, self._locate(images, captions)), self.max_answer)
            return self._found(answers, size, images.device, None)
        polygons = [mask_bins(mask.cpu().numpy() > 0, self.max_answer - 2) for mask in masks]
        labels = self._labels([self._spoken(each) for each in polygons], self.max_answer)
        encoded = self._encoded(images, self._locate(images, captions))
        logits = self._logits(encoded, labels)
        taught = [bool(text.strip() and each) for text, each in zip(captions, polygons, strict=True)]
        loss = _cross_entropy(logits, labels.to(images.device)) * torch.tensor(taught, device=images.device)
        if self.training:
            likeliest = logits.detach().argmax(dim=2).cpu()
            answers = [row[wanted != _NO_LOSS].tolist() for row, wanted in zip(likeliest, labels, strict=True)]
        else:
            answers = self._answers(encoded, self.max_answer)
        return self._found(answers, size, images.device, loss)

    def _found(
        self, answers: list[list[int]], size_hw: tuple[int, int], device: torch.device, loss: torch.Tensor | None
    ) -> FoundMasks:
        polygons = [self._polygons(answer) for answer in answers]
        inside = torch.stack([torch.from_numpy(bins_mask(each, size_hw).copy()) for each in polygons]).to(device)
        has_mask = torch.tensor([bool(each) for each in polygons], device=device)
        return FoundMasks(logits=(inside.float() * 2 - 1) * SURE, has_mask=has_mask, answer_loss=loss)

    def _encoded(self, images: torch.Tensor, prompts: Sequence[Sequence[int]]) -> tuple[Any, torch.Tensor]:
        """The encoder's output, and which of its positions count: (B, image tokens + L). The picture comes first."""
        seen = self.network.get_image_features(_pixels(images, self.transform))
        seen = getattr(seen, "pooler_output", seen)  # transformers 4 gives the tensor itself
        ids = torch.full((len(prompts), max(map(len, prompts))), self._pad)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        ids = ids.to(images.device)
        embedded = self.network.get_input_embeddings()(ids)
        counts = torch.cat([ids.new_ones(seen.shape[:2]), (ids != self._pad).long()], dim=1)
        encoder = self.network.model.language_model.get_encoder()
        whole = torch.cat([seen.to(embedded.dtype), embedded], dim=1)
        if whole.shape[1] > self._longest:
            raise UsageError(
                f"Florence2: {seen.shape[1]} tokens of the picture and {embedded.shape[1]} words are more than the "
                f"{self._longest} that the network reads: take a max_caption below {self.max_caption}"
            )
        return encoder(inputs_embeds=whole, attention_mask=counts), counts

    def _logits(self, encoded: tuple[Any, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """(B, L, V) of the tokens of given answers, each after those before it."""
        before = F.pad(labels, (1, 0), value=self._start)[:, :-1]
        before = before.masked_fill(before == _NO_LOSS, self._pad)
        output = self.network(
            encoder_outputs=encoded[0], attention_mask=encoded[1], decoder_input_ids=before.to(encoded[1].device)
        )
        return cast(torch.Tensor, output.logits)

    def _answers(self, encoded: tuple[Any, torch.Tensor], longest: int) -> list[list[int]]:
        """The likeliest tokens, one after the other, without begin and end."""
        found = self.network.generate(
            encoder_outputs=encoded[0], attention_mask=encoded[1], max_new_tokens=longest - 1, num_beams=self.beams,
            do_sample=False,
        )  # fmt: skip
        answers = []
        for row in found[:, 1:].tolist():
            tokens = row[: row.index(self._end)] if self._end in row else row
            answers.append([token for token in tokens if token not in (self._begin, self._pad)])
        return answers

    def _describe(self, masks: torch.Tensor) -> list[list[int]]:
        before, after = _DESCRIBE
        found = []
        for mask in masks.cpu().numpy():
            box = "".join(f"<loc_{number}>" for number in box_bins(mask))
            found.append([self._begin, *self._ids(f"{before} {box} {after}"), self._end])
        return found

    def _locate(self, images: torch.Tensor, captions: Sequence[str]) -> list[list[int]]:
        if len(captions) != len(images):
            raise UsageError(f"Florence2: expected {len(images)} captions, got {len(captions)}")
        before, after = (self._ids(text) for text in (_LOCATE[0], f" {_LOCATE[1]}"))
        return [
            [self._begin, *before, *self._ids(f" {text.strip()}")[: self.max_caption], *after, self._end]
            for text in captions
        ]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _labels(self, answers: Sequence[Sequence[int]], longest: int) -> torch.Tensor:
        """(B, L) begin, tokens, end, then `_NO_LOSS`."""
        rows = [[self._begin, *answer[: longest - 2], self._end] for answer in answers]
        labels = torch.full((len(rows), max(map(len, rows))), _NO_LOSS)
        for label, row in zip(labels, rows, strict=True):
            label[: len(row)] = torch.tensor(row)
        return labels

    def _text(self, answer: Sequence[int]) -> str:
        words = [token for token in answer if token not in self._bin and token < len(self.tokenizer)]
        return " ".join(self.tokenizer.decode(words, skip_special_tokens=True).split())

    def _spoken(self, polygons: Sequence[Sequence[int]]) -> list[int]:
        tokens: list[int] = []
        for polygon in polygons:
            tokens += [self._separator] * bool(tokens) + [self._locations[number] for number in polygon]
        return tokens

    def _polygons(self, answer: Sequence[int]) -> list[list[int]]:
        """Runs of location tokens of three points or more; an odd one at the end is left out, as transformers does."""
        runs: list[list[int]] = [[]]
        for token in answer:
            if token in self._bin:
                runs[-1].append(self._bin[token])
            else:
                runs.append([])
        return [run[: len(run) // 2 * 2] for run in runs if len(run) >= 6]

    @contextmanager
    def _still(self) -> Iterator[None]:
        """Eval mode, without gradients; each module goes back to its own mode."""
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for module in training:
                module.training = True


def open_florence2(text: str, words: Sequence[str], seed: int) -> OpenedCycle:
    """Florence-2 for `open_cycle`.

    Args:
        text: a folder as `save_pretrained` writes it, or OWNER/NAME of the hub (florence-community/Florence-2-base);
            `random:tiny` or `random:tiny:SEED`: a tiny network of random weights.
        words: passed over: it has words of its own.
        seed: of random weights, where the text names none.

    Raises:
        MissingExtra: transformers is not installed.
        SourceNotFound: files are missing and cannot be had.
        BadData: the files are damaged, or belong to another model.
        UsageError: another kind of model, or a seed that is no number.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "transformers", "model florence2") from error
    ensure_torchvision()
    if not hasattr(transformers, "Florence2ForConditionalGeneration"):
        raise MissingExtra("transformers>=4.57", "transformers", "model florence2")
    is_tiny = text == _TINY or text.startswith(f"{_TINY}:")
    model = _open_tiny(text, seed) if is_tiny else _open_folder(text, transformers)
    identity = {"model": "florence2", "weights": hash_state(model.network.state_dict())}
    return OpenedCycle(model=model, identity=identity, learning_rate=1e-3 if is_tiny else 1e-5, untaught="pseudo")


def _open_tiny(text: str, seed: int) -> Florence2:
    from penstock.models.florence2_tiny import TINY_TRANSFORM, tiny_network, tiny_tokenizer

    given = text.removeprefix(_TINY).removeprefix(":")
    if given and not given.isdecimal():
        raise UsageError(f"florence2:{text}: expected florence2:{_TINY}:SEED with a whole number")
    return Florence2(tiny_network(int(given or seed)), tiny_tokenizer(), TINY_TRANSFORM)


def _open_folder(text: str, transformers: Any) -> Florence2:
    from penstock.models.transformers_vision import _load

    spec = f"florence2:{text}"
    folder = find_folder(spec, text, _NEEDS)
    config = read_json(folder / "config.json")
    if config.get("model_type") != "florence2":
        raise UsageError(f"{spec}: model type {config.get('model_type')}: expected florence2")
    if "auto_map" in config:
        raise UsageError(
            f"{spec}: the layout of Microsoft's own code: take the same weights as transformers reads them, "
            "florence-community/Florence-2-base or -large"
        )
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(f"{spec}: the tokenizer in {folder} cannot be loaded: {error}") from error
    network = _load(transformers.Florence2ForConditionalGeneration, folder)
    return Florence2(network, tokenizer, _transform(folder))


def _transform(folder: Path) -> PictureTransform:
    """Older files have the image processor's settings alone, newer ones those of the whole processor."""
    path = next(folder / name for name in _PROCESSORS if (folder / name).exists())
    facts = read_json(path)
    return read_processor(str(path), cast("dict[str, object]", facts.get("image_processor", facts)))


def _pixels(images: torch.Tensor, transform: PictureTransform) -> torch.Tensor:
    """(B, 3, H, W) 0..1 to the network's size, normalised; as Pillow does it, but for its rounding to whole numbers."""
    if tuple(images.shape[-2:]) != transform.size_hw:
        images = F.interpolate(images, transform.size_hw, mode=transform.interpolation, antialias=True).clamp(0, 1)
    mean, std = (images.new_tensor(numbers).reshape(1, 3, 1, 1) for numbers in (transform.mean, transform.std))
    return (images - mean) / std


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(B,) means over the tokens of (B, L, V) against (B, L)."""
    each = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none", ignore_index=_NO_LOSS)
    return each.sum(dim=1) / (labels != _NO_LOSS).sum(dim=1)
