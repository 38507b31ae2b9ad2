"""The archive of 2026 is what vcc-cli makes of the same cells, and holds the predictions count for count."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from submission_kit import Kit, cells_in

from vcc_fm.store.counts_file import CountsFile
from vcc_fm.submission.archive import unpack
from vcc_fm.submission.submit import GB, write_submission
from vcc_fm.submission.vcc2026 import FORMAT, Vcc2026

VCC = shutil.which("vcc", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
needs_vcc = pytest.mark.skipif(VCC is None, reason="needs vcc-cli: pip install -e '.[submit]'")


def submit(kit: Kit, name: str = "x.vcc", memory: float = 4 * GB, **inputs) -> dict:
    challenge = Vcc2026(kit.write(**inputs))
    return write_submission(challenge, kit.folder / name, memory, lambda step: lambda done, total: None)


@needs_vcc
def test_the_official_program_takes_it_and_packs_the_same_cells_into_the_same_archive(kit: Kit):
    result = submit(kit)
    assert result["accepted"] is True
    ours = cells_in(kit.folder / "x.vcc", kit.folder)
    lists = ["-g", kit.folder / "gene_names.csv", "--perts", kit.folder / "pert_counts.csv"]
    theirs_path = kit.folder / "theirs.vcc"
    subprocess.run([VCC, "prep", kit.folder / "unpacked.h5ad", *lists, "-o", theirs_path], check=True)
    theirs = cells_in(theirs_path, kit.folder)
    assert (ours.X != theirs.X).nnz == 0
    assert ours.X.dtype == theirs.X.dtype == np.float32
    assert ours.obs.astype(str).equals(theirs.obs.astype(str))
    assert ours.obs.dtypes.astype(str).tolist() == theirs.obs.dtypes.astype(str).tolist()
    assert ours.var_names.equals(theirs.var_names)
    with tarfile.open(kit.folder / "x.vcc") as our_tar, tarfile.open(theirs_path) as their_tar:
        assert our_tar.getnames() == their_tar.getnames() == ["meta.json", "pred.h5ad.zst"]
        our_meta, their_meta = (json.load(tar.extractfile("meta.json")) for tar in (our_tar, their_tar))
        assert our_meta == their_meta | {"cli_version": FORMAT["cli_version"]}
        for one, other in zip(our_tar.getmembers(), their_tar.getmembers(), strict=True):
            assert (one.uid, one.uname, one.mtime, one.type) == (other.uid, other.uname, other.mtime, other.type)


@needs_vcc
def test_vcc_submit_would_read_the_archive(kit: Kit):
    vccfile = pytest.importorskip("vcc.vccfile", reason="needs vcc-cli in this environment")
    result = submit(kit)
    vccfile.validate_vcc(kit.folder / "x.vcc")
    assert vccfile.nnz_from_vcc(kit.folder / "x.vcc") == result["values"] == np.count_nonzero(kit.counts)
    assert vccfile.contexts_from_vcc(kit.folder / "x.vcc") == ("A", "B", "C")


def test_every_count_and_label_is_where_the_challenge_wants_it(kit: Kit):
    result = submit(kit)
    cells = cells_in(kit.folder / "x.vcc", kit.folder)
    assert cells.var_names.tolist() == kit.axis != kit.genes
    np.testing.assert_array_equal(cells.X.toarray(), kit.expected())
    assert list(cells.obs) == ["target_gene", "context"]
    assert cells.obs["target_gene"].tolist() == kit.cells["perturbation"].tolist()
    assert cells.obs["context"].tolist() == kit.cells["context"].tolist()
    assert sp.isspmatrix_csr(cells.X)
    assert cells.X.has_sorted_indices
    assert (result["cells"], result["genes"]) == (60, 40)
    assert sorted(path.name for path in kit.folder.iterdir()) == [
        "gene_names.csv", "manifest.json", "pert_counts.csv", "predictions.h5ad", "unpacked.h5ad", "x.vcc"
    ]  # fmt: skip


def test_equal_cells_make_equal_bytes(kit: Kit):
    submit(kit, "x.vcc")
    submit(kit, "y.vcc")
    assert (kit.folder / "x.vcc").read_bytes() == (kit.folder / "y.vcc").read_bytes()


def test_what_is_not_asked_for_is_left_out_and_said(kit: Kit, monkeypatch):
    monkeypatch.setattr("vcc_fm.submission.cells.ROWS", 7)
    wide = kit.changed(
        axis=kit.axis[3:],
        targets="target_gene,n_cells\nT4,4\nT1,4\n\n",
        manifest={"contexts": ["C", "A"]},
    )
    challenge = Vcc2026(wide.write())
    assert challenge.notes == [
        "3 genes of the predictions are not on the challenge's axis: left out",
        "44 predicted cells of other perturbations or contexts: left out",
    ]
    write_submission(challenge, kit.folder / "x.vcc", 0, lambda step: lambda done, total: None)
    cells = cells_in(kit.folder / "x.vcc", kit.folder)
    rows = (kit.cells["context"].isin(["A", "C"]) & kit.cells["perturbation"].isin(["T1", "T4"])).to_numpy()
    np.testing.assert_array_equal(cells.X.toarray(), wide.expected()[rows])
    assert cells.obs["target_gene"].tolist() == kit.cells["perturbation"][rows].tolist()


def test_contexts_given_stand_above_the_manifest_and_its_panel_is_not_theirs(kit: Kit):
    kit.cells["context"] = kit.cells["context"].replace({"A": "D", "B": "E", "C": "F"})
    challenge = Vcc2026(kit.write(["D", "E", "F"]))
    meta = json.loads(challenge.members(9)["meta.json"])
    assert meta["contexts"] == ["D", "E", "F"]
    assert meta["nnz"] == 9
    assert "panel_id" not in meta


def test_without_a_number_400_cells_are_asked_for(kit: Kit):
    cells = kit.cells.loc[kit.cells.index.repeat(100)].reset_index(drop=True)
    counts = np.repeat(kit.counts, 100, axis=0)
    targets = "target_gene\n" + "".join(f"T{number}\n" for number in range(1, 6))
    full = kit.changed(cells=cells, counts=counts, targets=targets)
    assert submit(full)["cells"] == 6000


@pytest.mark.slow
@needs_vcc
def test_the_challenge_at_its_full_shape_passes_the_official_check(kit: Kit):
    """360,000 cells of 18,533 genes, with three counts a cell, and the lists as the challenge gives them."""
    targets, rng = [f"P{number}" for number in range(300)], np.random.default_rng(0)
    genes = [f"G{number}" for number in range(18_533)]
    inputs = kit.changed(axis=rng.permutation(genes).tolist(), targets="\n".join(["target_gene", *targets])).write()
    with CountsFile(inputs.predictions, genes, {}) as file:
        for context in "ABC":
            for target in targets:
                places = rng.choice(18_533, 1200, replace=False).reshape(400, 3)
                counts = sp.csr_matrix(
                    (np.ones(1200, np.int32), np.sort(places).ravel(), np.arange(401) * 3), (400, 18_533)
                )
                file.append(counts, pd.DataFrame({"context": context, "perturbation": target}, range(400)))
    result = write_submission(Vcc2026(inputs), kit.folder / "x.vcc", 4 * GB, lambda step: lambda done, total: None)
    assert result["accepted"] is True
    assert (result["cells"], result["genes"], result["values"]) == (360_000, 18_533, 1_080_000)


def test_where_the_official_program_needs_more_memory_it_is_not_asked_and_this_is_said(kit: Kit):
    if VCC is None:
        pytest.skip("needs vcc-cli: pip install -e '.[submit]'")
    result = submit(kit, memory=0)
    assert result["accepted"] is None
    assert "reads all cells at once" in result["said"]
    enough = re.search(r"--memory-gb (\d+) ", result["said"])
    assert submit(kit, memory=int(enough[1]) * GB)["accepted"] is True


def test_where_the_official_program_is_absent_the_archive_is_written_and_the_installation_named(kit: Kit, monkeypatch):
    monkeypatch.setattr("vcc_fm.submission.submit.shutil.which", lambda *_, **__: None)
    result = submit(kit)
    assert result["accepted"] is None
    assert "pip install 'vcc-cli>=0.3.0'" in result["said"]
    unpack(kit.folder / "x.vcc", kit.folder / "again.h5ad", {"meta.json": None, "pred.h5ad.zst": None})
    assert anndata.read_h5ad(kit.folder / "again.h5ad").shape == (60, 40)
