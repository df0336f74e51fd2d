"""Manifests and trial lists in the forms that corpora and toolkits use, and what must not be taken for one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sottovoce.errors import BadList
from sottovoce.lab import trials as trials_module
from sottovoce.lab.lists import Trials, Utterance, locate, read_manifest, read_trials, speakers_of


def write(folder: Path, text: str, name: str = "list") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# ---- trial lists


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("voxceleb", "1 a/1.wav b/2.wav\n0 a/1.wav c/3.wav\n"),
        ("kaldi", "a/1.wav b/2.wav target\na/1.wav c/3.wav nontarget\n"),
        ("kaldi tgt/imp", "a/1.wav b/2.wav tgt\na/1.wav c/3.wav imp\n"),
        ("kaldi 1/0", "a/1.wav b/2.wav 1\na/1.wav c/3.wav 0\n"),
        ("espnet", "a/1.wav*b/2.wav 1\na/1.wav*c/3.wav 0\n"),
        ("voxceleb", "\ufeff1\ta/1.wav   b/2.wav\r\n\r\n0 a/1.wav\tc/3.wav"),  # BOM, CRLF, tabs, no newline at the end
    ],
)
def test_forms(tmp_path: Path, form: str, text: str) -> None:
    trials = read_trials(write(tmp_path, text))
    assert trials.form == form
    assert trials.enrol == ["a/1.wav", "a/1.wav"]
    assert trials.test == ["b/2.wav", "c/3.wav"]
    np.testing.assert_array_equal(trials.labels, np.array([1, 0], dtype=np.uint8))
    assert trials.utterances == ["a/1.wav", "b/2.wav", "c/3.wav"]


def test_a_list_is_named_by_file_and_content(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeff1 a b\n0 a c\n", "my-trials.txt")
    trials = read_trials(path)
    assert trials.name == "my-trials.txt"
    assert trials.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(("count", "name"), [(37611, "VoxCeleb1-O cleaned"), (37720, "not cleaned")])
def test_published_lists_are_known_by_their_size(tmp_path: Path, count: int, name: str) -> None:
    lines = "".join(f"{i % 2} id10270/x6uYqmx31kE/{i:05d}.wav id10300/y/00001.wav\n" for i in range(count))
    assert name in read_trials(write(tmp_path, lines)).name
    assert read_trials(write(tmp_path, lines.replace("id1", "x1"))).name == "list"


def test_names_that_look_like_labels_are_decided_by_the_whole_file(tmp_path: Path) -> None:
    """Enrolled as 0 and 1, labels last: read the other way, the pair (b, 1) would have two labels."""
    trials = read_trials(write(tmp_path, "0 b 1\n1 b 1\n1 c 0\n"))
    assert (trials.form, trials.enrol, list(trials.labels)) == ("kaldi 1/0", ["0", "1", "1"], [1, 1, 0])
    trials = read_trials(
        write(tmp_path, "1 1 0\n0 0 1\n")
    )  # with the label last, 1 against itself would be a nontarget
    assert (trials.form, trials.enrol, trials.test) == ("voxceleb", ["1", "0"], ["0", "1"])
    assert list(trials.labels) == [1, 0]


def test_words_win_over_names_that_look_like_labels(tmp_path: Path) -> None:
    trials = read_trials(write(tmp_path, "1 a target\n0 b nontarget\n"))
    assert (trials.form, trials.enrol) == ("kaldi", ["1", "0"])


def test_lists_that_can_be_read_both_ways_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadList, match="first column or the last"):
        read_trials(write(tmp_path, "0 a 1\n1 b 0\n"))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "no trials"),
        ("\n \n", "no trials"),
        ("1 a b\n0 a\n", "line 2"),
        ("1 a b\n\n0 a c d\n", "line 3"),
        ("1 a\nb 1 c d\n", "line 2"),  # as many fields as two good lines would have
        ("1 a b\n\n2 a c\n0 a d\n", "line 3.*'2'"),
        ("a b target\na c nontraget\n", "line 2.*nontraget"),
        ("a b tgt\na c imp\na d nontarget\n", "line 3"),
        ("a b c\n", "no column of labels"),
        ("a b 0.5\nc d 0.1\n", "no column of labels"),
        ("a b 0.61234 target\n", "score file"),
        ("a b 1 0.5\n", "score file"),
        ("a b\nc d\n", r"line 1.*enrolment\*test"),
        ("a*b 1\nc*d*e 0\n", "line 2"),
        ("a\n", "1 fields"),
        ("{}\n", "1 fields"),
    ],
)
def test_what_is_not_a_trial_list(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(BadList, match=what) as caught:
        read_trials(write(tmp_path, text))
    assert str(tmp_path / "list") in str(caught.value)


def test_line_numbers_count_through_the_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials_module, "_CHUNK", 10)
    with pytest.raises(BadList, match="line 9:"):
        read_trials(write(tmp_path, "1 a b\n0 a c\n" * 4 + "1 a\n"))


def test_missing_and_binary_lists(tmp_path: Path) -> None:
    with pytest.raises(BadList, match="no such file"):
        read_trials(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"1 \xff\xfe b\n")
    with pytest.raises(BadList, match="UTF-8"):
        read_trials(tmp_path / "binary")
    with pytest.raises(BadList, match="cannot be read"):
        read_trials(tmp_path)


names = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="*"), min_size=1, max_size=8)
rows = st.lists(st.tuples(st.sampled_from([0, 1]), names.map("u{}".format), names.map("v{}".format)), min_size=1)


@settings(max_examples=100, deadline=None)
@given(
    rows,
    st.sampled_from([1, 7, 1 << 22]),
    st.sampled_from(["{l} {a} {b}", "{a} {b} {w}", "{a}\t{b}\t{l}", "{a}*{b} {w}"]),
)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, drawn: list, chunk: int, line: str) -> None:
    """Any names, in one piece or in many."""
    text = "\n".join(line.format(l=y, a=a, b=b, w=["nontarget", "target"][y]) for y, a, b in drawn)
    path = write(tmp_path_factory.getbasetemp(), text, "drawn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials_module, "_CHUNK", chunk)
        trials = read_trials(path)
    assert [(int(y), a, b) for y, a, b in zip(trials.labels, trials.enrol, trials.test, strict=True)] == drawn


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_list_or_a_named_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(data)
    for reader in (read_trials, read_manifest):
        try:
            found = len(reader(path))
        except BadList:
            found = 1
        assert found


# ---- whose voice


def trials_of(*rows: tuple[int, str, str]) -> Trials:
    labels, enrol, test = zip(*rows, strict=True)
    return Trials(list(enrol), list(test), np.array(labels, dtype=np.uint8), "voxceleb", "list", "")


@pytest.mark.parametrize(
    ("a", "other", "b", "speaker"),
    [
        ("wav/id10001/x/1.wav", "wav/id10001/y/2.wav", "wav/id10002/x/1.wav", "id10001"),
        ("id00800-enroll", "test/id00800-singing-01.wav", "test/id00801-play-02.wav", "id00800"),
        ("dev/ann/1.flac", "dev/ann/2.flac", "dev/bob/1.flac", "ann"),
        ("ann/monday/1.flac", "ann/friday/1.flac", "bob/monday/1.flac", "ann"),
        ("ann_1", "ann_2", "bob_1", "ann"),
        ("ann-1.wav", "ann-2.wav", "bob-1.wav", "ann"),
    ],
)
def test_speakers_come_from_names_that_agree_with_the_labels(a: str, other: str, b: str, speaker: str) -> None:
    found = speakers_of(trials_of((1, a, other), (0, a, b)))
    assert found[a] == found[other] == speaker
    assert found[b] != speaker


def test_without_a_reading_of_the_names_targets_link_utterances() -> None:
    found = speakers_of(trials_of((1, "a", "b"), (1, "c", "b"), (0, "a", "d"), (1, "d", "e")))
    assert found["a"] == found["b"] == found["c"]
    assert found["d"] == found["e"]
    assert found["a"] != found["d"]


# ---- places


@pytest.mark.parametrize("name", ["../secret.wav", "/etc/passwd", "a/../../b.wav", "..\\b.wav", "C:\\b.wav", "a\0b"])
def test_names_that_leave_the_root_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadList, match="outside"):
        locate(tmp_path, name)


def test_recordings_are_found_by_name_or_under_another_suffix(tmp_path: Path) -> None:
    for name in ("a/1.wav", "a/2.flac", "enroll/id00800-enroll.flac"):
        write(tmp_path, "", name)
    assert locate(tmp_path, "a/1.wav") == tmp_path / "a/1.wav"
    assert locate(tmp_path, "a/2.wav") == tmp_path / "a/2.flac"
    assert locate(tmp_path, "a/2") == tmp_path / "a/2.flac"
    assert locate(tmp_path, "id00800-enroll") == tmp_path / "enroll/id00800-enroll.flac"
    assert locate(tmp_path, "a/none.wav") == tmp_path / "a/none.wav"


# ---- manifests


def test_tab_separated(tmp_path: Path) -> None:
    path = write(tmp_path, "path\tspeaker\tseconds\tgender\na.wav\tann\t1.5\tf\nb, 2.wav\tbob\t\t\n\n")
    assert read_manifest(path) == [
        Utterance("a.wav", "ann", 1.5, {"gender": "f"}),
        Utterance("b, 2.wav", "bob", None, {"gender": ""}),
    ]


def test_comma_separated_as_speechbrain_names_columns(tmp_path: Path) -> None:
    path = write(tmp_path, 'ID,duration,wav,start,stop,spk_id\nu1,2.5,"a, b.wav",0,40000,ann\n')
    assert read_manifest(path) == [Utterance("a, b.wav", "ann", 2.5, {"ID": "u1", "start": "0", "stop": "40000"})]


def test_speakers_are_optional(tmp_path: Path) -> None:
    assert read_manifest(write(tmp_path, "path\nx.wav\n")) == [Utterance("x.wav", "")]
    assert read_manifest(write(tmp_path, "path,use\nx.wav,train\n")) == [Utterance("x.wav", "", None, {"use": "train"})]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("path\tspeaker\na.wav\n", "line 2"),
        ("path\tspeaker\n\nb.wav\tann\n\tann\n", "line 4.*empty"),
        ("path\tseconds\na.wav\tlong\n", "line 2.*long"),
        ("path\tseconds\na.wav\tnan\n", "line 2"),
        ("path\tseconds\na.wav\t-1\n", "line 2"),
        ("path\tspeaker\n", "no recordings"),
        ("", "empty"),
        ("justoneword\n", "line 1"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(BadList, match=what):
        read_manifest(write(tmp_path, text))


def test_folders_in_the_layout_of_voxceleb(tmp_path: Path) -> None:
    for name in ("dev/wav/id10001/x/00001.wav", "test/wav/id10002/y/00001.flac", "dev/notes.txt"):
        write(tmp_path, "", name)
    assert read_manifest(tmp_path) == [
        Utterance("dev/wav/id10001/x/00001.wav", "id10001"),
        Utterance("test/wav/id10002/y/00001.flac", "id10002"),
    ]


def test_other_folders_take_the_first_level_that_differs(tmp_path: Path) -> None:
    for name in ("audio/ann/x/1.wav", "audio/bob/2.wav"):
        write(tmp_path, "", name)
    assert [(u.path, u.speaker) for u in read_manifest(tmp_path)] == [
        ("audio/ann/x/1.wav", "ann"),
        ("audio/bob/2.wav", "bob"),
    ]


def test_flat_folders_have_no_speakers(tmp_path: Path) -> None:
    write(tmp_path, "", "1.wav")
    assert read_manifest(tmp_path) == [Utterance("1.wav", "")]


def test_folders_without_recordings(tmp_path: Path) -> None:
    with pytest.raises(BadList, match="no recordings"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("speakers", [("utt2spk", "u1 ann\nu2 bob\n"), ("spk2utt", "ann u1\nbob u2\n")])
def test_kaldi_folders(tmp_path: Path, speakers: tuple[str, str]) -> None:
    write(tmp_path, "u1 /data/a b.wav\nu2 sub/2.flac\n", "wav.scp")
    write(tmp_path, "u1 1.25\n", "utt2dur")
    write(tmp_path, speakers[1], speakers[0])
    expected = [
        Utterance("/data/a b.wav", "ann", 1.25, {"key": "u1"}),
        Utterance("sub/2.flac", "bob", None, {"key": "u2"}),
    ]
    assert read_manifest(tmp_path) == expected
    assert read_manifest(tmp_path / "wav.scp") == expected


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"wav.scp": "u1 a.wav\nu2 sph2pipe -f wav b.sph |\n"}, "line 2.*shell command"),
        ({"wav.scp": "u1 | touch x\n"}, "shell command"),
        ({"wav.scp": "u1 raw.ark:1234\n"}, "archive"),
        ({"wav.scp": "u1\n"}, "line 1"),
        ({"wav.scp": "u1 a.wav\nu1 b.wav\n"}, "line 2.*twice"),
        ({"wav.scp": "u1 a.wav\nu2 b.wav\n", "utt2spk": "u1 ann\n"}, "no speaker for utterance 'u2'"),
        ({"wav.scp": "u1 a.wav\n", "utt2dur": "u1 x\n"}, "u1.*'x'"),
        ({"wav.scp": "u1 a.wav\n", "segments": "s1 u1 0 1\n"}, "segments"),
    ],
)
def test_bad_kaldi_folders(tmp_path: Path, files: dict[str, str], what: str) -> None:
    for name, text in files.items():
        write(tmp_path, text, name)
    with pytest.raises(BadList, match=what):
        read_manifest(tmp_path)
