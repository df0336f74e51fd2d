"""Corpora in their usual layouts, as small trees of empty files: reading a manifest opens no recording."""

from __future__ import annotations

from pathlib import Path

import pytest

from sottovoce.errors import BadList
from sottovoce.lab.corpora import recognise
from sottovoce.lab.lists import read_enrolments, read_manifest


def tree(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def speakers(root: Path) -> dict[str, str]:
    return {row.path: row.speaker for row in read_manifest(root)}


@pytest.mark.parametrize("above", ["wav/", "dev/wav/", ""])
def test_voxceleb(tmp_path: Path, above: str) -> None:
    names = [f"{above}id10001/1zcIwhmdeo4/00001.wav", f"{above}id10001/x/00002.wav", f"{above}id10270/y/00001.wav"]
    found = speakers(tree(tmp_path, *names))
    assert found == dict(zip(names, ["id10001", "id10001", "id10270"], strict=True))


def test_one_speaker_of_voxceleb_is_not_split_by_video(tmp_path: Path) -> None:
    assert set(speakers(tree(tmp_path, "wav/id10001/a/1.wav", "wav/id10001/b/1.wav")).values()) == {"id10001"}


def test_voxceleb2_as_distributed_is_refused_with_advice(tmp_path: Path) -> None:
    tree(tmp_path, "dev/aac/id00012/21Uxsk56VDQ/00001.m4a", "dev/aac/id00012/21Uxsk56VDQ/00002.m4a")
    with pytest.raises(BadList, match=r"00001\.m4a.*ffmpeg -i 00001\.m4a .*00001\.wav"):
        read_manifest(tmp_path)


def test_voxceleb2_with_converted_files_beside_is_read(tmp_path: Path) -> None:
    tree(tmp_path, "aac/id00012/a/00001.m4a", "wav/id00012/a/00001.wav")
    assert speakers(tmp_path) == {"wav/id00012/a/00001.wav": "id00012"}


def test_voxtube(tmp_path: Path) -> None:
    found = speakers(tree(tmp_path, "UC1/vid1/0.wav", "UC1/vid2/0.wav", "UC2/vid3/0.wav"))
    assert found == {"UC1/vid1/0.wav": "UC1", "UC1/vid2/0.wav": "UC1", "UC2/vid3/0.wav": "UC2"}


def cnceleb(root: Path) -> Path:
    names = [f"data/id0{speaker}/{name}.flac" for speaker in ("0000", "0001", "0800") for name in ("a-01", "b-02")]
    tree(root, *names, "eval/test/id00800-a-01.flac", "eval/enroll/id00800-enroll.flac")
    (root / "dev").mkdir()
    (root / "dev" / "dev.lst").write_text("id00000\nid00001\n")
    return root


def test_cnceleb_trains_on_the_speakers_of_dev_lst_only(tmp_path: Path) -> None:
    root = cnceleb(tmp_path)
    assert recognise(root).name == "CN-Celeb 1"
    found = speakers(root)
    assert set(found.values()) == {"id00000", "id00001"}
    assert len(found) == 4
    assert not [path for path in found if "eval" in path or "id00800" in path]


def test_cnceleb2(tmp_path: Path) -> None:
    tree(tmp_path, "data/id10000/a.flac", "data/id10001/b.flac")
    (tmp_path / "spk.lst").write_text("id10001\n")
    assert speakers(tmp_path) == {"data/id10001/b.flac": "id10001"}


def test_an_incomplete_cnceleb_is_refused(tmp_path: Path) -> None:
    root = cnceleb(tmp_path)
    (root / "dev" / "dev.lst").write_text("id00000\nid00555\n")
    with pytest.raises(BadList, match=r"id00555.*no folder"):
        read_manifest(root)


def test_musan_says_the_kind(tmp_path: Path) -> None:
    tree(tmp_path, "music/fma/a.wav", "noise/free-sound/b.wav", "noise/sound-bible/c.wav", "speech/librivox/d.wav")
    rows = read_manifest(tmp_path)
    assert [(row.path, row.fields) for row in rows] == [
        ("music/fma/a.wav", {"kind": "music"}),
        ("noise/free-sound/b.wav", {"kind": "noise"}),
        ("noise/sound-bible/c.wav", {"kind": "noise"}),
        ("speech/librivox/d.wav", {"kind": "speech"}),
    ]


def test_rirs_noises_gives_impulse_responses_and_no_noises(tmp_path: Path) -> None:
    root = tmp_path / "RIRS_NOISES"
    tree(
        root,
        "simulated_rirs/smallroom/Room001/Room001-00001.wav",
        "real_rirs_isotropic_noises/RVB2014_type1_rir_far.wav",
        "real_rirs_isotropic_noises/RVB2014_type1_noise.wav",
        "pointsource_noises/noise-free-sound-0000.wav",
    )
    (root / "real_rirs_isotropic_noises" / "rir_list").write_text(
        "--rir-id 00001 --room-id r1 RIRS_NOISES/real_rirs_isotropic_noises/RVB2014_type1_rir_far.wav\n"
    )
    assert [(row.path, row.fields["kind"]) for row in read_manifest(root)] == [
        ("simulated_rirs/smallroom/Room001/Room001-00001.wav", "simulated"),
        ("real_rirs_isotropic_noises/RVB2014_type1_rir_far.wav", "real"),
    ]


def test_a_part_of_a_corpus_is_an_ordinary_folder(tmp_path: Path) -> None:
    tree(tmp_path, "musan/noise/free-sound/b.wav", "musan/noise/sound-bible/c.wav")
    assert recognise(tmp_path / "musan" / "noise") is None
    assert len(read_manifest(tmp_path / "musan" / "noise")) == 2


def test_enrolments_are_known_with_and_without_their_suffix(tmp_path: Path) -> None:
    path = tmp_path / "enroll.map"
    path.write_text("id00800-enroll id00800/a-01.wav id00800/b-02.wav\n\nid00801 id00801/c.wav\n")
    found = read_enrolments(path)
    assert found["id00800"] == found["id00800-enroll"] == ["id00800/a-01.wav", "id00800/b-02.wav"]
    assert found["id00801-enroll"] == ["id00801/c.wav"]


@pytest.mark.parametrize(("text", "what"), [("a\n", "line 1"), ("a x\na-enroll y\n", "line 2"), ("", "empty")])
def test_what_is_not_a_map_of_enrolments(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "enroll.map"
    path.write_text(text)
    with pytest.raises(BadList, match=what):
        read_enrolments(path)
