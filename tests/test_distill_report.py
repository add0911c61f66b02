"""The page of a distillation says what the files say, is whole where some are missing, escapes what is foreign, opens offline."""

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from penstock.curves import HEIGHT
from penstock.distill_report import write_report
from penstock.errors import BadData, SourceNotFound
from penstock.report import dump_json
from penstock.train.distill_sheets import HELD_FOLDER, INDEX
from tests.test_sequence_report import CHROMIUM, PROBE, browse

EVIL = "<script>alert(1)</script>&\"'"
METRICS = {
    "samples": 40.0, "without_box": 2.0, "unreadable": 1.0, "cosine": 0.875, "mse": 0.05, "cka": 0.75, "std_ratio": 0.9,
    "edge_f1": 0.55, "miou_student_gt": 0.625, "miou_teacher_gt": 0.78125, "miou_student_teacher": 0.7,
}  # fmt: skip
BASELINES = {
    "untrained": {"cosine": 0.02, "mse": 1.5, "miou_student_gt": 0.25},
    "mean_feature": {"cosine": 0.9, "mse": 0.1, "miou_student_gt": 0.375},
}
REPORT = {
    "config": {"loss_type": "mse", "binary_data_path": "/data/set", "decoder": None},
    "student": "yolov8", "teacher": "sam2.1_hiera_b+", "samples": 11000, "held_out": 48, "steps": 400, "step": 400,
    "first_step": 0, "metrics": METRICS, "baselines": BASELINES, "checkpoint": "run/step_400",
    "export": {"image_size": 1024, "outputs": {"edge": ["batch", 1, 256, 256]},
               "files": {"student.onnx": {"format": "onnx", "max_abs_error": 1.25e-06, "cosine": 1.0}, "odd": {"cosine": 0.5}}},
    "data": [{"dropped": {"empty mask": 3}}],
}  # fmt: skip


