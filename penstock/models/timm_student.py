"""timm's networks as backbones, RepViT among them. Names of weights are timm's own; nothing is ever fetched."""

import difflib
from collections.abc import Sequence
from typing import Any

import torch

from penstock.errors import MissingExtra, UsageError
from penstock.models.student_network import Backbone, require_strides
from penstock.models.torchvision_shim import ensure_torchvision

_TRIAL_SIDE = 128


class TimmBackbone(Backbone):
    """A network of timm, cut after the last stride that is wanted. Where it has several maps of a stride, the deepest is taken.

    Args:
        spec: as `open_student` takes it, for messages.
        name: as timm knows it.
        strides: that are wanted, ascending, in pixels.
        image_size: side of the pictures, in pixels; transformers are built for it.

    Raises:
        MissingExtra: timm is not installed.
        UsageError: timm knows no such network, or it gives no such features.
    """

    def __init__(self, spec: str, name: str, strides: Sequence[int], *, image_size: int) -> None:
        super().__init__()
        self.spec = spec
        timm = require_timm()
        if not timm.is_model(name):
            close = timm.list_models(f"*{name}*")[:5] or difflib.get_close_matches(name, timm.list_models(), n=5)
            raise UsageError(f"backbone {spec}: timm has no {name!r}; close to it: {', '.join(close) or 'none'}")
        given = timm.get_pretrained_cfg(name)
        sized = {"img_size": image_size} if given and given.fixed_input_size else {}
        with torch.device("meta"):
            every = _created(spec, name, features_only=True, **sized).feature_info
            published = _created(spec, name, **sized).state_dict()
        reductions, channels = list(every.reduction()), list(every.channels())
        require_strides(spec, strides, reductions)
        taken = [max(number for number, each in enumerate(reductions) if each == stride) for stride in strides]
        self.channels = {stride: channels[number] for stride, number in zip(strides, taken, strict=True)}
        indices = [every.out_indices[number] for number in taken]
        self.net = _created(spec, name, features_only=True, out_indices=indices, **sized)
        kept = self.net.state_dict()
        self._own: dict[str, str] = {
            each: f"net.{there}"
            for each in published
            for there in (each, each.replace(".", "_", 1), f"model.{each}")
            if there in kept
        }
        self._published = {own: each for each, own in self._own.items()}
        self._spare = frozenset(published) - self._own.keys()
        self._channels_last = str(getattr(self.net, "output_fmt", "NCHW")).endswith("NHWC")
        self._freeze_unreached(image_size if sized else min(image_size, _TRIAL_SIDE))

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """See `Backbone`."""
        found: list[torch.Tensor] = self.net(pixels)
        return [features.permute(0, 3, 1, 2) for features in found] if self._channels_last else list(found)

    def _freeze_unreached(self, side: int) -> None:
        """Looks at one picture: what the features do not depend on is never trained. Some networks cannot be cut."""
        weights = list(self.parameters())
        self.eval()
        try:
            with torch.inference_mode(False), torch.enable_grad():
                found = self(torch.zeros(1, 3, side, side))
                total = torch.stack([features.sum() for features in found]).sum()
                gradients = torch.autograd.grad(total, weights, allow_unused=True)
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UsageError(f"backbone {self.spec}: fails on {side} x {side} pixels: {str(error)[:300]}") from error
        finally:
            self.train()
        for features, (stride, channels) in zip(found, self.channels.items(), strict=True):
            if features.shape[1] != channels or features.shape[2] != -(-side // stride):
                got = tuple(features.shape[1:])
                raise UsageError(f"backbone {self.spec}: expected {channels} channels of stride {stride}, got {got}")
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.requires_grad_(gradient is not None)

    def own_name(self, name: str) -> str:
        """timm's `stages.0.blocks.0.se.fc1.weight` is `net.stages_0.blocks.0.se.fc1.weight`."""
        return self._own.get(name, name)

    def published_name(self, name: str) -> str:
        """timm's own."""
        return self._published.get(name, name)

    def is_spare(self, name: str) -> bool:
        """The classifier, and the stages after the last one that is wanted."""
        return name in self._spare

    def reparameterise(self) -> None:
        """RepViT's and other re-parameterised networks' branches become one convolution each."""
        require_timm().utils.reparameterize_model(self.net, inplace=True)


def require_timm() -> Any:
    """timm, which needs a torchvision that can be imported.

    Raises:
        MissingExtra: it is not installed.
    """
    ensure_torchvision()
    try:
        import timm
        import timm.utils
    except ImportError as error:
        raise MissingExtra("timm", "timm", "a student of timm, RepViT for instance,") from error
    return timm


def _created(spec: str, name: str, **options: object) -> Any:
    try:
        return require_timm().create_model(name, pretrained=False, **options)
    except (RuntimeError, NotImplementedError, AssertionError, AttributeError, TypeError, ValueError) as error:
        raise UsageError(f"backbone {spec}: timm cannot build it as a feature pyramid: {str(error)[:300]}") from error
