"""What stages make, and the notes that vouch for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import sha256_file
from vcc_fm.run.outputs import Output, check_outputs


@pytest.fixture
def made(tmp_path: Path) -> Output:
    """A folder with a small and a large file, and a file beside it."""
    output = Output("train", tmp_path / "model", "a", (tmp_path / "more" / "log.json",))
    output.path.mkdir()
    (output.path / "weights").write_bytes(b"w" * (3 << 20))
    (output.path / "config").write_bytes(b"{}")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "log.json").write_bytes(b"[]")
    output.mark(1.0)
    return output


def note_of(output: Output) -> Path:
    return output.path.with_name(f".{output.path.name}.done.json")


def test_a_note_vouches_for_every_file_by_size_and_checksum(made: Output) -> None:
    assert made.fault() is made.fault(content=True) is None
    assert made.require(content=True) == made.path
    files = json.loads(note_of(made).read_text())["files"]
    assert sorted(files) == ["model/config", "model/weights", "more/log.json"]
    assert files["model/weights"] == {"bytes": 3 << 20, "sha256": sha256_file(made.path / "weights")}
    assert list(check_outputs(made.path.parent)) == [(made.path, 3, (3 << 20) + 4)]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("model/weights", None, "is missing"),
        ("model/weights", b"w" * 100, "is damaged: 100 bytes, 3,145,728 were written"),
        ("model/config", b"[]", "is damaged: its content is not what was written"),
        ("more/log.json", None, "is missing"),
    ],
)
def test_what_is_not_whole_is_not_done_and_says_which_file(made: Output, file, content, said) -> None:
    path = made.path.parent / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert made.fault() == f"{path} {said}"
    with pytest.raises(UserError, match=rf"{path} .*; run `vcc-fm train RECIPE` first"):
        made.require()


def test_a_flipped_bit_of_a_large_file_is_seen_where_content_is_asked_for(made: Output) -> None:
    path = made.path / "weights"
    path.write_bytes(b"w" * ((3 << 20) - 1) + b"v")
    assert made.fault() is None
    assert made.fault(content=True) == f"{path} is damaged: its content is not what was written"
    with pytest.raises(UserError, match=rf"{path} is damaged: .*; run `vcc-fm run RECIPE`, which makes model again"):
        list(check_outputs(made.path.parent))


def test_what_was_made_from_something_else_is_not_done(made: Output) -> None:
    other = Output(made.stage, made.path, "b")
    assert other.fault() == f"{made.path} was made from another recipe or other data"
    wider = Output(made.stage, made.path, "a", (made.path.parent / "report",))
    assert wider.fault() == f"{made.path.parent / 'report'} was not finished"
    made.forget()
    made.forget()
    assert made.fault() == f"{made.path} is missing or was not finished"


@pytest.mark.parametrize(
    "note",
    [
        "",
        "[]",
        '{"fingerprint": "a", "seconds": 1.0}',
        '{"fingerprint": "a", "seconds": 1.0, "files": {}}',
        '{"fingerprint": "a", "seconds": 1.0, "files": {"../x": {"bytes": 0, "sha256": ""}}}',
        '{"fingerprint": "a", "seconds": 1.0, "files": {"/x": {"bytes": 0, "sha256": ""}}}',
        '{"fingerprint": "a", "seconds": 1.0, "files": {"model": {"bytes": "x", "sha256": ""}}}',
    ],
)
def test_a_note_that_vouches_for_nothing_or_leads_outside_counts_as_none(made: Output, note) -> None:
    note_of(made).write_text(note)
    assert made.fault() is not None


def test_where_nothing_was_finished_there_is_nothing_to_check(tmp_path) -> None:
    with pytest.raises(UserError, match="no stage has finished anything in it"):
        list(check_outputs(tmp_path))
