"""Results in files become one page: each section from small results, whatever their files are called."""

from __future__ import annotations

import base64
import gzip
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from sottovoce.cli import main
from sottovoce.errors import BadFile, BadInput
from sottovoce.lab.report import MOST_BYTES, report
from sottovoce.lab.scored import Scored, write_scores
from sottovoce.lab.sources import KINDS, read_sources
from sottovoce.scores.metrics import curve, eer

EVIL = '</script ><script>alert("x")</script>&$\\frac{'
VOID = {"meta", "link", "br", "hr", "img", "input"}


def one_list(name: str = "a.txt", eer: float = 0.05, **more: Any) -> dict[str, Any]:
    return {
        "list": name,
        "list_sha256": "ab12cd34ef",
        "trials": 400,
        "targets": 100,
        "speakers": 12,
        "eer": eer,
        "eer_interval": [0.03, 0.08],
        "min_dcf": {"0.01": 0.4, "0.05": 0.3},
        "min_dcf_interval": {"0.01": None, "0.05": None},
        "trials_excluded": 2,
        "excluded": [{"path": "bad.wav", "error": "SilentAudio: bad.wav: digital silence"}],
        **more,
    }


def model(name: str, size: int, eer: float, **more: Any) -> dict[str, Any]:
    interval = {
        "mean_eer_interval": [eer - 0.01, eer + 0.01],
        "relative_eer": 0.1,
        "relative_eer_interval": [-0.1, 0.2],
    }
    return {"name": name, "bytes": size, "mean_eer": eer, **interval, "lists": [one_list(eer=eer)], **more}


def flips(harmful: int) -> dict[str, Any]:
    bins = [("near", 0.0, 0.05, harmful), ("middle", 0.05, 0.15, 1), ("far", 0.15, None, 0)]
    return {
        "bins": [
            {"bin": name, "from": low, "to": high, "trials": 50, "harmful": count, "beneficial": 2}
            for name, low, high, count in bins
        ]
    }


def drifted(eer: float, harmful: int) -> dict[str, Any]:
    moved = {"mean_abs": 0.02, "target_mean": -0.01, "nontarget_mean": None, "correlation": 0.98}
    return {"eer": eer, "eer_change": 0.01, "eer_change_interval": None, **moved, "flips": flips(harmful)}


BARS = {"from": -1.0, "to": 1.0, "targets": [0, 0, 3, 7], "nontargets": [1, 8, 2, 0]}
WEIGHTS = {"spec": "kmeans2", "bits": 2, "kurtosis": 4.2, "relative_error": 0.3, "mean_error": 0.1}
HISTOGRAM = {"unit": "the outermost level", "from": -1.5, "to": 1.5, "counts": [1, 5, 4, 1], "levels": [-1.0, 0.0, 1.0]}
LAYER = {"layer": "block.conv", "stage": "block", "shape": [4, 3, 3], "parameters": 36, "macs": 3600}
RATIO = {"actual": 0.3, "least": 0.25, "ratio": 1.2, "ratio_range": [1.05, 1.4], "within_10_percent": False}
COSTS = {"cllr": 0.31, "min_cllr": 0.25, "act_dcf": {"0.01": 0.6}, "min_dcf": {"0.01": 0.5}}
POINT = {"threshold": 0.42, "false_accepts": 0.05, "misses": 0.06, "trials": 400, "rule": "EER"}
ALONE = {"bits": 4.0, "ms_fresh_pair": 9.0, "ms_shared": 1.0, "all": 0.04, "mean_eer": 0.04, "lists": [0.04]}
STAGES = [
    {"file": "2.onnx", "bits": 2.0, "bytes": 10, "resident_bytes": None, "reached": 1.0, "stopped": 0.8, "ms": 2.0},
    {"file": "4.onnx", "bits": 4.0, "bytes": 20, "resident_bytes": 30, "reached": 0.2, "stopped": 0.2, "ms": 4.5},
]
CASCADE = {
    "stages": [{**stage, "alone": ALONE} for stage in STAGES],
    "cost": {"bits": 2.8, "ms_fresh_pair": 5.8, "ms_shared": 1.2},
    "lists": [one_list(stopped=[0.8, 0.2], relative_eer=0.01, relative_eer_interval=None)],
    "all": one_list(stopped=[0.8, 0.2], relative_eer=0.01, relative_eer_interval=None),
    "disagreement": 0.01,
}

