"""Pillow's transform equals torchvision's, bit for bit; files of published models are read right."""

from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from penstock.errors import BadData, UsageError
from penstock.models.protocols import PictureTransform
from penstock.models.transform import make_transform, picture_pixels, read_processor

SIGLIP = {
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 3,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
CLIP = {
    "do_center_crop": True,
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "resample": 3,
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
}


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    resize=st.sampled_from(["squash", "shortest"]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
)
def test_equals_torchvision(width: int, height: int, resize: str, interpolation: str) -> None:
    if find_spec("torchvision") is None:
        pytest.skip("no torchvision")
    from penstock.models.torchvision_shim import ensure_torchvision

    ensure_torchvision()
    from torchvision import transforms

    transform = make_transform(
        "test", 31, resize=resize, interpolation=interpolation, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4]
    )
    mode = transforms.InterpolationMode(interpolation)
    shape = (
        [transforms.Resize((31, 31), mode)]
        if resize == "squash"
        else [transforms.Resize(31, mode), transforms.CenterCrop(31)]
    )
    theirs = transforms.Compose([*shape, transforms.ToTensor(), transforms.Normalize(transform.mean, transform.std)])(
        picture(width, height)
    )
    np.testing.assert_array_equal(picture_pixels(picture(width, height), transform), theirs.numpy())


def test_a_picture_that_is_not_rgb_is_refused() -> None:
    with pytest.raises(BadData, match="mode L"):
        picture_pixels(Image.new("L", (4, 4)), PictureTransform(size_hw=(8, 8)))


def test_processors_of_transformers() -> None:
    siglip = read_processor("here", SIGLIP)
    assert siglip == PictureTransform(size_hw=(224, 224))
    clip = read_processor("here", CLIP)
    assert (clip.resize, clip.size_hw, clip.mean) == ("shortest", (224, 224), (0.48, 0.46, 0.41))
    assert read_processor("here", {**CLIP, "size": 224, "crop_size": 224}) == clip
    assert read_processor("here", {**SIGLIP, "do_normalize": False}).std == (1, 1, 1)
    assert read_processor("here", {**SIGLIP, "resample": 2}).interpolation == "bilinear"


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"do_rescale": False}, UsageError, "do_rescale"),
        ({"resample": 0}, UsageError, "interpolation 0"),
        ({"image_mean": [0.5]}, BadData, "3 numbers"),
        ({"image_std": [0.5, 0, 0.5]}, BadData, "above 0"),
        ({"size": {"longest_edge": 4}}, BadData, "2 numbers"),
        ({"do_center_crop": True}, UsageError, "crop after"),
        ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True}, UsageError, "crop to 256"),
    ],
)
def test_processors_that_cannot_be_applied(change: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        read_processor("here", {**SIGLIP, **change})


def test_a_mode_that_is_not_known() -> None:
    with pytest.raises(UsageError, match="longest"):
        make_transform("here", 8, resize="longest", interpolation="bicubic", mean=[0, 0, 0], std=[1, 1, 1])
    with pytest.raises(UsageError, match="not square"):
        make_transform("here", [8, 9], resize="shortest", interpolation="bicubic", mean=[0, 0, 0], std=[1, 1, 1])
