"""The command: what goes where, which exit code, what an error looks like. The libraries behind it are stood in for."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

import sottovoce.lab.evaluate  # noqa: F401 (before a stand-in takes the place of what it imports)
from sottovoce import cli
from sottovoce.cli.show import table
from sottovoce.cli.use import is_model
from sottovoce.errors import BadModel, TooShort


def sotto(*args: Any) -> Result:
    return CliRunner().invoke(cli.main, [str(arg) for arg in args], prog_name="sotto")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Put functions in the place of a library module: stand_in('lab.train', train=...)."""

    def put(name: str, **functions: Any) -> None:
        module = ModuleType(f"sottovoce.{name}")
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, f"sottovoce.{name}", module)

    return put


@pytest.fixture
def engine(stand_in: Any) -> list[Any]:
    """An engine that only remembers what it was asked for."""
    calls: list[Any] = []

    def load(path: str | None = None, **settings: Any) -> SimpleNamespace:
        calls.append((path, settings))
        return SimpleNamespace(id="0123456789ab", dim=3, path=path)

    stand_in("runtime.engine", load=load)
    return calls


def decision(word: str) -> SimpleNamespace:
    content = {
        "score": 0.75,
        "decision": word,
        "reason": "b.wav: too short" if word == "inconclusive" else None,
        "llr": None if word == "inconclusive" else 2.5,
        "probability": None if word == "inconclusive" else 0.924,
        "prior": 0.5,
        "warnings": ["a.wav: quiet"],
        "threshold": 0.5,
        "point": "balanced",
        "measured_on": "three lists",
        "model": "0123456789ab",
        "a": "a.wav",
        "b": "b.wav",
        "antispoofing": False,
    }
    return SimpleNamespace(as_dict=lambda: content)


@pytest.mark.parametrize(("word", "code"), [("accept", 0), ("reject", 1), ("inconclusive", 4)])
def test_verify_tells_by_its_exit_code(stand_in: Any, engine: list[Any], word: str, code: int) -> None:
    asked = []
    stand_in("runtime.verify", verify=lambda *args, **settings: asked.append((args[1:], settings)) or decision(word))
    done = sotto("verify", "a.wav", "b.wav", "--threshold", 0.5, "--json")
    assert done.exit_code == code
    assert json.loads(done.stdout)["decision"] == word
    assert asked == [(("a.wav", "b.wav"), {"point": "balanced", "threshold": 0.5, "prior": 0.5})]
    assert engine == [(None, {"engine": "onnxruntime", "check": False})]


def test_verify_says_what_its_point_was_measured_on(stand_in: Any, engine: list[Any]) -> None:
    stand_in("runtime.verify", verify=lambda *_, **__: decision("accept"))
    out = sotto("verify", "a.wav", "b.wav").stdout
    assert "accept" in out
    assert "0.7500" in out
    assert "three lists" in out
    assert "llr +2.50" in out
    assert "0.9240 at prior 0.5" in out
    assert "warning: a.wav: quiet" in out


def test_verify_says_why_it_cannot_decide(stand_in: Any, engine: list[Any]) -> None:
    stand_in("runtime.verify", verify=lambda *_, **__: decision("inconclusive"))
    out = sotto("verify", "a.wav", "b.wav").stdout
    assert out.startswith("inconclusive")
    assert "why: b.wav: too short" in out
    assert "llr" not in out


def test_an_expected_error_is_one_line_and_exit_code_2(stand_in: Any) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise BadModel("m.onnx: damaged\nfetch it again")

    stand_in("runtime.engine", load=load)
    stand_in("runtime.verify", verify=None)
    done = sotto("verify", "a.wav", "b.wav", "--json")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "error: m.onnx: damaged fetch it again\n"


def test_a_fault_is_never_taken_for_a_reject(stand_in: Any, engine: list[Any]) -> None:
    def verify(*_: Any, **__: Any) -> None:
        raise KeyError("oops")

    stand_in("runtime.verify", verify=verify)
    done = sotto("verify", "a.wav", "b.wav")
    assert done.exit_code == 2
    assert "KeyError" in done.stderr
    assert "--traceback" in done.stderr