MADE: dict[str, dict[str, Any]] = {
    "comparison": {
        "what": "EER",
        "command": "real.py",
        "models": [model("float", 4000, 0.04), model("2 bits", 500, 0.05)],
    },
    "evaluation": {"model": "m.onnx", "lists": [one_list(few_errors=True, min_cllr=0.2, cllr=0.25)], "mean_eer": 0.05},
    "drift": {
        "models": [{"model": "float.onnx"}, {"model": "2.onnx"}],
        "lists": [
            {
                **one_list(),
                "threshold": 0.4,
                "models": [
                    {"model": "float.onnx", "eer": 0.04, "scores": BARS},
                    {"model": "2.onnx", "scores": BARS, "full": drifted(0.05, 7), "test_only": None},
                ],
            }
        ],
        "means": [{}, {}],
        "knee": {"points": [{"model": "2.onnx", "bits": 2.0, "mean_abs": 0.02}], "model": None, "bits": None},
    },
    "probe": {
        "labels": [{"label": "gender", "classes": [], "chance_balanced_accuracy": 0.5}],
        "models": [
            {"model": f"{bits}.onnx", "bits": bits, "probes": [{"balanced_accuracy": 0.8, "accuracy": 0.81}]}
            for bits in (32, 2)
        ],
    },
    "analysis": {
        "plan": "*=kmeans2",
        "whole": {"drift": 0.05, "float_eer": 0.04, "eer": 0.06, "eer_loss": 0.02},
        "stages": [{"stage": "block", "kept_in_float": {"drift_recovery": 0.4, "eer_recovery": 0.3}}],
        "layers": [
            {**LAYER, "weights": {**WEIGHTS, "histogram": HISTOGRAM}, "alone": {"drift": 0.01, "eer_loss": 0.002}}
        ],
        "correlations": [{"of": "parameters", "with": "drift", "layers": 9, "spearman": 0.5, "p": 0.1}],
    },
    "sensitivity": {"settings": {"method": "drift"}, "values": {"conv": {"kmeans2": 0.1, "kmeans4": 0.0}}, "rank": {}},
    "sweep": {
        "settings": {"seed": 3},
        "sets": [{"groups": ["conv1"], "bytes": 900, "mean_eer": 0.05}],
        "complete": False,
    },
    "inspection": {
        "model": "m.onnx",
        "sha256": "77",
        "bytes": 1234,
        "macs": 10**9,
        "bit_operations": 10**11,
        "plan": "*=kmeans2",
        "layers": [{"name": "conv", "shape": [3, 3], "format": "kmeans2", "bits": 2, "bytes": 20, "macs": 7}],
        "float_layers": [{"name": "norm", "shape": [3], "macs": 1}],
        "licence": "Apache-2.0",
        "operating_points": {"balanced": POINT},
    },
    "allocation": {
        "plan": "p",
        "predicted_damage": 0.1,
        "layers": [{"name": "conv", "bits": 4, "bytes": 9, "damage": 0.1}],
    },
    "calibration": {
        "model": "m.onnx",
        "before": None,
        "calibration": {"method": "affine", "scale": 20.0, "offset": -8.0, **COSTS, "held_out": [COSTS]},
        "operating_points": {"balanced": POINT},
        "operating_points_refused": {"secure": "would stand on 0.3 false accepts"},
    },
    "calibrations": {
        "models": {
            bits: {
                "pooled": {"affine": {"halves": 2, "cllr": RATIO, "dcf 0.01": RATIO}},
                "pooled_calibration_on_each_list": {"a": {"cllr": RATIO}},
                "with_the_calibration_of_the_first": {"cllr": RATIO} if bits == "2" else None,
            }
            for bits in ("float", "2")
        },
        "floor": {"pooled": {"cllr": {"ratio": 1.073}}},
    },
    "cascade": CASCADE,
    "tuning": {
        "gates": [{"low": 0.2, "high": None}],
        "eer_of_stages": [0.06, 0.04],
        "stopped": [0.8, 0.2],
        "curve": [{"cost": 2.0, "eer": 0.06}, {"cost": 3.0, "eer": 0.04}],
        "unit": "bits",
        "bits_per_trial": 2.8,
        "eer": 0.041,
    },
    "cascades": {
        "rows": [{"cascade": "a", "scope": "all", "target": "2%", "tuned_on": "a", "tuned": {}, "measured": CASCADE}]
    },
    "timing": {
        "threads": 1,
        "machine": {"processor": "chip", "cores": 2, "vnni": True, "system": "Linux"},
        "rows": [
            {"name": "this file", "seconds": 3.0, "median_ms": 9.1, "min_ms": 9.0, "cpu_ms": 8.9, "ratio": 1.0},
            {"name": "torch float", "seconds": 3.0, "median_ms": 30, "min_ms": 29, "cpu_ms": 29, "ratio": 3.2},
        ],
    },
    "timings": {"networks": {"n": {"bits": 4, "rows": [{"name": "x", "seconds": 3.0, "median_ms": 9, "cpu_ms": 8}]}}},
    "contract": {"rows": [{"network": "n", "bits": 2, "bytes": 5, "packed_bytes": 4, "limit_bytes": 6, "speed": []}]},
    "demo": {"rows": [{"weights": "2 bits", "size_ratio": 12.0}]},
    "compression": {"cosine_to_checkpoint": {"mean": 0.99}, "plan": "*=kmeans2", "bytes": 10},
    "measurement": {
        "command": "python b.py",
        "machine": "here",
        "versions": {"python": "3"},
        "rows": [{"a_b": 1.5, "c": None}],
    },
}
# which sections each kind fills
FILLS = {
    "comparison": {"size-and-error", "error-rates", "excluded"},
    "evaluation": {"error-rates", "calibration", "excluded"},
    "drift": {"scores", "flips", "drift", "excluded"},
    "probe": {"probes"},
    "analysis": {"sensitivity", "weights"},
    "sensitivity": {"sensitivity"},
    "sweep": {"sensitivity"},
    "inspection": {"bits"},
    "allocation": {"bits"},
    "calibration": {"calibration"},
    "calibrations": {"calibration"},
    "cascade": {"cascade", "excluded"},
    "tuning": {"cascade"},
    "cascades": {"cascade", "excluded"},
    "timing": {"speed"},
    "timings": {"speed"},
    "contract": {"speed"},
    "demo": {"other-measurements"},
    "compression": {"other-measurements"},
    "measurement": {"other-measurements"},
}


