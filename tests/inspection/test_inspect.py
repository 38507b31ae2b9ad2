import json
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from inspections import GENES, only, opened, text_of
from source_counts import counts_of

from vcc_fm import cli
from vcc_fm.ground.errors import UserError
from vcc_fm.inspection import values
from vcc_fm.inspection.inspect import inspect_file


# ----------------------------------------------------------------------------------------------------------- real data
def test_papalexi(real_data):
    path = real_data / "perturbation/papalexi2021_thp1_crisprko_20729x299_counts.h5ad"
    found = inspect_file(path)
    (matrix,) = found.matrices
    assert (matrix.encoding, matrix.stored, matrix.cells, matrix.genes) == ("CSR", "float32", 20729, 299)
    assert (matrix.found, matrix.proved, matrix.looked_at, matrix.told) == ("counts", 1.0, 256, True)
    assert (found.read, found.perturbation, found.control) == ("X", "target_gene", "non-targeting")
    assert (found.context, found.batch) == ("cell_type", "bio_rep")
    assert found.genes.symbols == "index"
    assert found.genes.species == "human, by spelling"
    assert [one.column for one in found.labels.perturbations] == ["target_gene", "guide"]
    assert found.labels.perturbations[0].controls == {"non-targeting": 2386}
    assert found.labels.choices == {"assigned": 16192}
    assert found.groups.perturbations == found.groups.groups == 25
    assert found.groups.cells_per_group == [48, 662, 1341]
    assert found.groups.controls_per_batch == [666, 755, 965]
    assert "assigned is true in 16,192 cells only" in only(found.problems, "keep: {assigned: true}")
    assert len(found.problems) == 1
    ratio = {target.perturbation: target.ratio for target in found.targets.targets}
    assert len(ratio) == 9
    assert len(found.targets.not_measured) == 16
    # By hand, of all cells.
    table = anndata.read_h5ad(path)
    expression = table[:, ["JAK2"]].X.toarray().ravel() / np.asarray(table.X.sum(axis=1)).ravel()
    label = table.obs["target_gene"]
    means = [expression[(label == name).to_numpy()].mean() for name in ("JAK2", "non-targeting")]
    assert ratio["JAK2"] == pytest.approx(means[0] / means[1])
    with opened(found) as source:
        assert len(source.cells) == 20729
        assert source.evidence["declared"] == "counts"
    assert "# keep: {assigned: true}   # 16,192 cells" in found.recipe
    printed = text_of(found)
    assert "usual for knock-outs" in printed
    assert len(printed.splitlines()) < 40


def test_perturbench(real_data):
    found = inspect_file(real_data / "perturbation/perturbench_devel_5961x500_lognorm.h5ad")
    (matrix,) = found.matrices
    assert (matrix.found, matrix.evidence["base"], matrix.evidence["target"]) == ("log-normalised", "e", 1e4)
    assert (matrix.totals, matrix.totals_tried[0].use, matrix.proved) == ("ncounts", "bound", 1.0)
    assert (found.perturbation, found.control, found.context) == ("condition", "control", "cell_type")
    best = found.labels.perturbations[0]
    assert (best.labels, best.separator, best.combinations) == (34, "+", 15)
    assert found.groups.contexts == {"k562": 3375, "A172": 850, "T98G": 871, "U87MG": 865}
    assert found.groups.combinations == 15
    assert "targets go up" in text_of(found)
    with opened(found) as source:
        counts = next(iter(counts_of(source, 6000)))[1]
        assert counts.shape == (5960, 500)  # one cell is not proved
    assert "totals_column: ncounts" in found.recipe


def test_a_file_without_perturbation(real_data):
    found = inspect_file(real_data / "cells/baron_pancreas_human_mouse_350x12474_counts.h5ad")
    assert (found.matrices[0].found, found.perturbation, found.groups, found.recipe) == ("counts", None, None, None)
    assert (found.context, found.batch) == ("cell_type", "sample")
    assert found.labels.duplicate_barcodes == 22
    assert "no obs column looks like a perturbation" in found.problems[-1]
    assert "no recipe lines: see the problems" in text_of(found)


# ----------------------------------------------------------------------------------------------------- file and recipe
def test_a_file_that_is_none_is_refused(tmp_path, screen, counts):
    with pytest.raises(UserError, match="no such file"):
        inspect_file(tmp_path / "none.h5ad")
    (tmp_path / "text.h5ad").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="no HDF5 file; give an h5ad file"):
        inspect_file(tmp_path / "text.h5ad")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        inspect_file(tmp_path / "folder")
    path = screen(counts)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"screen\.h5ad.* is not readable as HDF5"):
        inspect_file(path)
    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["X"] = np.ones(3)
    with pytest.raises(UserError, match="it has no obs and var"):
        inspect_file(tmp_path / "other.h5ad")


