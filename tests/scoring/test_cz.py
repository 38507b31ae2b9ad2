"""Scores of cz-benchmarks: embeddings beside formulas of our own, predictions beside the package's two tasks."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import entropy, spearmanr
from scoring_screens import CONTROL, make_screen, perturbed
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_samples, silhouette_score
from sklearn.neighbors import NearestNeighbors

from vcc_fm.ground.errors import UserError
from vcc_fm.scoring import cz
from vcc_fm.scoring.preset import preset_named
from vcc_fm.scoring.presets.cz import TOTAL, first_metrics, ranked
from vcc_fm.scoring.profiles import label_means, log_normalized

NEEDS = "needs the extra cz: pip install -e '.[cz]'"

# What `PerturbationTask` of cz-benchmarks 0.9.0 gives to `first_cells`, log1p of counts per 10,000 in float32.
PUBLISHED = {
    "A": {
        "mse": 0.2780228555202484, "pearson": 0.4586586058139801,
        "mse_top20": 0.6763758659362793, "pearson_top20": 0.10036385804414749, "jaccard_top20": 0.14285714285714285,
        "mse_top100": 0.3242551386356354, "pearson_top100": 0.17032161355018616, "jaccard_top100": 0.6260162601626016,
    },
    "B": {
        "mse": 0.2394750416278839, "pearson": 0.6694908738136292,
        "mse_top20": 0.2936824858188629, "pearson_top20": 0.6510829925537109, "jaccard_top20": 0.42857142857142855,
        "mse_top100": 0.18702802062034607, "pearson_top100": 0.6728488802909851, "jaccard_top100": 0.639344262295082,
    },
}  # fmt: skip


def cells_of(groups):
    labels = np.repeat(list(groups), [len(counts) for counts in groups.values()])
    obs = pd.DataFrame({"perturbation": labels}, index=[f"x{row}" for row in range(len(labels))])
    counts = np.vstack(list(groups.values())).astype(np.float32)
    return ad.AnnData(
        sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(counts.shape[1])])
    )


def first_cells(genes=150):
    rng = np.random.default_rng(7)
    rate = rng.gamma(0.8, 2.0, genes) + 0.2

    def draw(number, factor):
        counts = rng.poisson(rate * factor * rng.gamma(8, 1 / 8, (number, 1)))
        counts[:, 0] += 1  # no cell is empty
        return counts

    effects = {label: np.exp(rng.normal(0, 0.6, genes) * (rng.random(genes) < 0.3)) for label in ("A", "B")}
    real = {"ctrl": draw(40, np.ones(genes))} | {label: draw(24, effects[label]) for label in effects}
    return cells_of(real), cells_of({label: draw(20, effects[label] ** 0.7) for label in effects})


def profiles(log):
    means, tables = label_means(log).T, ranked(log, "ctrl")
    return {label: (means[label], table["names"].tolist()) for label, table in tables.items()}


def test_the_first_task_is_that_of_the_package_when_it_began():
    pytest.importorskip("czbenchmarks", reason=NEEDS)
    real, predicted = (log_normalized(cells, TOTAL) for cells in first_cells())
    controls = real[(real.obs["perturbation"] == "ctrl").to_numpy()]
    truth, found = profiles(real), profiles(ad.concat([predicted, controls], index_unique="-"))
    for label, published in PUBLISHED.items():
        metrics = first_metrics(truth[label], found[label], label_means(controls).loc["ctrl"])
        assert {name: metrics[name] for name in published} == pytest.approx(published, abs=1e-6), label


def test_metrics_of_the_first_task_by_hand():
    genes = [f"G{i}" for i in range(40)]
    control, truth = pd.Series(0.0, genes), pd.Series(np.arange(40.0), genes)
    predicted = truth.where(truth < 20, 2 * truth)  # right in the first half, twice as much in the other
    best = genes[::-1]
    found = first_metrics((truth, best), (predicted, genes[30:] + genes[:30]), control)
    assert found["mse"] == pytest.approx(sum(i**2 for i in range(20, 40)) / 40)
    assert found["mse_top20"] == pytest.approx(sum(i**2 for i in range(20, 40)) / 20)
    assert found["pearson_top20"] == pytest.approx(1)
    assert found["jaccard_top20"] == pytest.approx(10 / 30)  # G30 to G39 of G20 to G39 and of G30 to G39, G0 to G9
    assert found["jaccard_top100"] == 1
    assert first_metrics((truth, best), (control, best), control)["pearson"] == 0


def test_a_preset_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr("vcc_fm.scoring.presets.cz.Cz.scorer", "cz-benchmarks-of-nobody")
    with pytest.raises(UserError, match=r"score\.preset=cz: its scorer is not installed: pip install cz-benchmarks"):
        preset_named("cz")
    monkeypatch.setattr(cz, "SCORER", "cz-benchmarks-of-nobody")
    with pytest.raises(UserError, match=r"its scorer is not installed: pip install 'vcc-fm\[cz\]'"):
        cz.scorer_version()


@pytest.mark.slow
def test_the_preset_is_the_packages_task_on_genes_and_controls_that_are_said(tmp_path):
    pytest.importorskip("czbenchmarks", reason=NEEDS)
    real, predicted = (make_screen(0, contexts=("alpha",), draw=draw) for draw in (0, 1))
    predicted = perturbed(predicted)
    scorer = preset_named("cz").open(real, "alpha", CONTROL, tmp_path, "0")
    found = scorer.measure(predicted)
    _, targets = scorer._targets()
    assert len(targets) >= 4
    controls = real[(real.obs["perturbation"] == CONTROL).to_numpy()]
    drawn = np.random.default_rng(42).permutation(controls.n_obs)[:24]  # as many as there are predicted cells
    counts = controls.X.toarray() * (1e4 / controls.X.sum(axis=1).A1[:, None])
    for label, genes in targets.items():
        table = ranked(log_normalized(real, TOTAL), CONTROL)[label].set_index("names")
        passed = table[(table["pvals_adj"] < 1e-4) & (table["logfoldchanges"].abs() >= 1)]
        assert set(genes) <= set(passed.index)
        assert len(genes) == len(passed) // 2
        mine = predicted[(predicted.obs["perturbation"] == label).to_numpy()]
        at = mine.var_names.get_indexer(genes)
        before = counts[drawn][:, at].mean(0)
        after = (mine.X.toarray() * (1e4 / mine.X.sum(axis=1).A1[:, None]))[:, at].mean(0)
        change = np.log(after / before) if min(after.min(), before.min()) > 0 else after - before
        expected = spearmanr(table.loc[genes, "logfoldchanges"], change).statistic
        assert found["spearman"].parts[label][0] == pytest.approx(expected, abs=1e-6)
    assert scorer.low["spearman"].value == scorer.scales["spearman"].low == 0
    assert 0.3 < scorer.ceiling["spearman"].value <= 1
    own = scorer.measure(perturbed(real))
    assert own["mse"].value == 0 < found["mse"].value < scorer.low["mse"].value
    assert own["jaccard_top20"].value == 1


@pytest.mark.slow
def test_a_truth_without_clear_genes_has_no_correlation_and_the_other_metrics(tmp_path):
    pytest.importorskip("czbenchmarks", reason=NEEDS)
    real, predicted = first_cells()
    scorer = preset_named("cz").open(real, "a", "ctrl", tmp_path, "0")
    assert scorer.scales["spearman"].reason
    assert np.isnan(scorer.measure(predicted)["spearman"].value)
    assert scorer.measure(predicted)["mse"].value == pytest.approx(0.25874895, abs=1e-6)


# ---------------------------------------------------------------------------------------------------------- embeddings
@pytest.fixture(scope="module")
def embedded():
    """An embedding of three labels in two batches, which are two species, over time."""
    pytest.importorskip("czbenchmarks", reason=NEEDS)
    rng = np.random.default_rng(0)
    cells = pd.DataFrame({"label": np.tile(["a", "b", "c"], 80), "batch": np.repeat(["one", "two"], 120)})
    cells["context"] = cells["batch"].map({"one": "human", "two": "mouse"})
    cells["time"] = rng.integers(0, 5, 240).astype(str)
    vectors = rng.normal(size=(240, 6)).astype(np.float32)
    vectors[:, 0] += 2 * cells["label"].map({"a": 0, "b": 1, "c": 2})
    vectors[:, 1] += cells["batch"] == "two"
    vectors[:, 2] += cells["time"].astype(float)
    return vectors, cells


def values(task, vectors, cells):
    found = cz.measure(task, vectors, cells)
    return {(row.metric, row.of) if row.of else row.metric: row.value for row in found.itertuples()}


@pytest.mark.slow
def test_clusters_are_scanpys_and_their_scores_scikit_learns(embedded):
    import scanpy as sc

    vectors, cells = embedded
    data = ad.AnnData(vectors)
    sc.pp.neighbors(data, use_rep="X", random_state=42)
    sc.tl.leiden(data, flavor="igraph", n_iterations=2, random_state=42)
    clusters = data.obs["leiden"]
    assert values("clustering", vectors, cells) == pytest.approx(
        {
            "adjusted_rand_index": adjusted_rand_score(cells["label"], clusters),
            "normalized_mutual_info": normalized_mutual_info_score(cells["label"], clusters),
        },
        abs=1e-6,
    )


def test_a_silhouette_is_scaled_to_one(embedded):
    vectors, cells = embedded
    expected = (silhouette_score(vectors.astype(float), cells["label"]) + 1) / 2
    assert values("embedding", vectors, cells) == {"silhouette_score": pytest.approx(expected, abs=1e-6)}


def test_batches_are_mixed_by_entropy_and_silhouette_and_species_are_batches(embedded):
    vectors, cells = embedded
    near = NearestNeighbors(n_neighbors=200).fit(vectors).kneighbors(vectors, return_distance=False)
    share = (cells["batch"].to_numpy()[near] == "one").mean(axis=1)
    mixed = np.mean(entropy(np.stack([share, 1 - share])) / np.log(2))
    within = []
    for label in ("a", "b", "c"):
        mine = (cells["label"] == label).to_numpy()
        within.append(np.mean(1 - np.abs(silhouette_samples(vectors[mine].astype(float), cells["batch"][mine]))))
    expected = {"entropy_per_cell": mixed, "batch_silhouette": np.mean(within)}
    # The package's neighbours are approximate.
    assert values("integration", vectors, cells) == pytest.approx(expected, abs=1e-4)
    found = values("integration", vectors, cells)
    assert found["batch_silhouette"] == pytest.approx(np.mean(within), abs=1e-6)
    assert values("cross-species", vectors, cells) == pytest.approx(found, abs=1e-6)


def test_labels_are_predicted_in_five_folds_by_three_classifiers(embedded):
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    vectors, cells = embedded
    found = values("labels", vectors, cells)
    folds = StratifiedKFold(5, shuffle=True, random_state=42)
    model = make_pipeline(StandardScaler(with_mean=False), LogisticRegression())
    expected = cross_val_score(model, vectors, cells["label"], cv=folds).mean()
    assert found["mean_fold_accuracy", "lr"] == pytest.approx(expected, abs=1e-6)
    each = [found["mean_fold_accuracy", name] for name in ("lr", "knn", "rf")]
    assert found["mean_fold_accuracy", "MEAN(knn,lr,rf)"] == pytest.approx(np.mean(each), abs=1e-6)


@pytest.mark.slow
def test_labels_are_carried_from_one_species_to_the_other(embedded):
    vectors, cells = embedded
    found = values("cross-species-labels", vectors, cells)
    for pair in ("homo_sapiens, mus_musculus", "mus_musculus, homo_sapiens"):
        assert 0.5 < found["accuracy", f"{pair}, lr"] < 1


def test_time_is_drawn_with_a_seed_and_leaves_the_generator_alone(embedded):
    vectors, cells = embedded
    np.random.seed(1)  # noqa: NPY002
    found, after = values("sequential", vectors, cells), np.random.random()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert np.random.random() == after  # noqa: NPY002
    assert values("sequential", vectors, cells) == found
    times = cells["time"].to_numpy(float)
    near = NearestNeighbors(n_neighbors=16).fit(vectors).kneighbors(vectors, return_distance=False)[:, 1:]
    apart = np.abs(times[:, None] - times[near]).mean()
    chance = np.abs(times[:, None] - times).sum() / (240 * 239)
    assert found["sequential_alignment"] == pytest.approx(1 - apart / chance, abs=0.02)  # chance is drawn there


@pytest.mark.parametrize(
    ("task", "column", "content", "said"),
    [
        ("integration", "batch", "one", "integration needs two batches"),
        ("cross-species", "context", "human", "two at least; found human; known are human"),
        ("cross-species", "context", None, "found a, b, c; known are"),
        ("sequential", "time", "late", "sequential: Labels must be numeric"),
    ],
)
def test_cells_that_a_task_cannot_judge_are_refused(embedded, task, column, content, said):
    vectors, cells = embedded
    with pytest.raises(UserError, match=said):
        cz.measure(task, vectors, cells.assign(**{column: cells["label"] if content is None else content}))


def test_the_baseline_is_the_packages_and_takes_fewer_components_of_few_cells():
    pytest.importorskip("czbenchmarks", reason=NEEDS)
    from czbenchmarks.tasks import EmbeddingTask

    counts = np.random.default_rng(0).poisson(np.linspace(0.2, 6, 80), (60, 80))
    found = cz.baselines(sp.csr_matrix(counts))
    np.testing.assert_allclose(
        found["PCA"], EmbeddingTask().compute_baseline(counts.astype(np.float32)), rtol=0, atol=1e-6
    )
    assert (found["counts"] == counts).all()
    assert cz.baselines(sp.csr_matrix(counts[:12]))["PCA"].shape == (12, 11)
