"""Reports of whole, partial and broken run folders."""

import json
import re

import numpy as np
import pytest

from jaxal.core.types import InputError
from jaxal.core.units import KCAL_PER_MOL
from jaxal.report import figures, page


def write_run(directory, labels: int = 120, seed: int = 0):
    """A run folder whose numbers behave like those of a real run: errors fall with labels, the gate calms down."""
    rng = np.random.default_rng(seed)
    records = [{"kind": "phase", "wall": 0.0, "phase": "initial", "why": ""}]
    wall, ps = 40.0, 0.0
    records.append({"kind": "phase", "wall": wall, "phase": "explore", "why": ""})
    for label in range(1, labels + 1):
        wall += rng.exponential(4.0)
        ps += 0.002 * label * rng.exponential(1.0)
        scale = 0.6 * label**-0.35
        estimated = scale * rng.lognormal(0.1, 0.3)
        worst = estimated * rng.lognormal(-0.35, 0.35)
        ok = rng.random() > 0.03
        records.append(
            {
                "kind": "label", "wall": wall, "label": label, "ps": ps, "score": estimated / 2.1,
                "estimated": estimated, "error": worst if ok else None, "rmse": 0.35 * worst if ok else None,
                "probe": label % 12 == 0, "ok": bool(ok), "reason": "" if ok else "net force <1 eV/Å>",
            }
        )  # fmt: skip
        if label % 4 == 0:
            flagged = min(1.0, 2.0 / label)
            records.append(
                {
                    "kind": "segment", "wall": wall, "ps": ps, "labels": label, "failed": 1, "looks": 200,
                    "flagged": flagged, "unphysical": 0.002, "factor": 2.1, "threshold": 0.15 + 0.1 * flagged,
                    "coverage": 0.93, "causes": {"too hot": 0.002},
                    "estimated": 0.5 * scale, "worst": 1.4 * scale,
                    "loss": 0.1, "holdout_force_rmse": 0.3 * scale if label > 8 else None, "temperature": 500.0,
                }
            )  # fmt: skip
    why = "no gate for 5 ps per walker"
    records.append({"kind": "phase", "wall": wall, "phase": "final training", "why": why})
    records.append({"kind": "phase", "wall": wall + 90, "phase": "validation", "why": why})
    records.append({"kind": "phase", "wall": wall + 100, "phase": "done", "why": why})
    (directory / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    coordinate = np.linspace(0, 0.82, 9)
    energies = 3.76 * KCAL_PER_MOL * np.sin(np.pi * coordinate / 0.82) ** 2
    estimated = rng.lognormal(-2.2, 0.4, 500)
    statistic = {"mae": 0.02, "rmse": 0.031, "largest": 0.3, "count": 13500}
    validation = {
        "errors": {
            "energy": {**statistic, "rmse": 0.0011}, "energy_shifted": {**statistic, "mae": None}, "force": statistic,
            "stress": {**statistic, "count": 0}, "elements": {"C": statistic, "H": statistic},
        },
        "estimated": estimated.tolist(),
        "energies": {"spearman": 0.5, "scale": 2.0, "sharpness": 0.001, "crps": 0.001, "nll": -5.0, "area": None},
        "components": {"spearman": 0.7, "scale": 2.5, "sharpness": 0.03, "crps": 0.02, "nll": -2.0, "area": 0.05},
        "elements": {"C": {"covered": 0.97, "covered_error": 0.01, "scale": 2.0, "count": 1500}},
        "worst": (estimated * rng.lognormal(-0.4, 0.35, 500)).tolist(),
        "barrier": {
            "model": {
                "energy": 3.6 * KCAL_PER_MOL, "coordinate": coordinate.tolist(), "energies": (energies / 1.05).tolist(),
            },
            "reference": {
                "energy": 3.76 * KCAL_PER_MOL, "energies": energies.tolist(), "coordinate": coordinate.tolist(),
                "name": "GFN2-xTB",
            },
        },
        "stability": {"drift": [0.01, -0.02], "intact": [True, True]},
    }  # fmt: skip
    (directory / "validate.json").write_text(json.dumps(validation))
    (directory / "config.yaml").write_text(
        "system: {file: malonaldehyde.xyz, charge: 0}\ngate: {name: conformal, target_error: 0.15, miss_rate: 0.1}\n"
    )
    (directory / "versions.json").write_text('{"python": "3.11.9", "jax": "0.10.1"}')
    frame = "2\nProperties=species:S:1:pos:R:3\nH 0 0 0\nH 0 0 1\n"
    (directory / "training.xyz").write_text(frame * labels)
    return records


def test_whole_run(tmp_path):
    records = write_run(tmp_path)
    html = page.write(tmp_path)
    assert html == tmp_path / "report.html"
    text = html.read_text()
    assert text.count("<img ") == len(figures.FIGURES) == 5
    # self-contained: no address outside the file, neither in the page nor in a figure
    assert not re.search(r'(?:src|href)="(?!data:)|url\(|<script|@import', text)
    for word in ("within their estimated error, % (wanted 90)", "93.0", "miscalibration area", "atoms of C within"):
        assert word in text, word
    for word in (
        "too hot",
        "malonaldehyde.xyz",
        "target_error",
        "0.10.1",
        "no gate for 5 ps",
        "net force &lt;1 eV/Å&gt;",
        "3.76",
    ):
        assert word in text, word

    data = json.loads((tmp_path / "report.json").read_text())
    good = [r for r in records if r["kind"] == "label" and r["ok"]]
    assert data["summary"]["labels"] == len(good)
    assert data["summary"]["training_structures"] == 120
    assert data["summary"]["phase"] == "done"
    assert data["figures"]["calibration"]["error"] == [r["error"] for r in good]
    learning = data["figures"]["learning"]
    assert len(learning["label"]) + len(learning["probe_label"]) == len(good)
    assert data["figures"]["labels"]["count"][-1] == len(good)
    assert set(data["figures"]) == set(figures.FIGURES)


def test_the_same_run_gives_the_same_report(tmp_path):
    write_run(tmp_path, labels=20)
    first = page.write(tmp_path).read_bytes()
    assert page.write(tmp_path).read_bytes() == first


@pytest.mark.parametrize("missing", ["metrics.jsonl", "validate.json", "config.yaml", "versions.json", "training.xyz"])
def test_a_missing_file(tmp_path, missing):
    write_run(tmp_path, labels=12)
    (tmp_path / missing).unlink()
    page.write(tmp_path)
    data = json.loads((tmp_path / "report.json").read_text())
    assert ("gate" in data["figures"]) == (missing != "metrics.jsonl")
    assert ("path" in data["figures"]) == (missing != "validate.json")


def test_every_prefix_of_a_run_in_progress(tmp_path):
    write_run(tmp_path, labels=8)
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    for name in ("validate.json", "training.xyz", "config.yaml"):
        (tmp_path / name).write_text("{ [half")
    for size in (0, 1, 60, len(whole) // 3, len(whole) // 2, len(whole) - 7):
        (tmp_path / "metrics.jsonl").write_bytes(whole[:size])
        page.write(tmp_path)
        json.loads((tmp_path / "report.json").read_text())


def test_records_without_errors_and_an_empty_folder(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        page.write(tmp_path / "nowhere")
    assert "<h1>" in page.write(tmp_path).read_text()
    lines = [
        {"kind": "label", "wall": 1, "label": 1, "ps": 0, "estimated": None, "error": None, "rmse": None, "ok": True},
        {"kind": "label", "wall": 2, "label": 2, "ps": 0, "estimated": 0.0, "error": 0.0, "rmse": 0.0, "ok": False},
        {"kind": "segment", "wall": 3},
        {"kind": "phase", "phase": "done"},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n17\n")
    assert page.write(tmp_path).read_text().count("<img ") == 4


def test_running_median():
    np.testing.assert_allclose(figures.running_median(np.array([3.0, 1, 2, 9, 9]), 3), [3, 2, 2, 2, 9])
