"""A folder that is a link to another disk: what it leads to is written, again and again, and the link stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from vcc_fm.ground.files import empty_folder, whole_folder


@pytest.mark.parametrize("there", [True, False])
def test_a_linked_folder_is_written_anew_where_it_leads(tmp_path, there):
    disk, link = tmp_path / "disk" / "cells", tmp_path / "run" / "cells"
    disk.parent.mkdir()
    link.parent.mkdir()
    if there:
        disk.mkdir()
        (disk / "old").write_text("old")
    link.symlink_to(disk)
    for content in ("one", "two", "three"):
        with whole_folder(link) as partial:
            assert partial.parent == disk.parent
            (partial / "file").write_text(content)
        assert link.is_symlink()
        assert [file.name for file in disk.iterdir()] == ["file"]
        assert (link / "file").read_text() == content
    assert [entry.name for entry in disk.parent.iterdir()] == ["cells"]
    assert [entry.name for entry in link.parent.iterdir()] == ["cells"]


def test_checkpoints_in_a_linked_folder(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "train").symlink_to(tmp_path / "disk")
    for step in (1, 2):
        with whole_folder(tmp_path / "train" / "step") as partial:
            (partial / "weights").write_text(str(step))
    assert (tmp_path / "disk" / "step" / "weights").read_text() == "2"
    for _ in range(2):
        empty_folder(tmp_path / "train")
        assert (tmp_path / "train").is_symlink()
        assert list((tmp_path / "disk").iterdir()) == []


def test_a_stop_while_a_folder_takes_the_place_of_an_older_one_keeps_the_old_one(tmp_path, monkeypatch):
    final, rename = tmp_path / "cells", Path.rename
    final.mkdir()
    (final / "file").write_text("old")

    def stopped(path, target):
        if path.name == "cells.partial":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stopped)
    with pytest.raises(KeyboardInterrupt), whole_folder(final) as partial:
        (partial / "file").write_text("new")
    assert (final / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["cells"]