def test_a_10x_file_and_one_without_cells_are_refused(tmp_path, screen, counts, obs):
    with h5py.File(tmp_path / "filtered.h5", "w") as file:
        file["matrix/data"] = np.ones(3)
    with pytest.raises(UserError, match=r"a 10x file: read it with sc\.read_10x_h5, .* then write_h5ad"):
        inspect_file(tmp_path / "filtered.h5")
    with pytest.raises(UserError, match="no cells"):
        inspect_file(screen(sp.csr_matrix(counts[:0]), obs=obs[:0]))


@pytest.mark.parametrize("barcodes", ["ACGTTGCATTGACCAA-{}", "cell{}"])
def test_a_transposed_file_is_told(h5ad_file, counts, obs, barcodes):
    genes = [*GENES[:57], "MT-ND1", "MT-ND2", "MT-CO1"]
    obs.index = [barcodes.format(i) for i in range(120)]
    path = h5ad_file(sp.csr_matrix(counts.T), obs=pd.DataFrame(index=genes), var=obs)
    found = inspect_file(path)
    assert (found.recipe, found.groups) == (None, None)
    # Rows named as genes are no cells of a pseudobulk: the columns are genes there.
    other = inspect_file(
        h5ad_file(sp.csr_matrix(counts[:60]), obs=pd.DataFrame(index=genes), var=pd.DataFrame(index=genes))
    )
    assert "transposed" not in str(other.problems)
    assert "write it again as adata.T" in only(found.problems, "transposed")
    assert len(found.problems) == 1


def test_a_path_is_expanded_and_written_in_full(screen, counts, monkeypatch, tmp_path):
    path = screen(counts)
    monkeypatch.setenv("SCREENS", str(path.parent))
    monkeypatch.chdir(path.parent)
    for given in (Path(path.name), Path("${SCREENS}") / path.name):
        found = inspect_file(given)
        assert f"path: {path}\n" in found.recipe
        assert found.tried


def test_a_layer_that_cannot_be_read_does_not_hide_the_others(screen, counts):
    path = screen(sp.csr_matrix(counts), layers={"bad": sp.csr_matrix(counts)})
    with h5py.File(path, "r+") as file:
        file["layers/bad/indptr"][5] = 10**6
    found = inspect_file(path)
    assert list(found.unreadable) == ["layers/bad"]
    only(found.problems, "layers/bad: cut short or damaged")
    assert (found.read, found.tried) == ("X", True)
    with h5py.File(path, "r+") as file:
        file["X/indptr"][5] = 10**6
    with pytest.raises(UserError, match=r"screen\.h5ad, X: cut short or damaged"):
        inspect_file(path)


@pytest.mark.parametrize("control", ["1e4", "true", "no: ctrl", "'quoted' #1", "control cells", "-"])
def test_labels_survive_the_recipe(screen, counts, obs, control):
    obs["target_gene"] = obs["target_gene"].replace("non-targeting", control)
    found = inspect_file(screen(counts, obs=obs, name="my screen (1) #2.h5ad"), control=control)
    assert found.tried
    with opened(found) as source:
        assert control in set(source.cells["perturbation"])
        assert source.name == "my-screen-1-2"


def test_the_recipe_is_read_by_the_recipe_itself(screen, counts, tmp_path):
    from vcc_fm.recipe.read import load_recipe

    found = inspect_file(screen(counts))
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"name: mine\n{found.recipe}split: {{hold_out: perturbations}}\ntrain: {{steps: 1}}\n")
    source = load_recipe(recipe).data.sources[0]
    assert (source.values, source.control, source.batch_column) == ("counts", "non-targeting", "lane")


def test_a_file_that_is_still_refused_is_said(screen, counts, obs):
    # The bad value is in a cell at which the source looks, and the inspection does not.
    counts[17, 0] = 0.5
    path = screen(sp.csr_matrix(counts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(values, "SAMPLE_CELLS", 16)
        found = inspect_file(path)
    assert found.matrices[0].found == "counts"
    assert (found.recipe, found.tried) == (None, False)
    assert "the file is still refused: source 'screen'" in only(found.problems, "still refused")


def test_a_zarr_store_is_read_too(tmp_path, counts, obs):
    table = anndata.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=GENES))
    table.write_zarr(tmp_path / "screen.zarr")
    found = inspect_file(tmp_path / "screen.zarr")
    assert (found.matrices[0].found, found.perturbation, found.tried) == ("counts", "target_gene", True)
    assert found.bytes > 1000


def test_the_command_prints_lines_or_json(screen, counts, monkeypatch, capsys):
    path = screen(sp.csr_matrix(counts))

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["vcc-fm", "inspect", str(path), *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    code, out, _ = run("--all")
    assert code == 0
    assert "inspect X: 120/120 cells" in out
    assert "for a recipe (the file opens with these lines):" in out
    code, out, err = run("--json", "--all")
    assert (code, json.loads(out)["control"]) == (0, "non-targeting")
    assert "ETA" in err
    plain = run("--all")[1]
    code, out, err = run("--all", "--quiet")
    assert (code, err) == (0, "")
    assert out == "".join(line for line in plain.splitlines(True) if "ETA" not in line)
    code, out, err = run("--control", "nobody")
    assert (code, out) == (2, "")
    assert "no control label 'nobody'; set control (likely: non-targeting)" in err
