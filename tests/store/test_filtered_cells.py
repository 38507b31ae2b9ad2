"""Quality filters on the way into a store: who is dropped, that all are counted, that chunks change nothing."""

import numpy as np
import pytest
from tiny_screens import CONTROL, screen, write_screen, write_store

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import sha256_file
from vcc_fm.recipe.data import KnockDownConfig, QualityConfig

GENES = ["A", "B", "C", *(f"g{number}" for number in range(20))]


def a_screen():
    """400 cells: A is knocked down, B is not, two thirds of C's are; the controls of the two contexts differ."""
    rng = np.random.default_rng(0)
    labels = np.array([CONTROL, "A", "B", "C", "A+C"])[np.arange(400) % 5]
    context = np.array(["K", "H"])[np.arange(400) // 5 % 2]
    mean = np.full((400, len(GENES)), 10.0)
    mean[context == "H", 0] = 40.0
    for gene, weak in (
        ("A", labels == "A"),
        ("C", (labels == "C") & (np.arange(400) % 3 > 0)),
        ("A", labels == "A+C"),
    ):
        mean[weak, GENES.index(gene)] *= 0.05
    mean[(labels == "A+C") & (context == "K"), GENES.index("C")] *= 0.05
    counts = rng.poisson(mean)
    counts[::50] //= 4  # shallow: of the controls and of none else
    return screen(counts, context, "1", labels, GENES), counts, labels, context


def write(folder, one, name, values=10**7, **quality):
    folder.mkdir(exist_ok=True)
    config = write_screen(folder, name, one).model_copy(update={"quality": QualityConfig(**quality)})
    return write_store(folder / f"store-{name}-{values}", [config], chunk_values=values)


def test_cells_are_dropped_by_name_and_none_is_lost(tmp_path):
    one, counts, labels, context = a_screen()
    rule = KnockDownConfig(minimum_cells=20, perturbation=0.6)
    store = write(tmp_path, one, "s", minimum_depth=100, minimum_genes=5, knock_down=rule)
    source = store.meta["sources"][0]
    assert sum(source["dropped"].values()) == 400 - len(store)
    assert source["dropped"].pop("depth below 100 UMI") == 8
    assert {reason.partition(":")[0] for reason in source["dropped"]} == {"knock-down"}
    # B was not knocked down anywhere, A+C in K alone; of C the cells that were not are gone.
    assert store.perturbations == ["A", "A+C", "C", CONTROL]
    groups = {(c, p): n for (c, p), n in store.group_cells.items() if p != CONTROL}
    assert set(groups) == {("K", "A"), ("H", "A"), ("K", "A+C"), ("K", "C"), ("H", "C")}
    kept = one.obs.index.get_indexer(list(store.barcodes))
    np.testing.assert_array_equal(store.dense(np.arange(len(store))), counts[kept])
    deep = counts.sum(1) >= 100
    share = counts / counts.sum(1, keepdims=True)
    for c in ("K", "H"):
        control = share[deep & (labels == CONTROL) & (context == c), GENES.index("C")].mean()
        mine = np.flatnonzero((labels == "C") & (context == c))
        expected = mine[share[mine, GENES.index("C")] < 0.5 * control]
        assert set(expected) == set(kept) & set(mine)
        assert groups[c, "C"] == len(expected) < len(mine)
    report = source["knock_down"]
    rows = {
        key: row
        for *key_, row in zip(report["context"], report["perturbation"], range(8), strict=True)
        for key in [tuple(key_)]
    }
    assert len(rows) == 8
    for key, number in groups.items():
        assert report["after"][rows[key]] == number
    assert report["ratio"][rows["K", "B"]] == pytest.approx(1.0, abs=0.15)
    assert report["after"][rows["K", "B"]] == 0
    assert report["before"][rows["K", "B"]] == 40


def test_chunks_change_no_byte(tmp_path):
    one = a_screen()[0]
    rule = KnockDownConfig(minimum_cells=5, perturbation=0.6)
    quality = {"minimum_depth": 100, "minimum_genes": 23, "knock_down": rule}
    stores = [write(tmp_path, one, "s", values, **quality) for values in (10**7, 500, 23)]
    assert len(stores[0].meta["sources"][0]["dropped"]) > 3
    files = [{path.name: sha256_file(path) for path in store.folder.iterdir()} for store in stores]
    assert files[1:] == files[:1] * 2


def test_without_filters_everything_stays_and_too_hard_filters_say_so(tmp_path):
    one = a_screen()[0]
    store = write(tmp_path, one, "s")
    assert len(store) == 400
    assert store.meta["sources"][0]["knock_down"] is None
    with pytest.raises(UserError, match=r"no cell is left after the filters \(depth below 1000000 UMI: 400\)"):
        write(tmp_path, one, "hard", minimum_depth=10**6)


def test_controls_that_a_filter_took_away_are_missed(tmp_path):
    _, counts, labels, context = a_screen()
    counts[(labels == CONTROL) & (context == "H")] //= 6
    with pytest.raises(
        UserError,
        match=r"after the filters \(depth below 100 UMI.*: no control cells .* in context H.*loosen them",
    ):
        write(tmp_path, screen(counts, context, "1", labels, GENES), "s", minimum_depth=100)