def scored(name: str = "a.txt", seed: int = 0) -> Scored:
    rng = np.random.default_rng(seed)
    labels = np.repeat([1, 0], [60, 240]).astype(np.uint8)
    scores = (rng.normal(size=300) * 0.2 + 0.5 * labels).astype(np.float32)
    rows = np.zeros(300, dtype=np.int64)
    return Scored(name, "ab12cd34ef", ["u"], ["s"], rows, rows, rows, rows, labels, scores)


@pytest.fixture
def put(tmp_path):
    """Writes a result under a name that says nothing."""

    def write(content: Any) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.result"
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return write


@pytest.fixture
def scores(tmp_path):
    path = tmp_path / "scores"
    write_scores(path, [scored()], {"model": "m.onnx", "model_sha256": "77"})
    return path


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    steps = [json.dumps({"step": step, "loss": 9.0 - step / 10, "seconds": 0.1}) for step in range(40)]
    (folder / "log.jsonl").write_text("\n".join([*steps, '{"step": 40, "lo']), encoding="utf-8")
    return folder


def shown(out: Path) -> str:
    return out.read_text(encoding="utf-8")


class Checked(HTMLParser):
    """Tags balanced, ids once, links inside the page lead somewhere, nothing is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.ids += [values["id"]] if values.get("id") else []
        self.links += [values["href"][1:]] if (values.get("href") or "").startswith("#") else []
        self.links += re.findall(r"url\(#([^)]*)\)", " ".join(str(value) for value in values.values()))
        self.links += (values.get("aria-labelledby") or "").split()
        self.loads += [f"{name}={value}" for name, value in attrs if name in ("src", "srcset", "action", "data")]
        self.loads += [str(v) for name, v in attrs if name in ("href", "xlink:href") and not (v or "").startswith("#")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"


def test_calibrations_stand_beside_what_perfect_llrs_would_show(put, tmp_path):
    out = tmp_path / "page.html"
    report([put(MADE["calibrations"])], out)
    part = shown(out).partition("What perfect log-likelihood ratios would show")[2].partition("</table>")[0]
    assert "pooled" in part
    assert "1.073" in part


def test_it_is_told_whose_errors_a_cost_stands_on(put, tmp_path):
    content = json.loads(json.dumps(MADE["calibrations"]))
    sides = {"misses_of_one_speaker": 0.07, "false_accepts_of_one_pair": 0.8}
    content["models"]["2"]["support"] = {
        "pooled": {"0.01": {"misses": 1251, "false_accepts": 71, **sides, "few": True}}
    }
    out = tmp_path / "page.html"
    report([put(content)], out)
    part = shown(out).partition("Whose errors these costs stand on")[2].partition("</table>")[0]
    assert all(f">{cell}<" in part for cell in ("1,251", "7", "71", "80", "few"))
    report([put(MADE["calibrations"])], out)
    assert "Whose errors" not in shown(out), "older results have no such counts"


def parsed(out: Path) -> Checked:
    found = Checked()
    found.feed(shown(out))
    assert found.open == []
    assert len(found.ids) == len(set(found.ids))
    assert set(found.links) <= set(found.ids)
    assert found.loads == []
    return found


def test_every_kind_of_result_is_made_here() -> None:
    assert set(MADE) == set(KINDS)
    assert set(FILLS) == set(KINDS)


@pytest.mark.parametrize("kind", MADE)
def test_a_result_is_recognised_by_its_content_and_fills_its_sections(kind, put, tmp_path) -> None:
    path = put(MADE[kind])
    assert [source.kind for source in read_sources([path]).sources] == [kind]
    made = report([path], tmp_path / "r.html")
    assert set(made["sections"]) == FILLS[kind] | {"limits", "machine-and-commands"}
    assert {"section", "command"} == made["missing"][0].keys()
    parsed(tmp_path / "r.html")


@pytest.fixture
def everything(put, scores, run):
    return [*(put(content) for content in MADE.values()), scores, run]


def test_a_page_of_everything_is_whole_small_and_loads_nothing(everything, tmp_path) -> None:
    out = tmp_path / "r.html"
    made = report(everything, out)
    assert made["missing"] == []
    assert "Not in this report" not in shown(out)
    assert made["bytes"] == out.stat().st_size < MOST_BYTES
    found = parsed(out)
    assert not re.search(r"https?:|@import|javascript:", shown(out))
    assert [tag for tag in found.tags if tag in ("script", "iframe", "img", "link", "object")] == ["script"] * 2
    assert found.tags.count("svg") == shown(out).count('role="img"') == shown(out).count("<desc ")
    assert found.tags.count("h1") == 1
    assert found.tags.count("h2") == len(made["sections"]) + 1  # and the table of contents
    drawings = "".join(re.findall(r"<svg.*?</svg>", shown(out), re.DOTALL))
    assert "mathdefault" not in drawings
    assert "currentColor" in drawings  # figures follow the page into the dark
    assert not re.search(r"#0[01][0-9a-f]{4}\b|#ffffff|#000000", drawings)
    body = re.search(r'<script type="application/gzip" id="data">(.*?)</script>', shown(out), re.DOTALL)
    assert body
    assert {
        **json.loads(gzip.decompress(base64.b64decode(body[1]))),
        "out": str(out),
        "bytes": made["bytes"],
    } == json.loads(json.dumps(made))


def test_the_same_files_give_the_same_bytes(put, scores, tmp_path) -> None:
    some = [scores, put(MADE["comparison"]), put(MADE["analysis"]), put(MADE["drift"])]
    report(some, tmp_path / "a.html")
    report(some, tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_date_and_a_title_stand_on_the_page_where_they_are_given(put, tmp_path) -> None:
    report([put(MADE["demo"])], tmp_path / "r.html", date="1 May", title="Ours")
    assert "1 May" in shown(tmp_path / "r.html")
    assert "<h1>Ours</h1>" in shown(tmp_path / "r.html")


def renamed(value: Any) -> Any:
    """Every text in a result replaced by one that would harm a page."""
    if isinstance(value, dict):
        return {key: renamed(one) for key, one in value.items()}
    if isinstance(value, list):
        return [renamed(one) for one in value]
    return EVIL + value if isinstance(value, str) and value != "bits" else value


def test_what_comes_from_files_is_escaped(put, tmp_path) -> None:
    out = tmp_path / "r.html"
    report([put(renamed(content)) for content in MADE.values()], out, title=EVIL)
    assert "<script>" not in shown(out)
    assert parsed(out).tags.count("script") == 2
    assert shown(out).count("alert(") > 100


def test_names_of_lists_in_scores_are_escaped(tmp_path) -> None:
    write_scores(tmp_path / "s.npz", [scored(EVIL)], {"model": EVIL})
    report([tmp_path / "s.npz"], tmp_path / "r.html")
    assert "<script>" not in shown(tmp_path / "r.html")
    parsed(tmp_path / "r.html")


def test_det_points_lie_on_the_curve_and_the_rate_is_that_of_the_scores(scores, tmp_path) -> None:
    made = report([scores], tmp_path / "r.html")
    assert {"det", "scores", "calibration"} <= set(made["sections"])
    (found,) = made["sections"]["det"]["data"]
    one = scored()
    whole = curve(one.scores, one.labels)
    points = {(round(float(a), 5), round(float(m), 5)) for a, m in zip(whole.accepts, whole.misses, strict=True)}
    assert found["accepts"]
    assert set(zip(found["accepts"], found["misses"], strict=True)) <= points
    assert found["eer"] == pytest.approx(eer(one.scores, one.labels)[0])


def test_histograms_carry_the_points_of_the_inspected_file(scores, put, tmp_path) -> None:
    made = report([scores, put(MADE["inspection"])], tmp_path / "r.html")
    (panel,) = made["sections"]["scores"]["data"]
    assert panel["points"]["balanced"] == POINT["threshold"]
    assert (sum(panel["targets"]), sum(panel["nontargets"])) == (60, 240)


@pytest.mark.parametrize(("alone", "unit"), [({"drift": 0.1, "eer_loss": 0.02}, "EER"), ({"drift": 0.1}, "drift")])
def test_layers_are_told_by_eer_where_it_was_measured_else_by_drift(alone, unit, put, tmp_path) -> None:
    content = MADE["analysis"]
    made = report([put({**content, "layers": [{**content["layers"][0], "alone": alone}]})], tmp_path / "r.html")
    (shown_,) = made["sections"]["sensitivity"]["data"]
    assert unit in shown_["unit"]
    assert shown_["alone"] == {"block.conv": pytest.approx(2.0 if unit == "EER" else 0.1)}


def test_flips_are_summed_over_lists(put, tmp_path) -> None:
    content = {**MADE["drift"], "lists": 2 * MADE["drift"]["lists"]}
    made = report([put(content)], tmp_path / "r.html")
    near = made["sections"]["flips"]["data"][0]["bins"]["2.onnx"][0]
    assert (near["trials"], near["harmful"], near["beneficial"]) == (100, 14, 4)


def test_bytes_of_an_evaluated_file_come_from_its_inspection(put, tmp_path) -> None:
    rated = {**MADE["evaluation"], "model_sha256": "77"}
    assert "size-and-error" not in report([put(rated)], tmp_path / "r.html")["sections"]
    made = report([put(rated), put(MADE["inspection"])], tmp_path / "r.html")
    assert made["sections"]["size-and-error"]["data"][0]["files"][0]["bytes"] == 1234


def test_the_command_writes_the_page_and_prints_the_same_data(put, tmp_path) -> None:
    path, out = put(MADE["comparison"]), tmp_path / "r.html"
    done = CliRunner().invoke(main, ["report", str(path), "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["bytes"] == out.stat().st_size
    done = CliRunner().invoke(main, ["report", str(tmp_path), "--out", str(out)])
    assert done.exit_code == 2
    assert "a folder without log.jsonl" in done.stderr


@pytest.mark.parametrize("content", [{}, [], 3, {"rows": []}, {"models": []}, {"list": "a"}])
def test_json_that_is_no_result_is_refused_with_what_is_known(content, put, tmp_path) -> None:
    with pytest.raises(BadFile, match=r"result: is JSON, but .*sotto evaluate --json"):
        report([put(content)], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_other_files_and_folders_are_refused_by_name(tmp_path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF\x00\xff")
    (tmp_path / "empty").mkdir()
    (tmp_path / "deep.json").write_text("[" * 100_000, encoding="utf-8")
    for name, words in (
        ("a.wav", "neither JSON nor scores"),
        ("empty", "without log.jsonl"),
        ("none", "cannot be read"),
    ):
        with pytest.raises(BadFile, match=f"{name}: .*{words}"):
            read_sources([tmp_path / name])
    with pytest.raises(BadFile, match="neither JSON"):
        read_sources([tmp_path / "deep.json"])
    with pytest.raises(BadInput, match="needs results"):
        read_sources([])


def test_a_damaged_result_names_its_section_and_file(put, tmp_path) -> None:
    path = put({**MADE["timing"], "rows": [{"name": "x", "seconds": "long", "median_ms": None}]})
    with pytest.raises(BadFile, match=rf"section 'Speed' cannot be made.*{path.name}"):
        report([path], tmp_path / "r.html")


def test_a_page_that_is_too_large_is_refused_and_not_written(put, tmp_path) -> None:
    path = put({**MADE["measurement"], "note": "x" * MOST_BYTES})
    with pytest.raises(BadInput, match="give fewer files"):
        report([path], tmp_path / "r.html")
    assert list(tmp_path.glob("*.html")) == []
    with pytest.raises(BadInput, match="does not exist"):
        report([path], tmp_path / "no" / "r.html")
