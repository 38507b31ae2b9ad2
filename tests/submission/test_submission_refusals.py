"""What a platform would refuse is refused here, in a line that says what to do, and leaves no file."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from submission_kit import Kit

from vcc_fm.ground.errors import UserError
from vcc_fm.prediction.asking import read_perturbations
from vcc_fm.store.counts_file import CountsFile
from vcc_fm.submission import archive
from vcc_fm.submission.challenge import CHALLENGES, Official, challenge_named
from vcc_fm.submission.submit import GB, judge, write_submission
from vcc_fm.submission.vcc2026 import Vcc2026

LISTS = {"gene_names.csv", "manifest.json", "pert_counts.csv", "predictions.h5ad"}


def submit(kit: Kit, **inputs) -> None:
    challenge = Vcc2026(kit.write(**inputs))
    write_submission(challenge, kit.folder / "x.vcc", 0, lambda step: lambda done, total: None)


def labelled(column: str, row: slice, label: str) -> Callable[[Kit], None]:
    return lambda kit: kit.cells.loc.__setitem__((row, column), label)


def counted(rows: slice, value: int) -> Callable[[Kit], None]:
    return lambda kit: kit.counts.__setitem__(rows, value)


def listing(**fields) -> Callable[[Kit], None]:
    def edit(kit: Kit) -> None:
        for name, value in fields.items():
            setattr(kit, name, value)

    return edit


LABELS = [
    (
        labelled("perturbation", slice(0, 3), "T9"),
        "lacks 1 perturbation of .*pert_counts.csv in context A: T1; predict",
    ),
    (labelled("perturbation", slice(0, 0), "T9"), r"1 perturbation in context A .*: T1 has 3 \(4\)"),
    (labelled("perturbation", slice(0, 0), "non-targeting"), r"1 control cell \('non-targeting'\); a prediction"),
    (labelled("context", slice(40, 59), "D"), "lacks 5 perturbations .* in context C: T1, T2, T3, T4, T5"),
    (listing(axis=["G1", "X", "G2"]), r"lacks 1 gene of .*gene_names.csv: X; put them on the axis \(data.genes: "),
    (listing(axis=["G1", "G1"]), "--genes=.*repeats 1 gene symbol"),
    (listing(axis=[]), "--genes=.*names no gene"),
    (listing(targets="gene\nT1\n"), "no column target_gene or perturbation or pert, found 'gene'"),
    (listing(targets="target_gene\n\n"), "names no perturbation in its column target_gene"),
    (listing(targets="target_gene\nT1\nT1\n"), "'T1' stands twice"),
    (listing(targets="target_gene,n_cells\nT1,4\nT2,0\n"), "n_cells of T2 is '0'"),
    (listing(targets="target_gene,n_cells\nT1,4\nT2,many\n"), "n_cells of T2 is 'many'"),
    (listing(targets=""), "pert, found nothing"),
    (listing(targets="target_gene\nT1\n"), r"T1 has 4 \(400\); set predict.cells"),
    (listing(manifest=None), "give --contexts: A,B,C in the validation phase, D,E,F in the final one"),
    (listing(manifest={"contexts": []}), "not readable as the challenge's manifest: contexts are"),
    (listing(manifest={}), "not readable as the challenge's manifest"),
]


@pytest.mark.parametrize(("edit", "said"), LABELS, ids=[said for _, said in LABELS])
def test_labels_and_lists_are_refused_before_a_count_is_read(kit: Kit, edit, said, monkeypatch):
    edit(kit)
    monkeypatch.setattr("vcc_fm.submission.cells.Part.blocks", None)
    with pytest.raises(UserError, match=said):
        Vcc2026(kit.write())


VALUES = [
    (counted(slice(59, 60), 26_000), "a cell has 1,040,000 counts, the platform takes 1,000,000; set predict.depth"),
    (counted(slice(40, 44), 0), "no cell of T1 in C has a count of the challenge's genes"),
    (counted(slice(3, 4), -1), "X holds something else than counts"),
]


@pytest.mark.parametrize(("edit", "said"), VALUES, ids=[said for _, said in VALUES])
def test_counts_are_refused_and_nothing_is_left(kit: Kit, edit, said):
    edit(kit)
    with pytest.raises(UserError, match=said):
        submit(kit)
    assert {path.name for path in kit.folder.iterdir()} == LISTS


def test_the_deepest_cell_and_the_last_value_that_are_allowed_pass(kit: Kit, monkeypatch):
    kit.counts[59] = 25_000
    monkeypatch.setattr(Vcc2026, "most_values", int(np.count_nonzero(kit.counts)))
    monkeypatch.setattr(Vcc2026, "most_cells", 60)
    submit(kit)


def test_more_cells_or_values_than_allowed_are_refused(kit: Kit, monkeypatch):
    values = int(np.count_nonzero(kit.counts))
    monkeypatch.setattr(Vcc2026, "most_values", values - 1)
    with pytest.raises(UserError, match=f"{values:,} values other than zero, the platform takes {values - 1:,}"):
        Vcc2026(kit.write())
    # Where genes are left out the number is known at the end.
    narrow = kit.changed(axis=kit.axis[:20])
    Vcc2026(narrow.write())
    monkeypatch.setattr(Vcc2026, "most_values", int(np.count_nonzero(narrow.expected())) - 1)
    with pytest.raises(UserError, match="values other than zero"):
        submit(narrow)
    monkeypatch.setattr(Vcc2026, "most_values", values)
    monkeypatch.setattr(Vcc2026, "most_cells", 59)
    with pytest.raises(UserError, match="60 cells, controls included; the platform takes 59: predict"):
        Vcc2026(kit.write())


def test_the_limits_are_those_of_vcc_cli():
    prep = pytest.importorskip("vcc.prep", reason="needs vcc-cli: pip install -e '.[submit]'")
    assert Vcc2026.most_cells == prep.MAX_CELL_DIM
    assert Vcc2026.most_values == prep.MAX_NNZ
    assert Vcc2026.most_depth == prep.MAX_COUNTS_PER_CELL
    assert Vcc2026.cells_of(None, None) == prep.EXPECTED_CELLS_PER_PERT


def test_values_that_are_no_whole_numbers_are_refused(kit: Kit):
    inputs = kit.write()
    with CountsFile(inputs.predictions, kit.genes, {}, np.float32) as file:
        file.append(sp.csr_matrix(kit.counts + 0.5), kit.cells)
    with pytest.raises(UserError, match="X holds something else than counts"):
        write_submission(Vcc2026(inputs), kit.folder / "x.vcc", 0, lambda step: lambda done, total: None)


def test_damaged_predictions_are_refused(kit: Kit):
    inputs = kit.write()
    challenge = Vcc2026(inputs)
    content = bytearray(inputs.predictions.read_bytes())
    place = content.find(b"\x78\x01")  # the first gzip chunk: values
    content[place : place + 400] = bytes(400)
    inputs.predictions.write_bytes(content)
    with pytest.raises(UserError, match=r"predictions.h5ad is not readable as h5ad"):
        write_submission(challenge, kit.folder / "x.vcc", 0, lambda step: lambda done, total: None)
    assert not (kit.folder / "x.vcc").exists()


def test_the_name_must_be_one_that_the_platform_takes(kit: Kit):
    inputs = kit.write()
    before = inputs.predictions.read_bytes()
    with pytest.raises(UserError, match=r"--output .*predictions.h5ad: write a name that ends in .vcc"):
        write_submission(Vcc2026(inputs), inputs.predictions, 0, lambda step: lambda done, total: None)
    assert inputs.predictions.read_bytes() == before


def test_an_unknown_challenge_is_refused_and_a_new_one_is_one_line():
    with pytest.raises(UserError, match=r"--challenge: 'vcc2062' is no challenge \(did you mean vcc2026\?\)"):
        challenge_named("vcc2062")
    CHALLENGES.register("mine", Vcc2026)
    try:
        assert challenge_named("mine") is Vcc2026
    finally:
        del CHALLENGES._parts["mine"]


def test_a_byte_order_mark_spaces_and_empty_lines_are_no_part_of_a_list(tmp_path: Path):
    (tmp_path / "p.csv").write_text("\ufefftarget_gene,n_cells\r\n NA ,04\r\n\r\n,\r\nT1,5\r\n", "utf-8")
    assert read_perturbations(tmp_path / "p.csv", "non-targeting") == {"NA": 4, "T1": 5}


# --------------------------------------------------------------------------------------------------- what is read back
def rewritten(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    with tarfile.open(path) as tar:
        members = {name: tar.extractfile(name).read() for name in tar.getnames()}
    change(members)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def flipped(members: dict[str, bytes]) -> None:
    """One bit of the middle of the cells; the stream has no checksum of its own."""
    cells = bytearray(members["pred.h5ad.zst"])
    cells[len(cells) // 2] ^= 1
    members["pred.h5ad.zst"] = bytes(cells)


def cut(members: dict[str, bytes]) -> None:
    members["pred.h5ad.zst"] = members["pred.h5ad.zst"][:-1]


DAMAGES = {
    "a bit of the cells": flipped,
    "the end of the cells": cut,
    "no cells": lambda members: members.update({"pred.h5ad.zst": b""}),
    "no description": lambda members: members.pop("meta.json"),
    "another description": lambda members: members.update({"meta.json": json.dumps({"schema": 1}).encode()}),
    "more than there was": lambda members: members.update({"more": b"x"}),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_archive_is_found_and_taken_away(kit: Kit, monkeypatch, damage):
    def pack(path: Path, h5ad: Path, members: dict[str, bytes | None]) -> None:
        archive.pack(path, h5ad, members)
        rewritten(path, damage)

    monkeypatch.setattr("vcc_fm.submission.submit.pack", pack)
    with pytest.raises(UserError, match=r"x.vcc.* it was taken away; make it again"):
        submit(kit)
    assert {path.name for path in kit.folder.iterdir()} == LISTS


def test_an_archive_that_is_cut_is_found(kit: Kit, monkeypatch):
    def pack(path: Path, h5ad: Path, members: dict[str, bytes | None]) -> None:
        archive.pack(path, h5ad, members)
        path.write_bytes(path.read_bytes()[:4000])

    monkeypatch.setattr("vcc_fm.submission.submit.pack", pack)
    with pytest.raises(UserError, match="it was taken away"):
        submit(kit)


def other_count(kit: Kit) -> None:
    kit.counts[17, 5] += 1


def other_gene(kit: Kit) -> None:
    kit.counts[17] = np.roll(kit.counts[17], 1)


def other_label(kit: Kit) -> None:
    kit.cells.loc[[3, 4], "perturbation"] = kit.cells.loc[[4, 3], "perturbation"].to_numpy()


def other_context(kit: Kit) -> None:
    kit.cells.loc[[3, 23], "context"] = kit.cells.loc[[23, 3], "context"].to_numpy()


def other_axis(kit: Kit) -> None:
    kit.axis = kit.axis[1:] + kit.axis[:1]


@pytest.mark.parametrize("change", [other_count, other_gene, other_label, other_context, other_axis])
def test_cells_that_differ_from_the_predictions_are_found(kit: Kit, tmp_path, change):
    right = Vcc2026(kit.write())
    # The same cells in another folder: the challenge above reads its own file while it compares.
    (tmp_path / "other").mkdir()
    other = kit.changed(folder=tmp_path / "other", counts=kit.counts.copy(), cells=kit.cells.copy())
    change(other)
    archive.write_cells(tmp_path / "other.h5ad", Vcc2026(other.write()), lambda done, total: None)
    with pytest.raises(UserError, match="it was taken away"):
        archive.compare(tmp_path / "other.h5ad", right, tmp_path / "x.vcc", lambda done, total: None)


def test_genes_in_a_wrong_order_would_be_found(kit: Kit, monkeypatch):
    """The reading finds genes by name: a mistake in the writing's order is no mistake of both."""
    append = CountsFile.append

    def swapped(self: CountsFile, counts: sp.csr_matrix, labels) -> None:
        append(self, counts[:, [1, 0, *range(2, counts.shape[1])]].sorted_indices(), labels)

    inputs = kit.write()
    monkeypatch.setattr(CountsFile, "append", swapped)
    with pytest.raises(UserError, match=r"differs from .*predictions.h5ad"):
        write_submission(Vcc2026(inputs), kit.folder / "x.vcc", 0, lambda step: lambda done, total: None)


# --------------------------------------------------------------------------------------------------- the other program
def test_a_refusal_of_the_official_program_is_shown_in_its_words(tmp_path: Path):
    script = "import sys; print('a\\nValueError: too many', file=sys.stderr); sys.exit(1)"
    with pytest.raises(UserError, match=r"^python3 -c refuses the cells: ValueError: too many$"):
        judge(Official("x", ("python3",), ["-c", script], 0), GB)


def test_vcc_itself_refuses_what_it_would_refuse(kit: Kit):
    pytest.importorskip("vcc.prep", reason="needs vcc-cli: pip install -e '.[submit]'")
    challenge = Vcc2026(kit.write())
    archive.write_cells(kit.folder / "cells.h5ad", challenge, lambda done, total: None)
    challenge.inputs.perturbations.write_text("target_gene,n_cells\nT1,4\n")
    with pytest.raises(UserError, match="vcc prep refuses the cells: vcc prep: Context A: perturbation labels do not"):
        judge(challenge.official(kit.folder / "cells.h5ad", 1), 4 * GB)
