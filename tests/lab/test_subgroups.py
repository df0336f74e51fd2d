"""Groups of trials by a column of a table."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sottovoce.errors import BadInput
from sottovoce.lab.subgroups import By, read_groups

ROWS = [("a.wav", "f", "9", "2.0"), ("b.wav", "m", "", "3.5"), ("c.wav", "f", "30", "8"), ("d.wav", "", "12", "5")]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "all.tsv"
    path.write_text("path\tgender\tage\tseconds\n" + "".join("\t".join(row) + "\n" for row in ROWS))
    return path


def groups(table: Path, by: str, names: tuple[str, ...] = ("a.wav", "b.wav", "c.wav", "d.wav")) -> tuple:
    (found,) = read_groups(table, [by], names)
    return found.order, [found.of[name] for name in names]


def test_words_are_groups_and_an_empty_cell_is_none(table: Path) -> None:
    assert groups(table, "gender") == (["f", "m"], ["f", "m", "f", ""])


def test_numbers_are_put_into_bands(table: Path) -> None:
    assert groups(table, "age:12,18") == (["< 12", "12 to < 18", "≥ 18"], ["< 12", "", "≥ 18", "12 to < 18"])
    assert groups(table, "duration:4") == (["< 4", "≥ 4"], ["< 4", "< 4", "≥ 4", "≥ 4"])


def test_edges_that_are_not_given_make_even_bands(table: Path) -> None:
    assert groups(table, "seconds") == (["< 3.5", "3.5 to < 5", "≥ 5"], ["< 3.5", "3.5 to < 5", "≥ 5", "≥ 5"])


def test_few_different_numbers_are_names(tmp_path: Path) -> None:
    path = tmp_path / "k.tsv"
    path.write_text("path\tchannel\na.wav\t1\nb.wav\t2\n")
    assert groups(path, "channel", ("a.wav", "b.wav")) == (["1", "2"], ["1", "2"])


def test_utterances_are_found_without_their_suffix_and_by_kaldi_key(table: Path, tmp_path: Path) -> None:
    assert groups(table, "gender", ("a", "c.flac"))[1] == ["f", "f"]
    (tmp_path / "wav.scp").write_text("k1 x/1.wav\nk2 x/2.wav\n")
    (tmp_path / "utt2spk").write_text("k1 ann\nk2 bob\n")
    assert groups(tmp_path, "speaker", ("k1", "k2"))[1] == ["ann", "bob"]


def test_a_column_of_names_or_edges_on_words_are_refused(table: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not hold numbers"):
        groups(table, "gender:3")
    path = tmp_path / "many.tsv"
    path.write_text("path\tcity\n" + "".join(f"{i}.wav\tcity{i}\n" for i in range(21)))
    with pytest.raises(BadInput, match="21 values"):
        groups(path, "city", tuple(f"{i}.wav" for i in range(21)))


@pytest.mark.parametrize("text", ["", ":3", "age:x", "age:3,2", "age:3,3", "age:nan", "age:1,,2", "age:inf"])
def test_edges_rise_and_are_numbers(text: str) -> None:
    with pytest.raises(BadInput, match="--by"):
        By.parse(text)


@given(st.sampled_from(["age", "net speech"]), st.lists(st.integers(-99, 999).map(float), unique=True, max_size=5))
def test_text_and_value_are_the_same(column: str, edges: list[float]) -> None:
    one = By(column, tuple(sorted(edges)))
    assert By.parse(str(one)) == one
