"""What is done to a sample of `TimingTrackingSampler`: tensors and normalisation (Compose, ToTensor, Normalize), or the crops
that trackers are trained on (STARKProcessing, TIMProcessing), over `penstock.stages.sequence`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np

from penstock.compat.tensor_dict import TensorDict
from penstock.compat.tracking import TrackingData, boxes_to_tensor
from penstock.draws import Frames, Steps, TrackSample
from penstock.errors import MissingExtra, UsageError
from penstock.stages.sequence import CroppedFrames, CroppedSample, CroppedSteps, Rejected, crop_sample
from penstock.stages.sequence_config import CropConfig, RoleCrop

try:
    import torch
except ImportError as error:
    raise MissingExtra("torch", "train", "processing of samples") from error

Step = Callable[[Any], Mapping[str, Any]]
ROLES = ("template", "search")


class Compose:
    """Several steps, one after another.

    Args:
        transforms: each takes the data and gives them back. A step that sets `valid` to false ends it.
    """

    def __init__(self, transforms: Sequence[Step]) -> None:
        self.transforms = list(transforms)

    def __call__(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the last step gives."""
        for step in self.transforms:
            data = step(data)
            if not data.get("valid", True):
                break
        return data


class ToTensor:
    """Pictures to (3, H, W) float32 tensors, 0..1, and masks to (H, W) float32; lists stay lists. The rest stays."""

    def __call__(self, data: Mapping[str, Any]) -> TensorDict:
        """New data.

        Raises:
            UsageError: a picture is not (H, W, 3) uint8.
        """
        changed = TrackingData(data) if isinstance(data, TrackingData) else TensorDict(data)
        vars(changed).update(vars(data) if isinstance(data, TrackingData) else {})
        for role in ROLES:
            changed[f"{role}_images"] = [_to_tensor(image, role) for image in data[f"{role}_images"]]
            if f"{role}_masks" in data:
                changed[f"{role}_masks"] = [torch.as_tensor(mask).float() for mask in data[f"{role}_masks"]]
        return changed


