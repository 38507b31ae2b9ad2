"""The simulator against its own truth: what was drawn can be measured in the counts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special

from vcc_fm.encoders.proteins.composition import Composition, CompositionSettings
from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.data import SimulateConfig, SourceConfig
from vcc_fm.sources.simulate import simulate

CONFIG = SimulateConfig(
    contexts=["alpha", "beta"],
    perturbations=12,
    genes=150,
    cells=500,
    controls=4000,
    batches=3,
    depth=6000.0,
    inert=0.25,
)
SMALL = SimulateConfig(contexts=["one"], perturbations=4, genes=30, cells=10, controls=20)


@dataclass
class Screen:
    """A simulated screen, read back. Cell-wise truth is split by context, as the files are."""

    folder: Path
    sources: list[SourceConfig]
    data: list[anndata.AnnData]
    counts: list[NDArray[np.float64]]
    truth: dict[str, NDArray[np.float64]]

    def of_cells(self, name: str, context: int) -> NDArray[np.float64]:
        return self.truth[name][self.truth["cell_context"] == context]

    def lfc(self, context: int) -> NDArray[np.float64]:
        """Log ratio of depth-normalised pseudobulks to control, [T, G], centred over genes."""
        counts, obs = self.counts[context], self.data[context].obs
        rows = []
        for label in [*self.data[context].var_names[self.truth["targets"]], "non-targeting"]:
            pseudobulk = counts[(obs["perturbation"] == label).to_numpy()].sum(axis=0) + 0.5
            rows.append(np.log(pseudobulk / pseudobulk.sum()))
        lfc = np.array(rows[:-1]) - rows[-1]
        return lfc - np.median(lfc, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Screen:
    folder = tmp_path_factory.mktemp("screen")
    sources = simulate(CONFIG, 7, folder)
    data = [anndata.read_h5ad(source.path) for source in sources]
    counts = [entry.X.toarray().astype(np.float64) for entry in data]
    return Screen(folder, sources, data, counts, dict(np.load(folder / "truth.npz")))


def test_sources_point_to_files_with_the_promised_fields(screen: Screen) -> None:
    assert [source.name for source in screen.sources] == CONFIG.contexts
    for source, data, counts in zip(screen.sources, screen.data, screen.counts, strict=True):
        assert (source.values, source.symbols, source.matrix) == ("counts", "index", "X")
        assert data.X.format == "csr"
        assert data.X.dtype == np.float32
        assert (counts == np.round(counts)).all()
        assert data.var_names[0] == "SIM0001"
        assert data.obs_names.is_unique
        assert data.n_vars == CONFIG.genes
        assert data.uns["vcc_fm"]["simulated"]
        assert json.loads(data.uns["vcc_fm"]["config"])["genes"] == CONFIG.genes
        assert set(data.obs[source.context_column]) == {source.name}
        labels = data.obs[source.perturbation_column]
        assert source.control in set(labels)
        assert labels.nunique() == CONFIG.perturbations + 1
        # Every group is in every batch, and the cells of a group do not lie together.
        assert data.obs.groupby(["perturbation", source.batch_column], observed=True).size().shape == (13 * 3,)
        assert (labels.to_numpy()[1:] == labels.to_numpy()[:-1]).mean() < 0.5
    assert set(screen.data[0].obs["batch"]).isdisjoint(screen.data[1].obs["batch"])


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        simulate(SMALL, seed, tmp_path / folder)
    for file in ("one.h5ad", "proteins.fasta", "truth.npz"):
        first, again, other = ((tmp_path / folder / file).read_bytes() for folder in "abc")
        assert first == again, file
        assert first != other, file


def test_a_further_context_changes_none_before_it(tmp_path: Path) -> None:
    simulate(SMALL, 3, tmp_path / "a")
    simulate(SMALL.model_copy(update={"contexts": ["one", "two"]}), 3, tmp_path / "b")
    first, again = (anndata.read_h5ad(tmp_path / folder / "one.h5ad").X for folder in "ab")
    assert (first != again).nnz == 0


def test_no_perturbation_has_fewer_than_eight_cells(tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"cells": 1, "controls": 1, "batches": 11})
    (source,) = simulate(config, 0, tmp_path)
    sizes = anndata.read_h5ad(source.path).obs["perturbation"].value_counts()
    assert sizes.drop("non-targeting").tolist() == [8, 8, 8, 8]
    assert sizes["non-targeting"] == 11


def test_measured_lfc_follows_the_true_delta(screen: Screen) -> None:
    strong = np.flatnonzero(screen.truth["strength"] > 0.6)
    assert len(strong) > 3
    for context in (0, 1):
        measured, true = screen.lfc(context), screen.truth["delta"][context]
        others = np.ones_like(true, dtype=bool)
        others[np.arange(len(true)), screen.truth["targets"]] = False
        for t in strong:
            x, y = true[t, others[t]], measured[t, others[t]]
            assert np.corrcoef(x, y)[0, 1] > 0.95
            # Efficiency 0.85 in 93 % of the cells: the pseudobulk shows a little less than the full effect.
            assert 0.65 < np.polyfit(x, y, 1)[0] < 1.0


def test_delta_has_the_promised_size(screen: Screen) -> None:
    delta = screen.truth["delta"][:, ~screen.truth["inert"].astype(bool)]
    responding = np.abs(delta) > 0.1
    assert 0.2 < responding.mean() < 0.35
    assert 0.5 < np.sqrt((delta[responding] ** 2).mean()) < 0.9
    between_contexts = [np.corrcoef(one, other)[0, 1] for one, other in zip(*delta, strict=True)]
    assert 0.45 < np.mean(between_contexts) < 0.75


def test_inert_perturbations_do_nothing_but_the_knock_down(screen: Screen) -> None:
    inert = np.flatnonzero(screen.truth["inert"])
    assert len(inert) == 3
    assert not screen.truth["delta"][:, inert].any()
    expressed = np.flatnonzero(screen.counts[0].mean(axis=0) > 10)
    for t in inert:
        lfc = screen.lfc(0)[t]
        others = np.setdiff1d(expressed, screen.truth["targets"][t])
        assert np.abs(lfc[others]).max() < 0.2
        assert lfc[int(screen.truth["targets"][t])] < -1.0


def test_knock_down_follows_each_cells_efficiency(screen: Screen) -> None:
    efficiency = screen.of_cells("efficiency", 0)
    obs, counts, depth = screen.data[0].obs, screen.counts[0], screen.of_cells("depth", 0)
    perturbed = (obs["perturbation"] != "non-targeting").to_numpy()
    assert not efficiency[~perturbed].any()
    assert 0.04 < (efficiency[perturbed] == 0).mean() < 0.10
    assert np.mean(efficiency[perturbed & (efficiency > 0)]) == pytest.approx(0.85, abs=0.01)
    target = screen.data[0].var_names.get_indexer(obs["perturbation"])
    control = (counts[~perturbed] / depth[~perturbed, None]).mean(axis=0)
    inert = np.isin(target, screen.truth["targets"][screen.truth["inert"].astype(bool)])
    relative = counts[np.arange(len(target)), target] / depth / control[target]
    assert relative[inert & (efficiency > 0)].mean() == pytest.approx(0.15, abs=0.03)
    assert relative[inert & (efficiency == 0)].mean() == pytest.approx(1.0, abs=0.2)


def test_depth_has_the_median_asked_for(screen: Screen) -> None:
    for counts in screen.counts:
        depth = counts.sum(axis=1)
        assert np.median(depth) == pytest.approx(CONFIG.depth, rel=0.05)
        assert 0.2 < np.log(depth).std() < 0.4


def control_mean(screen: Screen, context: int) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which cells are controls, and their expected counts by the documented model."""
    control = (screen.data[context].obs["perturbation"] == "non-targeting").to_numpy()
    batch = screen.data[context].obs["batch"].cat.codes.to_numpy()[control]
    log_expression = screen.truth["base"][context] + screen.truth["shift"][context][batch]
    return control, screen.of_cells("depth", context)[control, None] * special.softmax(log_expression, axis=1)


