"""Analysis of a small network: reports agree with direct measurements, and a stopped call goes on."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sottovoce import networks, quant
from sottovoce.bits.plan import Plan
from sottovoce.errors import BadInput, BadPlan
from sottovoce.lab import analyze as analysis
from sottovoce.lab import checkpoint
from sottovoce.lab.analyze import analyze
from sottovoce.networks.cost import macs
from sottovoce.quant import sensitivity

NETWORK = {"kind": "resnet", "blocks": [1, 1], "width": 4, "dim": 16}


@pytest.fixture(scope="module")
def float_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = networks.build(**NETWORK)
    path = tmp_path_factory.mktemp("models") / "float.safetensors"
    checkpoint.save(path, network.eval(), {"network": NETWORK, "front_end": "wespeaker", "plan": "", "licence": "none"})
    return path


@pytest.fixture
def trials(tmp_path: Path) -> Path:
    names = [f"speech/s{speaker}/{take}.wav" for speaker in range(3) for take in range(2)]
    path = tmp_path / "trials.txt"
    path.write_text("\n".join(f"{int(a[:9] == b[:9])} {a} {b}" for a in names for b in names if a < b))
    return path


def test_the_report_is_what_a_network_with_the_plan_does(
    float_file: Path, corpus: Path, trials: Path, tmp_path: Path
) -> None:
    out = tmp_path / "analyze.json"
    plan = "seg_1=float; conv1=uniform8; *=kmeans2"
    report = analyze(
        float_file,
        plan=plan,
        data=corpus / "speech",
        trials=[trials],
        audio=corpus,
        utterances=3,
        eer_of="layers",
        out=out,
    )
    assert json.loads(out.read_text()) == json.loads(json.dumps(report, allow_nan=False))
    rows = {row["layer"]: row for row in report["layers"]}
    network = checkpoint.load(float_file).network
    assert list(rows) == list(quant.quantizable(network))
    assert {name: row["macs"] for name, row in rows.items()} == macs(network, 80, 298)
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1.0)
    assert rows["conv1"]["weights"]["spec"] == "uniform8/channel/mse"
    assert rows["seg_1"]["weights"] is rows["seg_1"]["alone"] is rows["seg_1"]["kept_in_float"] is None
    assert rows["seg_1"]["activations"]["local"]["relative_error"] == 0.0
    assert rows["seg_1"]["activations"]["propagated"]["relative_error"] > 0.0
    for row in report["stages"]:
        assert row["parameters"] == sum(rows[name]["parameters"] for name in row["layers"])
    assert next(row for row in report["stages"] if row["stage"] == "seg_1")["kept_in_float"] is None
    whole = report["whole"]
    assert whole["eer_loss"] == pytest.approx(whole["eer"] - whole["float_eer"])
    assert {"eer_loss"} <= rows["conv1"]["alone"].keys()
    assert {"eer", "eer_recovery"} <= rows["conv1"]["kept_in_float"].keys()
    back = rows["layer1.0.conv1"]["kept_in_float"]
    assert back["drift_recovery"] == pytest.approx(1 - back["drift"] / whole["drift"])


def test_damage_is_that_of_networks_quantized_by_hand(
    float_file: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drift of the whole, of one layer alone, and with one stage kept in float, from copies that carry the plan."""
    seen: list[torch.Tensor] = []
    real = analysis.read_crops
    monkeypatch.setattr(analysis, "read_crops", lambda *a: (seen.append(real(*a)[0]), real(*a))[1])
    report = analyze(float_file, bits=2, data=corpus / "speech", utterances=3)
    network = checkpoint.load(float_file).network
    quant.positive_gains(network, torch.randn(2, 80, 64))

    def drift(plan: str) -> float:
        twin: nn.Module = copy.deepcopy(network).eval()
        quant.attach(twin, Plan.parse(plan))
        with torch.no_grad():
            a, b = (nn.functional.normalize(model(seen[0]).double()) for model in (network.eval(), twin))
        return float((1 - (a * b).sum(dim=1)).mean())

    rows = {row["layer"]: row for row in report["layers"]}
    assert report["whole"]["drift"] == pytest.approx(drift(report["plan"]), rel=1e-4)
    assert rows["layer1.0.conv1"]["alone"]["drift"] == pytest.approx(
        drift("layer1.0.conv1=kmeans2; *=float"), rel=1e-3, abs=1e-9
    )
    stage = next(row for row in report["stages"] if row["stage"] == "layer2")
    assert stage["kept_in_float"]["drift"] == pytest.approx(drift(f"layer2.*=float; {report['plan']}"), rel=1e-4)
    assert "eer" not in stage["kept_in_float"]
    assert not any(row["with"].startswith("EER") for row in report["correlations"])
    known = {(row["of"], row["with"]): row for row in report["correlations"]}
    stats = pytest.importorskip("scipy.stats")
    causes = [row["weights"]["relative_error"] for row in report["layers"]]
    damages = [row["alone"]["drift"] for row in report["layers"]]
    found = known["relative error of the weights", "drift, layer alone"]
    assert found["spearman"] == pytest.approx(stats.spearmanr(causes, damages).statistic)
    assert found["layers"] == len(damages)


def test_a_stopped_call_goes_on(
    float_file: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "analyze.json"
    real, calls = sensitivity.measured, []

    def failing(*args):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(sensitivity, "measured", failing)
    with pytest.raises(KeyboardInterrupt):
        analyze(float_file, bits=2, data=corpus / "speech", utterances=2, out=out)
    assert not out.exists()
    first = analyze(float_file, bits=2, data=corpus / "speech", utterances=2, out=out)
    layers, groups = len(first["layers"]), len(first["stages"])
    assert len(calls) == 6 + (2 + 2 * layers + groups) - 5
    again = analyze(float_file, bits=2, data=corpus / "speech", utterances=2, out=out)
    assert again == first
    assert len(calls) == 6 + (2 + 2 * layers + groups) - 5
    whole = analyze(float_file, bits=2, data=corpus / "speech", utterances=2)
    assert whole["layers"] == first["layers"]
    assert np.isfinite([row["kept_in_float"]["drift"] for row in whole["stages"]]).all()


def test_what_cannot_be_analysed_is_refused(float_file: Path, corpus: Path, trials: Path, tmp_path: Path) -> None:
    data = corpus / "speech"
    for change, error, told in (
        ({"bits": None}, BadInput, "one of the two"),
        ({"plan": "*=kmeans4"}, BadInput, "one of the two"),
        ({"bits": None, "plan": "*=float"}, BadPlan, "every layer in float"),
        ({"trials": [trials]}, BadInput, "go together"),
        ({"out": tmp_path / "none" / "x.json"}, BadInput, "does not exist"),
    ):
        with pytest.raises(error, match=told):
            analyze(**{"checkpoint": float_file, "bits": 2, "data": data, **change})
    trained = tmp_path / "trained.safetensors"
    network = networks.build(**NETWORK)
    quant.attach(network, Plan.parse("*=kmeans2"))
    checkpoint.save(trained, network, {"network": NETWORK, "front_end": "wespeaker", "plan": "*=kmeans2"})
    with pytest.raises(BadInput, match="starts from a float checkpoint"):
        analyze(trained, bits=2, data=data)
