"""The same weights in Meta's own classes and in ours: the same masks. Runs where the package `sam2` is installed."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
if find_spec("sam2") is None:
    pytest.skip("the package sam2 is not installed", allow_module_level=True)

from penstock.models.distill_protocols import TeacherOptions  # noqa: E402
from penstock.models.sam2 import Asked, AutomaticMasks, Sam2Options, Sam2Proposer  # noqa: E402
from penstock.models.sam2_config import ARCHITECTURES, Architecture, make_config  # noqa: E402
from penstock.models.sam2_weights import VIDEO_PART, expected_shapes, meta_names  # noqa: E402
from penstock.models.teachers import open_teacher  # noqa: E402
from penstock.models.torchvision_shim import ensure_torchvision  # noqa: E402
from tests.models.sam2_data import frame_of, picture  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = Architecture(channels=16, heads=1, blocks=(1, 1, 2, 1), global_blocks=(3,))
"""Meta's memory attention fixes the rest of the model to its full size."""


@pytest.fixture(scope="module")
def genuine() -> Any:
    ensure_torchvision()
    from sam2.build_sam import build_sam2

    torch.manual_seed(0)
    trunk = "model.image_encoder.trunk"
    return build_sam2(
        "configs/sam2.1/sam2.1_hiera_t.yaml",
        device="cpu",
        hydra_overrides_extra=[
            f"++{trunk}.embed_dim=16", f"++{trunk}.stages=[1,1,2,1]", f"++{trunk}.global_att_blocks=[3]",
            "++model.image_encoder.neck.backbone_channel_list=[128,64,32,16]",
        ],
    )  # fmt: skip


@pytest.fixture
def checkpoint(genuine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(ARCHITECTURES, "t", SMALL)
    path = tmp_path / "sam2.1_hiera_tiny.pt"
    torch.save({"model": genuine.state_dict()}, path)
    return path


@pytest.fixture
def proposer(checkpoint: Path) -> Sam2Proposer:
    rule = AutomaticMasks(
        pred_iou_thresh=0, stability_score_thresh=0, stability_score_offset=0.01, min_mask_region_area=0
    )
    options = Sam2Options(
        model_cfg="configs/sam2.1/sam2.1_hiera_t.yaml", checkpoint=checkpoint, device="cpu", automatic=rule
    )
    return Sam2Proposer(options)


def test_prompts_give_the_logits_of_meta_s_predictor(genuine: Any, proposer: Sam2Proposer) -> None:
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    image, rng = picture(60, 80), np.random.default_rng(1)
    predictor = SAM2ImagePredictor(genuine)
    predictor.set_image(image)
    boxes = np.array([[4, 6, 50, 40], [20, 10, 79, 59]], np.float32)
    points = rng.uniform(0, 60, (2, 3, 2)).astype(np.float32)
    labels = np.array([[1, 0, -1], [1, 1, 0]], np.int32)
    masks = rng.normal(size=(2, 256, 256)).astype(np.float32)
    found, scores = proposer._logits(
        proposer.encode([frame_of(image)])[0]._features,
        Asked(ids=np.array([1, 2]), points=points, labels=labels, boxes=boxes, logits=masks),
        (60, 80),
    )
    for number in range(2):
        _, wanted_scores, wanted = predictor.predict(
            points[number], labels[number], box=boxes[number], mask_input=masks[number][None], return_logits=True
        )
        np.testing.assert_allclose(found[number].numpy(), wanted, atol=1e-4)
        np.testing.assert_allclose(scores[number].numpy(), wanted_scores, atol=1e-4)


def test_points_give_the_masks_of_meta_s_generator(genuine: Any, proposer: Sam2Proposer) -> None:
    from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator

    image, rule = picture(60, 80), proposer.options.automatic
    generator = SAM2AutomaticMaskGenerator(
        genuine, points_per_side=4, pred_iou_thresh=0, stability_score_thresh=0,
        stability_score_offset=rule.stability_score_offset, box_nms_thresh=rule.box_nms_thresh,
    )  # fmt: skip
    wanted = sorted(generator.generate(image), key=lambda mask: -mask["predicted_iou"])
    steps = (np.arange(4) + 0.5) / 4
    points = np.stack(np.meshgrid(steps * 80, steps * 60), -1).reshape(-1, 2).astype(np.float32)
    found = proposer.encode([frame_of(image)])[0].at_points(points)
    order = np.argsort(-found.scores, kind="stable")
    assert len(found) == len(wanted) > 0
    for number, mask in zip(order, wanted, strict=True):
        left, top, width, height = found.boxes[number]
        full = np.zeros((60, 80), bool)
        full[top : top + height, left : left + width] = found.masks[number]
        assert (full != mask["segmentation"]).mean() < 1e-3
        assert found.scores[number] == pytest.approx(mask["predicted_iou"], abs=1e-4)
        assert found.stability[number] == pytest.approx(mask["stability_score"], abs=2e-3)


def test_features_are_those_of_meta_s_pyramid(genuine: Any, checkpoint: Path) -> None:
    from sam2.utils.transforms import SAM2Transforms

    image = picture(60, 80)
    with torch.inference_mode():
        pixels = SAM2Transforms(1024, 0.0)(image)[None]
        levels, _ = genuine.image_encoder.neck(genuine.image_encoder.trunk(pixels))
    found = open_teacher("sam2.1_hiera_t", TeacherOptions(weights=str(checkpoint), device="cpu")).features([image])
    assert list(found) == ["P2_S4", "P3_S8", "P4_S16", "P5_S32"]
    for level, wanted in zip(found.values(), levels, strict=True):
        torch.testing.assert_close(level, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("version", ["sam2", "sam2.1"])
@pytest.mark.parametrize("size", ["t", "s", "b+", "l"])
def test_published_architectures_have_the_weights_of_meta_s_configurations(version: str, size: str) -> None:
    ensure_torchvision()
    from sam2.build_sam import build_sam2

    stored = build_sam2(f"configs/{version}/{version}_hiera_{size}.yaml", device="cpu").state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.items() if not name.startswith(VIDEO_PART)}
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in expected_shapes(make_config(ARCHITECTURES[size])).items():
        names = meta_names(name)
        found |= {each: (shape[0] // len(names), *shape[1:]) for each in names}
    assert found == shapes