def test_control_counts_are_negative_binomial(screen: Screen) -> None:
    control, mean = control_mean(screen, 0)
    expressed = mean.mean(axis=0) > 5
    counts, mean = screen.counts[0][control][:, expressed], mean[:, expressed]
    np.testing.assert_allclose(counts.mean(axis=0), mean.mean(axis=0), rtol=0.08)
    # Moment estimate of alpha in variance = mu + alpha mu^2.
    alpha = ((counts - mean) ** 2 - mean).sum(axis=0) / (mean**2).sum(axis=0)
    true = screen.truth["dispersion"][0][expressed]
    assert 0.2 < np.median(alpha) < 0.4
    assert np.corrcoef(alpha, true)[0, 1] > 0.9
    np.testing.assert_allclose(alpha, true, rtol=0.25)


def test_batches_shift_genes(screen: Screen) -> None:
    control = (screen.data[0].obs["perturbation"] == "non-targeting").to_numpy()
    batch = screen.data[0].obs["batch"].cat.codes.to_numpy()
    profiles = np.array([screen.counts[0][control & (batch == b)].sum(axis=0) + 0.5 for b in range(3)])
    measured = np.log(profiles[1] / profiles[0])
    true = screen.truth["shift"][0][1] - screen.truth["shift"][0][0]
    expressed = screen.counts[0].mean(axis=0) > 5
    assert 0.05 < screen.truth["shift"].std() < 0.15
    assert np.corrcoef(measured[expressed], true[expressed])[0, 1] > 0.9


