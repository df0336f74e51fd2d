"""Our column: sizes against the papers' printed ones, rates from results, and what is said where they are missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sottovoce.errors import BadInput
from sottovoce.lab.papers import CORPORA, TABLES, TESTS
from sottovoce.lab.reproduce import OURS, known_tables, reproduce


def rows(name: str, folder: Path) -> list[dict]:
    return reproduce(name, corpora=folder / "corpora", results=folder)["rows"]


def result(path: Path, *lists: tuple[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [{"list": name, "eer": eer, "min_dcf": {"0.01": 10 * eer}} for name, eer in lists]
    path.write_text(json.dumps({"lists": entries} if len(entries) > 1 else entries[0]))


def test_sizes_of_table_1_are_the_papers_to_one_per_cent(tmp_path: Path) -> None:
    found = rows("paper-c-table1", tmp_path)
    assert len(found) == 18
    for row in found:
        assert row["ours"]["MB"] == pytest.approx(row["paper"]["MB"], rel=0.01), row["key"]


def test_memory_is_the_papers_to_three_digits(tmp_path: Path) -> None:
    for row in rows("paper-d-memory", tmp_path):
        for column, printed in row["paper"].items():
            digits = 3 if column == "codebooks MiB" else 2
            assert round(row["ours"][column], digits) == printed, row["key"]


def test_shares_of_paper_a(tmp_path: Path) -> None:
    for row in rows("paper-a-groups", tmp_path):
        assert row["ours"]["share %"] == pytest.approx(
            row["paper"]["share %"], abs=0.11
        )  # the blocks: 17.5, with their biases 17.6


def test_rates_come_from_results_by_their_list(tmp_path: Path) -> None:
    named = [(f"x.txt (VoxCeleb1-{part} cleaned)", 0.01 * i) for i, part in enumerate("OEH", 1)]
    result(tmp_path / "paper-c-table1" / "resnet34.voxceleb1.json", *named)
    result(tmp_path / "paper-c-table1" / "resnet34-uniform4.voxceleb1.json", *[(n, 9 * e) for n, e in named])
    found = {row["key"]: row["ours"] for row in rows("paper-c-table1", tmp_path)}
    assert {key: found["resnet34"][key] for key in "OEH"} == pytest.approx({"O": 1.0, "E": 2.0, "H": 3.0})
    assert found["resnet34-uniform4"]["H"] == pytest.approx(27.0)
    assert set(found["resnet18"]) == {"MB"}


def test_original_lists_are_not_taken_for_cleaned_ones(tmp_path: Path) -> None:
    result(tmp_path / "paper-c-table1" / "resnet34.json", ("veri_test.txt (VoxCeleb1-O original, not cleaned)", 0.01))
    assert "O" not in rows("paper-c-table1", tmp_path)[8]["ours"]


def test_means_are_made_of_all_their_sets_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "paper-d-system"
    result(
        folder / "resnet36.voxceleb1.json",
        *[(f"VoxCeleb1-{part} cleaned", eer) for part, eer in zip("OEH", (0.01, 0.02, 0.03), strict=True)],
    )
    result(folder / "resnet36.cnceleb.json", ("trials.lst (CN-Celeb 1 evaluation)", 0.10))
    ours = rows("paper-d-system", tmp_path)[0]["ours"]
    assert ours == pytest.approx({"in-domain EER": 2.0, "in-domain minDCF": 0.2})
    result(folder / "resnet36.commonbench.json", ("commonbench.txt", 0.04))
    ours = rows("paper-d-system", tmp_path)[0]["ours"]
    assert (ours["out-of-domain EER"], ours["mean EER"]) == (pytest.approx(7.0), pytest.approx(4.0))


def test_the_papers_own_means_follow_its_parts() -> None:
    """(3 · in-domain + 2 · out-of-domain) / 5 is the printed mean of five sets."""
    for row in TABLES["paper-d-system"].rows:
        if "mean EER" in row.values:
            of = row.values
            assert (3 * of["in-domain EER"] + 2 * of["out-of-domain EER"]) / 5 == pytest.approx(
                of["mean EER"], abs=1e-3
            )


def test_the_headline_comes_from_a_sweep(tmp_path: Path) -> None:
    (tmp_path / "paper_a.json").write_text(json.dumps({"chosen": {"share_saved": 0.6, "eer_change": 0.0005}}))
    (row,) = rows("paper-a-headline", tmp_path)
    assert row["ours"] == pytest.approx({"fewer bytes %": 60.0, "EER change": 0.05})


def test_missing_corpora_are_named_with_their_place(tmp_path: Path) -> None:
    root = tmp_path / "corpora"
    (root / "voxceleb2/wav/id00012").mkdir(parents=True)
    report = reproduce("paper-c-table2", corpora=root, results=tmp_path)
    assert [one["corpus"] for one in report["missing"]] == ["musan", "rirs", "cnceleb"]
    assert report["missing"][0]["place"] == str(root / "musan/noise")
    assert any("recipes/paper-c/ecapa512-uniform4.toml" in line for line in report["commands"])


def test_a_filled_column_asks_for_nothing(tmp_path: Path) -> None:
    for row in TABLES["paper-c-table2"].rows:
        result(tmp_path / "paper-c-table2" / f"{row.key}.cnceleb.json", ("CN-Celeb 1 evaluation", 0.1))
    report = reproduce("paper-c-table2", corpora=tmp_path / "none", results=tmp_path)
    assert (report["missing"], report["commands"]) == ([], [])


@pytest.mark.parametrize("content", ["no json", "[1]", '{"lists": [1]}'])
def test_results_that_are_none_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "paper-c-table2").mkdir()
    (tmp_path / "paper-c-table2" / "resnet34.json").write_text(content)
    with pytest.raises(BadInput, match=r"resnet34"):
        reproduce("paper-c-table2", results=tmp_path)


def test_unknown_tables_are_refused_with_the_nearest() -> None:
    with pytest.raises(BadInput, match="paper-c-table1"):
        reproduce("paper-c-tabel1")


def test_tables_are_whole() -> None:
    assert set(OURS) == set(TABLES) == {one["name"] for one in known_tables()}
    for table in TABLES.values():
        assert len({row.key for row in table.rows}) == len(table.rows)
        assert set(table.corpora) <= set(CORPORA)
        for row in table.rows:
            assert len(row.labels) == len(table.labels)
            assert set(row.values) <= set(table.columns)
    assert set(TESTS) <= set(CORPORA)
