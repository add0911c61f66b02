"""From photographs to a trained student: teach, train, compare. Run: python examples/04_distill_student.py [FOLDER [EPOCHS]]"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from photo_crops import write_crops

from penstock.cli import main

TRAINED, TRAIN_PICTURES = ("astronaut", "cat", "chelsea", "chair_00000001"), 192
HELD_OUT, HELD_PICTURES = ("owl", "parrot"), 32
FIRST = 1001
EPOCHS = 10
SHOWN = {
    "cosine": "cosine with the teacher's features",
    "miou_student_teacher": "mIoU with the teacher's masks",
    "miou_student_gt": "mIoU with the masks of the photographs",
}
REQUIRED = ("cosine", "miou_student_teacher")


def run(folder: Path, epochs: int = EPOCHS) -> None:
    """Features of a stand-in teacher, a student of them, and what it is worth on photographs that it never saw."""
    pictures, taught, trained = folder / "pictures", folder / "taught", folder / "student"
    write_crops(pictures, TRAINED, first=FIRST, count=TRAIN_PICTURES)
    write_crops(pictures, HELD_OUT, first=FIRST + TRAIN_PICTURES, count=HELD_PICTURES)  # the last ones are held out
    print(f"1. {TRAIN_PICTURES} crops of {', '.join(TRAINED)}; held out: {HELD_PICTURES} of {', '.join(HELD_OUT)}")

    print("2. penstock teacher: the stand-in, which is no network and no SAM2, and needs no weights")
    teach = ["teacher", "--source", f"sa1b:{pictures}", "--output", taught, "--model-type", "stand-in",
             "--image-size", 128, "--strategy", "largest", "--num-workers", 0, "--quiet"]  # fmt: skip
    print(f"3. penstock train distill: the backbone of YOLOv8-n, {epochs} epochs, no edges (slow on a CPU)")
    share = HELD_PICTURES / (TRAIN_PICTURES + HELD_PICTURES)
    train = ["train", "distill", "--binary-data-path", taught, "--output-dir", trained, "--backbone", "yolov8:n",
             "--decoder", "stand-in", "--edge-weight", 0, "--val-share", share, "--batch-size", 8, "--epochs", epochs,
             "--lr", 0.003, "--log-interval", 24, "--device", "cpu", "--quiet"]  # fmt: skip
    for step in (teach, train):
        code = main([str(word) for word in step])
        if code:
            sys.exit(code)
    compare(json.loads((trained / "report.json").read_text()))
    print(f"Look at {trained / 'report.html'}")


def compare(report: dict[str, Any]) -> None:
    """Prints what student and baselines reach on the photographs held out; exits with 1 if the student does not win."""
    own, untrained, mean = report["metrics"], *(report["baselines"][name] for name in ("untrained", "mean_feature"))
    print(f"4. {'on the photographs held out':40}student  untrained  mean feature  teacher")
    for name, label in SHOWN.items():
        ceiling = own["miou_teacher_gt"] if name == "miou_student_gt" else 1.0
        print(f"   {label:40}{own[name]:7.3f}{untrained[name]:11.3f}{mean[name]:14.3f}{ceiling:9.3f}")
    lost = [SHOWN[name] for name in REQUIRED if own[name] <= max(untrained[name], mean[name])]
    if lost:
        sys.exit(f"expected the student above both, got less in: {', '.join(lost)}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        target = Path(sys.argv[1])
        target.mkdir(parents=True, exist_ok=True)
        run(target, *map(int, sys.argv[2:3]))
    else:
        with tempfile.TemporaryDirectory() as name:
            run(Path(name))