def test_base_expression_is_similar_between_contexts(screen: Screen) -> None:
    assert 0.75 < np.corrcoef(screen.truth["base"][0], screen.truth["base"][1])[0, 1] < 0.93


def test_composition_of_the_proteins_reveals_the_gene_factors(screen: Screen) -> None:
    records = [record.split("\n")[:2] for record in (screen.folder / "proteins.fasta").read_text().split(">")[1:]]
    vectors = Composition(CompositionSettings(kmer=1)).encode([protein for _, protein in records])
    assert [symbol for symbol, _ in records] == list(screen.data[0].var_names)
    assert all(150 <= len(protein) <= 600 for _, protein in records)
    factors, fitted = screen.truth["factors"], slice(0, 100)
    design = np.column_stack([vectors.astype(np.float64), np.ones(len(vectors))])
    weights = np.linalg.lstsq(design[fitted], factors[fitted], rcond=None)[0]
    error = factors[100:] - design[100:] @ weights
    assert 1 - (error**2).sum() / (factors[100:] ** 2).sum() > 0.5


def test_predictable_effects_are_bilinear_in_the_gene_factors(tmp_path: Path) -> None:
    explained = {}
    for predictable in (0.0, 1.0):
        config = SimulateConfig(
            contexts=["one"],
            perturbations=80,
            genes=120,
            cells=8,
            controls=8,
            shared=1.0,
            predictable=predictable,
            inert=0.0,
        )
        simulate(config, 1, tmp_path)
        truth = np.load(tmp_path / "truth.npz")
        own = truth["delta"][0] - truth["delta"][0].mean(axis=0)
        design = np.einsum("tk,gl->tgkl", truth["factors"][truth["targets"]], truth["factors"]).reshape(own.size, -1)
        residual = own.ravel() - design @ np.linalg.lstsq(design, own.ravel(), rcond=None)[0]
        explained[predictable] = 1 - residual.var() / own.var()
    assert explained[0.0] < 0.05
    assert explained[1.0] > 0.4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contexts": []}, r"data\.simulate\.contexts is empty"),
        (
            {"contexts": ["a", "A"]},
            r"data\.simulate\.contexts: names must differ by more than case, found \['a', 'A'\]",
        ),
        ({"contexts": ["../a"]}, r"data\.simulate\.contexts: '\.\./a' cannot name a file"),
        ({"contexts": ["a b"]}, r"'a b' cannot name a file; use letters"),
        ({"combinations": 7}, r"data\.simulate\.combinations=7 is more than the 6 pairs of 4 target genes"),
        ({"genes": 3}, r"data\.simulate\.genes=3 is fewer than data\.simulate\.perturbations=4; .*raise genes"),
    ],
)
def test_an_impossible_screen_is_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        simulate(SMALL.model_copy(update=change), 0, tmp_path / "screen")
    assert not (tmp_path / "screen").exists()