class Normalize:
    """Pictures, float32 0..1, less `mean` and divided by `std`. Both go into the data as `image_mean` and `image_std`, so
    that a saver can undo them.

    Args:
        mean: three numbers.
        std: three numbers above 0.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        if len(mean) != 3 or len(std) != 3 or not min(std) > 0:
            raise UsageError(f"Normalize: expected three numbers each, std above 0, got {mean} and {std}")
        self.mean, self.std = [float(value) for value in mean], [float(value) for value in std]

    def __call__(self, data: Mapping[str, Any]) -> TensorDict:
        """New data.

        Raises:
            UsageError: a picture is no float tensor (3, H, W), or normalised already.
        """
        if "image_mean" in data:
            raise UsageError("Normalize: these pictures are normalised already")
        changed = TensorDict(data)
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        for role in ROLES:
            images = data[f"{role}_images"]
            for image in images:
                if not isinstance(image, torch.Tensor) or not image.is_floating_point() or image.shape[0] != 3:
                    raise UsageError(
                        f"Normalize: {role}_images: expected float tensors (3, H, W); put ToTensor() before"
                    )
            changed[f"{role}_images"] = [(image - mean) / std for image in images]
        changed["image_mean"], changed["image_std"] = list(self.mean), list(self.std)
        return changed


class STARKProcessing:
    """Joint and per-frame augmentation and crops, as `penstock.stages.sequence.crop_sample` states them.

    Takes what the sampler gives and gives, with n pictures of side S per role, beside the fields that it does not touch:

        template_images, search_images       (n, 3, S, S) float32, normalised
        template_anno, search_anno           (n, 4) float32, XYWH in units of the crop's side
        template_masks, search_masks         (n, S, S) float32, 0 or 1
        template_att, search_att             (n, S, S) bool, true outside the picture
        gt_sequence_anno_backward, _forward  (1, T, 4) float32, XYWH in pixels of the picture, mirrored with it; zeros where
                                             there is no box. `TIMProcessing`: divided by width and height, cut to 0..1
        image_mean, image_std                lists of three numbers, which undo the normalisation
        template_boxes, search_boxes         (n, 4) float64, XYWH in pixels of the crop; NaN where there is no box
        gt_boxes_backward, gt_boxes_forward  (T, 4) float64, XYWH in pixels of the first search crop; NaN as before
        template_affine, search_affine       (n, 2, 3) float64, from pixels of the source's picture to those of the crop
        template_crop_box, search_crop_box   (n, 4) float64, XYWH of the crop in pixels of the source's picture
        template_flip, search_flip           (n,) bool: this crop was mirrored
        joint_flip, gray                     bool: all pictures were
        valid                                bool; false, with `reason` and `detail`, where no crop can be made

    Args:
        search_area_factor: {"template": side of the crop over sqrt(w * h) of the box, "search": ...}.
        output_sz: {"template": S, "search": S}.
        center_jitter_factor: {"template": ..., "search": ...}.
        scale_jitter_factor: the same.
        mode: "sequence"; "pair" gives the first picture of each role alone, without the first dimension.
        settings: taken and not used, as in the original.
        augmentation: further fields of `CropConfig`: gray_prob, flip_prob, frame_flip_prob, brightness, history, mean, std.
    """

    normalize_history: ClassVar[bool] = False

    def __init__(
        self,
        search_area_factor: Mapping[str, float],
        output_sz: Mapping[str, int],
        center_jitter_factor: Mapping[str, float],
        scale_jitter_factor: Mapping[str, float],
        mode: Literal["sequence", "pair"] = "sequence",
        *,
        settings: object = None,
        **augmentation: Any,
    ) -> None:
        if mode not in ("sequence", "pair"):
            raise UsageError(f"mode: expected sequence or pair, got {mode!r}")
        known = ("gray_prob", "flip_prob", "frame_flip_prob", "brightness", "history", "mean", "std")
        if unknown := set(augmentation) - set(known):
            raise UsageError(
                f"{type(self).__name__}: no argument {', '.join(sorted(unknown))}; augmentation is given by "
                f"{', '.join(known)}"
            )
        template, search = (
            RoleCrop(
                factor=float(search_area_factor[role]),
                size=int(output_sz[role]),
                center_jitter=float(center_jitter_factor[role]),
                scale_jitter=float(scale_jitter_factor[role]),
            )
            for role in ROLES
        )
        self.config = CropConfig(
            template=template, search=search, normalize_history=self.normalize_history, **augmentation
        )
        self.mode = mode

    def __call__(self, data: TrackingData) -> TensorDict:
        """The data with crops in the place of pictures.

        Raises:
            UsageError: these are no data of `TimingTrackingSampler`.
        """
        if not isinstance(data, TrackingData) or not hasattr(data, "track_sample"):
            raise UsageError(
                f"{type(self).__name__} takes what TimingTrackingSampler gives its processing, before ToTensor and "
                f"Normalize; got {type(data).__name__}"
            )
        made = crop_sample(_sample(data), self.config)
        if isinstance(made, Rejected):
            return TensorDict({**data, "valid": False, "reason": made.reason, "detail": made.detail})
        fields = {**data, **_fields(made, self.config)}
        if self.mode == "pair":
            fields |= {
                name: value[0]
                for name, value in fields.items()
                if name.startswith(ROLES) and isinstance(value, (list, torch.Tensor))
            }
        return TensorDict(fields)


class TIMProcessing(STARKProcessing):
    """As STARKProcessing, with histories divided by the picture's width and height and cut to 0..1: what the trackers with
    histories are trained on."""

    normalize_history: ClassVar[bool] = True


def _to_tensor(image: object, role: str) -> torch.Tensor:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, (np.ndarray, torch.Tensor)) else type(image)
        raise UsageError(f"ToTensor: {role}_images: expected arrays (H, W, 3) uint8, got {found}")
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float() / 255


def _sample(data: TrackingData) -> TrackSample:
    """The sample with pictures, boxes and masks as the data have them now."""
    sample = data.track_sample
    return replace(
        sample,
        template=_frames(data, "template", sample.template),
        search=_frames(data, "search", sample.search),
        backward=_steps(data, "backward", sample.backward),
        forward=_steps(data, "forward", sample.forward),
    )


def _frames(data: TrackingData, role: str, frames: Frames) -> Frames:
    boxes = np.stack([np.asarray(box, np.float64) for box in data[f"{role}_anno"]])
    has_box = ~np.isnan(frames.boxes).any(axis=1, keepdims=True)
    return replace(
        frames,
        images=[np.asarray(image) for image in data[f"{role}_images"]],
        boxes=np.where(has_box, boxes, np.nan),
        masks=[np.asarray(mask, np.uint8) for mask in data[f"{role}_masks"]],
    )


def _steps(data: TrackingData, name: str, steps: Steps) -> Steps:
    boxes = np.asarray(data[f"gt_sequence_anno_{name}"][0], np.float64)
    has_box = ~np.isnan(steps.boxes).any(axis=1, keepdims=True)
    return replace(steps, boxes=np.where(has_box, boxes, np.nan))


def _fields(made: CroppedSample, config: CropConfig) -> dict[str, object]:
    return {
        **_role("template", made.template, config),
        **_role("search", made.search, config),
        **_history("backward", made.backward),
        **_history("forward", made.forward),
        "image_mean": [float(value) for value in config.mean],
        "image_std": [float(value) for value in config.std],
        "joint_flip": made.joint_flip,
        "gray": made.gray,
        "valid": True,
    }


def _role(name: str, crops: CroppedFrames, config: CropConfig) -> dict[str, object]:
    return {
        f"{name}_images": torch.from_numpy(config.normalised(crops.images)),
        f"{name}_anno": boxes_to_tensor(crops.anno),
        f"{name}_masks": torch.from_numpy(crops.masks.astype(np.float32)),
        f"{name}_att": torch.from_numpy(np.array(crops.att)),
        f"{name}_boxes": torch.from_numpy(np.array(crops.boxes)),
        f"{name}_affine": torch.from_numpy(np.array(crops.affine)),
        f"{name}_crop_box": torch.from_numpy(np.array(crops.crop_box)),
        f"{name}_flip": torch.from_numpy(np.array(crops.flip)),
    }


def _history(name: str, steps: CroppedSteps) -> dict[str, object]:
    return {
        f"gt_sequence_anno_{name}": boxes_to_tensor(steps.anno)[None],
        f"gt_boxes_{name}": torch.from_numpy(np.array(steps.crop_boxes)),
    }