def write_log(folder: Path, steps: int = 40, evals: int = 4) -> None:
    lines: list[dict[str, Any]] = []
    for number in range(1, steps + 1):
        step = number * 10
        lines.append({"step": step, "feature": 1 / number, "loss": 1 / number, "learning_rate": 0.001, "gradient_norm": 1.0,
                      "samples_per_s": 200.0 + number % 2, "data_wait": 0.015, "copy": 0.002, "step_p50_ms": 150.0,
                      "step_p99_ms": 180.0, "sources": {"a": 1.0}})  # fmt: skip
        if evals and number % (steps // evals) == 0:
            shares = {f"eval/{name}": value * number / steps for name, value in METRICS.items()}
            lines.append({"step": step, **shares, "eval/miou_teacher_gt": METRICS["miou_teacher_gt"]})
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def write_pictures(folder: Path, name: str, keys: list[str]) -> None:
    (folder / name).mkdir(parents=True)
    stream = io.BytesIO()
    Image.fromarray(np.full((333, 1592, 3), 200, np.uint8)).save(stream, "JPEG")
    listed = []
    for number, key in enumerate(keys):
        (folder / name / f"{number}.jpg").write_bytes(stream.getvalue())
        listed.append({"file": f"{number}.jpg", "key": key, "words": "error 0.5, cosine 0.875"})
    (folder / name / INDEX).write_text(dump_json({"step": 390, "samples": listed}))


def write_run(folder: Path, **changes: Any) -> Path:
    """A finished run."""
    folder.mkdir(parents=True, exist_ok=True)
    write_log(folder)
    (folder / "report.json").write_text(dump_json({**REPORT, **changes}))
    write_pictures(folder, "worst", ["sa_1", "sa_2"])
    write_pictures(folder, HELD_FOLDER, ["sa_9"])
    return folder


def text_of(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def row_of(page: str, label: str) -> list[str]:
    """The cells of a table's row, without marks."""
    (row,) = re.findall(rf"<tr><th>{re.escape(label)}.*?</tr>", page)
    return [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)]


def test_the_page_says_what_the_report_says(tmp_path: Path) -> None:
    page = text_of(write_run(tmp_path / "run"))
    assert (
        "Student <b>yolov8</b>, teacher <b>sam2.1_hiera_b+</b>: 400 of 400 steps on 11,000 pictures, 48 held out"
        in page
    )
    assert "40 of them evaluated, 2 of these without a box, 1 not readable." in page
    assert "unreadable" not in page
    assert "teacher 0.7812 (80% of it), untrained 0.25, mean feature 0.375" in page
    assert row_of(page, "mIoU of the frozen decoder&#39;s masks, student&#39;s features against the truth")[1:] == [
        "miou_student_gt", "more", "0.625", "0.25", "0.375", "0.7812", "better"]  # fmt: skip
    assert row_of(page, "cosine of the features")[3:] == ["0.875", "0.02", "0.9", "", "not better than mean feature"]
    assert row_of(page, "mean squared error")[2:] == ["less", "0.05", "1.5", "0.1", "", "better"]
    assert row_of(page, "channel standard deviations")[2:] == ["", "0.9", "", "", "", ""]
    assert "By the masks of the frozen decoder the student beats its untrained self and the mean feature." in page
    assert "By the cosine of the features the student does not beat the mean feature." in page
    assert row_of(page, "samples a second")[1:] == ["200.5", "200", "201", "200"]
    assert row_of(page, "waiting for data")[1:] == ["1.50 %"] * 4
    assert row_of(page, "<code>student.onnx")[1:] == ["onnx", "1.25e-06", "1"]
    assert row_of(page, "<code>odd")[1:] == ["", "", "0.5"]
    assert row_of(page, "image_size")[1:] == ["1024"]
    assert row_of(page, "outputs.edge")[1:] == ["batch, 1, 256, 256"]
    assert row_of(page, "data.0.dropped.empty mask")[1:] == ["3"]
    assert row_of(page, "binary_data_path")[1:] == ["/data/set"]
    assert row_of(page, "decoder")[1:] == ["none"]
    assert page.count("data:image/jpeg;base64,") == 3
    assert page.index("sa_9") < page.index("sa_1")
    assert "untrained: 1.5, beyond the picture" in page
    assert "stand-in" not in page
    assert "went on" not in page
    assert "went on from step 100" in text_of(write_run(tmp_path / "later", first_step=100))


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = text_of(write_run(tmp_path / "run"))
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert "http" not in page.replace("http://www.w3.org", "")
    assert re.findall(r"url\(|@import|<link|<iframe|<script", page) == []
    assert "prefers-color-scheme: dark" in page
    ids = re.findall(r'id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_a_stand_in_is_called_one(tmp_path: Path) -> None:
    teacher = {"model_type": "stand-in", "identity": {"seed": 0}}
    page = text_of(write_run(tmp_path, teacher=teacher, student={"student": "repvit", "weights": None}))
    assert "Student <b>repvit</b>" in page
    assert row_of(page, "teacher.identity.seed")[1:] == ["0"]
    assert "teacher <b>stand-in</b>" in page
    assert "The teacher is a stand-in without learned weights" in page


def test_what_is_foreign_is_escaped(tmp_path: Path) -> None:
    run = tmp_path / "<b>run"
    metrics = {**METRICS, EVIL: 1.0}
    write_run(
        run,
        student=EVIL,
        teacher=EVIL,
        metrics=metrics,
        config={EVIL: EVIL},
        export={EVIL: EVIL, "files": {EVIL: {EVIL: EVIL}}},
        checkpoint=EVIL,
    )
    write_pictures(run, "more", [EVIL])
    (run / "more").rename(run / "gone")
    listed = [{"file": f"{number}.jpg", "key": EVIL, "words": EVIL} for number in (0, 7)]
    (run / "worst" / INDEX).write_text(dump_json({"step": EVIL, "samples": listed}))
    with (run / "log.jsonl").open("a") as file:
        file.write(json.dumps({"step": 410, EVIL: 1.0}) + "\n" + json.dumps({"step": 410, f"eval/{EVIL}": 1.0}) + "\n")
    page = text_of(run)
    assert "<script" not in page
    assert "<b>run" not in page
    assert page.count("&lt;script&gt;alert(1)") >= 10
    assert "7.jpg is not in worst any more" in page


def test_a_picture_is_never_taken_from_outside_its_folder(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    listed = [{"file": "../../secret.jpg", "key": "x"}]
    (run / "worst" / INDEX).write_text(dump_json({"step": 1, "samples": listed}))
    page = text_of(run)
    assert "secret.jpg is not in worst any more" in page
    assert page.count("data:image/jpeg") == 1


def test_a_run_in_its_course_has_a_page(tmp_path: Path) -> None:
    write_log(tmp_path, evals=0)
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(b'[1]\n{"loss": 3}\n{"step": tru')
    page = text_of(tmp_path)
    for words in ("The run has not ended", "Nothing was evaluated", "Not recorded", 'id="training"', 'id="throughput"'):
        assert words in page
    assert "Worst" not in page
    assert "Export" not in page
    assert page.count("<svg") == 7


def test_a_report_without_log_baselines_or_pictures_is_shown(tmp_path: Path) -> None:
    report = {**REPORT, "baselines": {"untrained": None}, "export": None}
    (tmp_path / "report.json").write_text(dump_json(report))
    page = text_of(tmp_path)
    assert row_of(page, "cosine of the features")[3:] == ["0.875", ""]
    assert page.count("The log has no line of training") == 2
    assert "beside the baselines" not in page
    assert "<svg" not in page
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "report.json").write_text("{}")
    assert "Nothing was evaluated" in text_of(bare)


def test_numbers_that_are_not_finite_are_said(tmp_path: Path) -> None:
    nothing = dict.fromkeys(METRICS, math.nan) | {"samples": 0.0}
    baselines = {"untrained": dict.fromkeys(METRICS, None), "mean_feature": {"cosine": math.inf}}
    run = write_run(tmp_path, metrics=nothing, baselines=baselines)
    with (run / "log.jsonl").open("a") as file:
        file.write(
            '{"step": 410, "loss": null, "samples_per_s": NaN}\n{"step": 420, "eval/cosine": null, "eval/new": null}\n'
        )
    page = text_of(run)
    assert row_of(page, "cosine of the features")[3:6] == ["not finite"] * 3
    assert page.count('class="tile"') == 1  # samples a second
    assert "beats" not in page
    assert "better than" not in page
    assert not re.search(r"\bnan\b|\bNaN\b", re.sub(r"base64,[^\"]*", "", page))


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e17, 1e-12])
def test_one_evaluation_is_a_dot_in_its_picture(tmp_path: Path, value: float) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 10, "eval/new": value}) + "\n")
    page = text_of(tmp_path)
    (points,) = re.findall(r'<polyline points="([^"]*)"', page)
    first, second = points.split()
    assert first == second
    assert 0 < float(first.split(",")[1]) < HEIGHT
    assert "stroke-linecap: round" in page