def test_an_interrupt_is_not_a_reject(stand_in: Any, engine: list[Any]) -> None:
    def verify(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    stand_in("runtime.verify", verify=verify)
    assert sotto("verify", "a.wav", "b.wav").exit_code == 130


@pytest.mark.parametrize("where", ["before", "after", "environment"])
def test_traceback_on_demand(stand_in: Any, engine: list[Any], where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def verify(*_: Any, **__: Any) -> None:
        raise BadModel("damaged")

    stand_in("runtime.verify", verify=verify)
    if where == "environment":
        monkeypatch.setenv("SOTTO_TRACEBACK", "1")
    before = ["--traceback"] if where == "before" else []
    after = ["--traceback"] if where == "after" else []
    assert isinstance(sotto(*before, "verify", "a", "b", *after).exception, BadModel)


@pytest.mark.parametrize(
    ("typed", "meant"), [(["verfy"], "verify"), (["verify", "a", "b", "--tresh", "1"], "--threshold")]
)
def test_the_nearest_name_is_suggested(typed: list[str], meant: str) -> None:
    done = sotto(*typed)
    assert done.exit_code == 2
    assert meant in done.stderr


def test_a_missing_torch_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("sottovoce.lab.compress")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sottovoce.lab.compress", None)

    class Missing(ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setitem(sys.modules, "sottovoce.lab.compress", Missing("sottovoce.lab.compress"))
    done = sotto("compress", "c.safetensors", "--bits", 4, "--out", "m.onnx")
    assert done.exit_code == 2
    assert "sottovoce[lab]" in done.stderr


def test_compress_hands_everything_on(stand_in: Any, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def compress(checkpoint: str, **settings: Any) -> dict[str, Any]:
        asked.update(settings, checkpoint=checkpoint)
        return {"model": "m4.onnx", "bytes": 12345, "bits_per_weight": 4.0, "cosine_to_checkpoint": {"mean": 0.99}}

    stand_in("lab.compress", compress=compress)
    plan = tmp_path / "plan.txt"
    plan.write_text("*=kmeans4  # all\n", encoding="utf-8")
    call = ["compress", "c.safetensors", "--out", "m4.onnx", "--data", "speech", "--trials", "l", "--audio", "root"]
    done = sotto(*call, "--plan", f"@{plan}")
    assert done.exit_code == 0, done.stderr
    assert "12,345 bytes" in done.stdout
    assert asked == {
        "checkpoint": "c.safetensors",
        "bits": None,
        "plan": "*=kmeans4  # all\n",
        "data": "speech",
        "out": "m4.onnx",
        "trials": ("l",),
        "audio": "root",
        "seed": 0,
        "method": "follow",
        "front_end": None,
    }
    assert sotto("compress", "c", "--bits", 4, "--out", "m4.onnx", "--json").exit_code == 0
    assert asked["bits"] == 4
    assert sotto("compress", "c", "--bits", 5, "--out", "m4.onnx").exit_code == 2
    assert "no file" in sotto("compress", "c", "--plan", "@none.txt", "--out", "m.onnx").stderr


def test_compress_tells_what_it_did(stand_in: Any) -> None:
    made = {"model": "m4.onnx", "bytes": 12345, "bits_per_weight": 4.0, "cosine_to_checkpoint": {"mean": 0.99}}
    trials = {"eer": 0.031, "float_eer": 0.029, "score_change": 0.012, "targets": 200, "nontargets": 19900}
    made |= {"damage": {"drift": 0.01, "weights": 0.02, "pseudo_trials": trials}}
    made |= {"calibration": {"measured_on": "pseudo-trials (crops of 200 unlabelled recordings)", "pseudo": {}}}
    made["calibration"]["pseudo"] = {"recordings": 200}
    made |= {"operating_points": {"balanced": {}}, "operating_points_refused": {"secure": "too few"}}
    made |= {"wide_layers": [{"layer": "stem", "spec": "uniform8", "weights": 36, "why": "it is small"}]}
    made |= {"float_operators": {"Softmax": 1}, "float_layers": ["twice"], "not_followed": "the graph has Loop"}
    made |= {"speed": {"seconds": 3.0, "ms": 20.0, "float_ms": 50.0}}
    stand_in("lab.compress", compress=lambda checkpoint, **_: made)
    told = sotto("compress", "c.safetensors", "--bits", 4, "--out", "m4.onnx").stdout
    for part in (
        "embedding drift 0.0100",
        "EER 3.10 %, of the float network 2.90 %, on 200 + 19,900 pseudo-trials; scores move by 0.0120",
        "calibration from pseudo-trials (crops of 200 unlabelled recordings); operating points: balanced",
        "secure refused: too few",
        "replace this by sotto calibrate",
        "stem has uniform8, 36 weights; it is small",
        "in float: 1 Softmax; layers in float: twice",
        "not followed: the graph has Loop",
        "3 s of audio take 20.0 ms on this machine, one thread; in float 50.0 ms (2.50 times as long)",
        "m4.onnx: 12,345 bytes, 4.000 bits a weight",
    ):
        assert part in told


def one_list(name: str, eer: float) -> dict[str, Any]:
    return {
        "model": "m.onnx",
        "list": name,
        "list_sha256": "0123456789abcdef",
        "trials": 1000,
        "trials_excluded": 7,
        "targets": 100,
        "speakers": 20,
        "eer": eer,
        "eer_interval": [0.01, 0.09],
        "few_errors": eer < 0.04,
        "min_dcf": {"0.01": 0.5, "0.05": 0.25},
        "min_dcf_few_errors": {"0.01": True, "0.05": False},
        "min_cllr": 0.1234,
        "scoring": "whole",
        "enrolment": "one",
        "normalisation": "none",
        "excluded": [],
    }


def test_evaluate_one_list_or_several(stand_in: Any, engine: list[Any]) -> None:
    both = {"lists": [one_list("one", 0.03), one_list("two", 0.05)], "mean_eer": 0.04}
    stand_in("lab.evaluate", evaluate=lambda *_, **__: one_list("one", 0.03), evaluate_many=lambda *_, **__: both)
    done = sotto("evaluate", "m.onnx", "--trials", "one", "--audio", "root", "--json")
    assert json.loads(done.stdout)["eer"] == 0.03
    assert engine[0][0] == "m.onnx"
    people = sotto("evaluate", "--trials", "one", "--trials", "two", "--audio", "root").stdout
    assert engine[1][0] is None
    assert "1.00–9.00" in people
    assert "mean EER % 4.00" in people
    for part in (
        "one 01234567",
        "3.00*",
        "5.00 ",
        "0.5000*",
        "0.2500 ",
        "0.1234",
        "7 trials left out",
        "fewer than 30",
    ):
        assert part in people
    assert "5.00*" not in people


def test_evaluate_hands_everything_on(stand_in: Any, engine: list[Any]) -> None:
    asked: dict[str, Any] = {}
    one = {**one_list("one", 0.03), "groups": {"age": [{"group": "< 12", **one_list("x", 0.1)}]}}
    one["groups"]["age"].append({**one["groups"]["age"][0], "group": "mixed", "eer": None, "trials": 77})
    stand_in("lab.evaluate", evaluate_many=lambda *args, **settings: asked.update(settings) or {"lists": [one]})
    call = ["evaluate", "m.onnx", "--trials", "one", "--audio", "root", "--prior", 0.5, "--scoring", "segments"]
    call += ["--cohort", "c", "--top", 20, "--cohort-by", "speaker", "--deviation", "sample", "--subtract-mean"]
    call += [
        "--enrolment",
        "scores",
        "--enrolments",
        "map",
        "--manifest",
        "m.tsv",
        "--by",
        "age:12",
        "--scores",
        "s.npz",
    ]
    done = sotto(*call, "--skip-missing")
    assert done.exit_code == 0, done.output
    scoring = asked.pop("scoring")
    assert scoring == type(scoring)("segments", "scores", "c", 20, "speaker", "sample", True)
    assert asked["priors"] == (0.5,)
    assert (asked["manifest"], asked["by"], asked["scores_out"]) == ("m.tsv", ("age:12",), "s.npz")
    assert (asked["enrolments"], asked["strict"]) == ("map", False)
    lines = done.stdout.splitlines()
    assert next(line for line in lines if line.startswith("mixed")).split() == ["mixed", "77", "100", "20"]
    assert "one 01234567, by age" in lines
    assert next(line for line in lines if line.startswith("< 12")).split()[2:6] == ["1000", "100", "20", "10.00"]


def test_evaluate_refuses_what_does_not_fit_together(engine: list[Any]) -> None:
    call = ["evaluate", "m.onnx", "--trials", "one", "--audio", "root"]
    assert "name one" in sotto(*call, "--subtract-mean").stderr
    assert sotto(*call, "--scoring", "halves").exit_code == 2


def embedding(paths: list[str], on_error: Any) -> tuple[list[str], Any, list[dict[str, str]]]:
    kept = [path for path in paths if "bad" not in path]
    errors = [{"path": path, "error": f"TooShort: {TooShort(path)}"} for path in paths if path not in kept]
    for error in errors:
        on_error(error)
    return kept, np.eye(3, dtype=np.float32)[: len(kept)], errors


@pytest.fixture
def embed(stand_in: Any, engine: list[Any]) -> list[Any]:
    stand_in("lab.evaluate", embed_files=lambda model, paths, workers, on_error: embedding(paths, on_error))
    return engine


def test_embed_takes_files_folders_and_lists(embed: list[Any], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("folder/b.WAV", "folder/a.flac", "folder/notes.txt"):
        (tmp_path / name).touch()
    listed = tmp_path / "list.txt"
    listed.write_text("c.wav\n\n", encoding="utf-8")
    out = tmp_path / "e.npz"
    done = sotto("embed", "m.onnx", tmp_path / "folder", "--list", listed, "--out", out, "--json")
    assert done.exit_code == 0, done.stderr
    assert embed[0][0] == "m.onnx"
    assert json.loads(done.stdout)["embeddings"] == 3
    with np.load(out) as arrays:
        assert [Path(path).name for path in arrays["paths"]] == ["a.flac", "b.WAV", "c.wav"]
        assert arrays["embeddings"].dtype == np.float32
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.npz", "folder", "list.txt"]


def test_embed_passes_over_bad_files_and_says_so(embed: list[Any], tmp_path: Path) -> None:
    done = sotto("embed", "good.wav", "bad.wav", "--out", tmp_path / "e.npz")
    assert done.exit_code == 3
    assert "passed over: TooShort: bad.wav" in done.stderr
    assert embed[0][0] is None
    none = sotto("embed", "bad.wav", "--out", tmp_path / "none.npz")
    assert none.exit_code == 2
    assert not (tmp_path / "none.npz").exists()
    assert sotto("embed", "--out", tmp_path / "none.npz").exit_code == 2


@pytest.mark.parametrize(
    ("name", "content", "model"),
    [
        ("m.onnx", b"", True),
        ("M.ONNX", b"", True),
        ("model", b"\x08\x08\x12", True),
        ("a.wav", b"RIFF", False),
        ("a.flac", b"fLaC", False),
        ("empty", b"", False),
    ],
)
def test_a_model_is_told_from_a_recording(tmp_path: Path, name: str, content: bytes, model: bool) -> None:
    (tmp_path / name).write_bytes(content)
    assert is_model(str(tmp_path / name)) is model


def test_export_takes_the_result_of_a_run_folder(stand_in: Any, tmp_path: Path) -> None:
    asked = []
    stand_in(
        "lab.compress", export=lambda path, **_: asked.append(path) or {"model": "m.onnx", "bytes": 1, "plan": "float"}
    )
    assert sotto("export", tmp_path, "--out", "m.onnx", "--float").exit_code == 0
    assert sotto("export", "c.safetensors", "--out", "m.onnx").exit_code == 0
    assert asked == [tmp_path / "model.safetensors", Path("c.safetensors")]


def test_resume_demands_a_state(stand_in: Any, tmp_path: Path) -> None:
    stand_in("lab.train", train=lambda recipe, run, data, cache: {"model": f"{run}/m", "steps": 3, "loss": 0.5})
    assert sotto("train", "r.toml", "--run", tmp_path, "--resume").exit_code == 2
    (tmp_path / "state.safetensors").touch()
    assert sotto("train", "r.toml", "--run", tmp_path, "--resume").exit_code == 0


def test_inspect_lists_layers(stand_in: Any) -> None:
    layer = {"name": "conv1", "shape": [16, 1, 3, 3], "format": "uniform8", "bits": 8, "bytes": 144}
    work = {"macs": 2_500_000, "bit_operations": 160_000_000}
    found = {"layers": [layer | work], "bytes": 2000, "plan": "*=uniform8", "front_end": {"name": "wespeaker"}}
    found |= {"float_layers": [{"name": "last", "shape": [8, 4]} | work], "seconds": 3.0} | work
    stand_in("export.inspect", describe=lambda path: found)
    assert json.loads(sotto("inspect", "m.onnx", "--json").stdout) == found
    text = sotto("inspect", "m.onnx").stdout
    assert "16×1×3×3" in text
    assert "2.50" in text.splitlines()[1]
    assert text.splitlines()[2].split()[:4] == ["last", "8×4", "float", "32"]
    assert "0.003 billion MACs and 0.2 billion bit-operations for 3 s" in text


def test_every_command_has_json_and_traceback() -> None:
    groups = [command for command in cli.main.commands.values() if isinstance(command, click.Group)]
    single = {name: command for name, command in cli.main.commands.items() if command not in groups}
    for name, command in {**single, **{name: one for group in groups for name, one in group.commands.items()}}.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert {"--json", "--traceback"} <= options, name


def test_table_puts_numbers_to_the_right() -> None:
    text = table(["name", "ms"], [["long name", "1.5"], ["x", "10.25"], ["y", ""]])
    assert text.splitlines() == ["name          ms", "long name    1.5", "x          10.25", "y"]


ALLOCATED = {
    "plan": "conv1=uniform8; *=kmeans2",
    "bits_per_weight": 2.5,
    "file_bytes": 54321,
    "predicted_damage": 0.0125,
    "sensitivity": "drift",
    "layers": [{"name": "conv1", "shape": [4, 1, 3], "spec": "uniform8", "bits": 8, "bytes": 28, "damage": 0.0125}],
    "float_eer": 0.05,
    "evaluations": 2,
    "tried": [{"bits_per_weight": 2.5, "bytes": 50000, "eer": 0.0512}],
}


def test_allocate_hands_everything_on(stand_in: Any) -> None:
    asked: dict[str, Any] = {}
    stand_in("lab.budget", allocate=lambda checkpoint, **settings: asked.update(settings) or ALLOCATED)
    call = ["allocate", "c.safetensors", "--max-eer-loss", "2%", "--data", "speech", "--trials", "l", "--audio", "root"]
    done = sotto(*call, "--widths", "2,4", "--format", "uniform", "--search", "milp", "--sensitivity", "hessian")
    assert done.exit_code == 0, done.stderr
    for told in ("conv1=uniform8; *=kmeans2", "2.500 bits a weight", "54,321 bytes", "EER % 5.12", "2 evaluations"):
        assert told in done.stdout
    assert asked == {
        "size": None,
        "bits_per_weight": None,
        "max_eer_loss": "2%",
        "data": "speech",
        "trials": ("l",),
        "audio": "root",
        "sensitivity": "hessian",
        "search": "milp",
        "widths": [2, 4],
        "family": "uniform",
        "utterances": 32,
        "front_end": None,
        "out": None,
        "seed": 0,
    }
    assert json.loads(sotto(*call, "--json").stdout) == ALLOCATED
    assert "2,3,4" in sotto(*call, "--widths", "2-4").stderr


def test_compress_within_a_budget(stand_in: Any) -> None:
    asked: dict[str, Any] = {}
    made = {"model": "m.onnx", "bytes": 50000, "bits_per_weight": 2.5, "cosine_to_checkpoint": {"mean": 0.99}}
    report = {**made, "allocation": ALLOCATED}
    stand_in("lab.budget", compress_within=lambda checkpoint, **settings: asked.update(settings) or report)
    done = sotto("compress", "c.safetensors", "--size", "50kB", "--out", "m.onnx", "--search", "sections")
    assert done.exit_code == 0, done.stderr
    assert "m.onnx: 50,000 bytes" in done.stdout
    assert "plan conv1=uniform8; *=kmeans2" in done.stdout
    assert (asked["size"], asked["bits_per_weight"], asked["max_eer_loss"]) == ("50kB", None, None)
    how = {"sensitivity": "drift", "search": "sections", "widths": [1, 2, 3, 4, 8], "family": "kmeans"}
    assert asked["allocation"] == how
    both = sotto("compress", "c.safetensors", "--size", "50kB", "--bits", 4, "--out", "m.onnx")
    assert both.exit_code == 2
    assert "leave --bits and --plan out" in both.stderr