def test_long_logs_are_thinned(tmp_path: Path) -> None:
    write_log(tmp_path, steps=2100, evals=0)
    page = text_of(tmp_path)
    assert "mean of 6 lines" in page
    assert max(one.count(",") for one in re.findall(r'points="([^"]*)"', page)) == 350


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match=r"report\.json"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "report.json").write_text("{torn")
    with pytest.raises(BadData, match=r"report\.json"):
        write_report(tmp_path)
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(BadData, match="a JSON object, got a list"):
        write_report(tmp_path)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_page_opens_in_a_real_browser(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    listed = json.loads((run / "worst" / INDEX).read_text())
    listed["samples"][0]["key"] = EVIL
    (run / "worst" / INDEX).write_text(dump_json(listed))
    probed = tmp_path / "probed.html"
    probed.write_text(text_of(run).replace("</html>", PROBE + "</html>"), encoding="utf-8")
    dom = browse(probed, tmp_path, "--window-size=1200,900", "--dump-dom")
    match = re.search(r'<pre id="probe">(.*?)</pre>', dom)
    assert match, dom[-2000:]
    found = json.loads(match[1].replace("&amp;", "&"))
    assert found["images"] == [1592] * 3
    assert len(found["charts"]) >= 12
    assert min(found["charts"]) > 100
    assert found["overflow"] <= 0
    assert found["loaded"] == []
    wanted = {"Held out", "Training", "Throughput", "Worst held-out samples", "Export", "Settings"}
    assert wanted <= set(found["headings"])
