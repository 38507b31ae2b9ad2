"""The cell store: what is written from the sources is what is read, and nothing else."""

import itertools
import json
import pickle
from unittest import mock

import anndata
import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny_screens import CONTROL, Screen, screen, store_of, write_screen, write_store

from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.data import SourceConfig
from vcc_fm.sources.genes import gene_axis
from vcc_fm.store import merge
from vcc_fm.store.arrow import DATA_FILE
from vcc_fm.store.cells import CellStore
from vcc_fm.store.verify import verify

FOLDERS = itertools.count()
# Each example has a folder of its own; how fast they are drawn says how busy the machine is.
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@st.composite
def screens(draw: st.DrawFn, number: int) -> Screen:
    """A screen of 2 to 14 cells; zeros are common, so that cells and genes without a count are too."""
    cells = draw(st.integers(2, 14))
    genes = draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6, unique=True))
    # The first source has gene a, so that one count on every axis is sure.
    genes = ["a", *(gene for gene in genes if gene != "a")] if number == 0 or draw(st.booleans()) else genes
    values = st.one_of(st.just(0), st.just(0), st.integers(0, 2**24 - 1))
    counts = draw(hnp.arrays(np.int64, (cells, len(genes)), elements=values))
    counts[0, 0] = max(counts[0, 0], 1)
    control = f"ctrl{number}"
    pick = [st.lists(st.sampled_from(labels), min_size=cells, max_size=cells) for labels in (["K", "H"], ["1", "2"])]
    rest = draw(st.lists(st.sampled_from([control, "A", "B", "A+B"]), min_size=cells - 2, max_size=cells - 2))
    return screen(counts, draw(pick[0]), draw(pick[1]), [control, "A", *rest], genes, control=control)


@settings(max_examples=10, deadline=None, suppress_health_check=QUIET)
@given(
    parts=st.tuples(screens(0), screens(1)),
    rule=st.sampled_from(["union", "intersection", "file"]),
    rows_per_batch=st.sampled_from([1, 3, 8192]),
    shard_bytes=st.sampled_from([1, 60, 10**6]),
    seed=st.integers(0, 5),
)
def test_what_is_read_is_what_the_sources_hold(tmp_path, parts, rule, rows_per_batch, shard_bytes, seed):
    folder = tmp_path / str(next(FOLDERS))
    folder.mkdir()
    (folder / "axis.txt").write_text("z\nf\na\nc\n")
    if rule == "intersection" and not set(parts[0].genes) & set(parts[1].genes):
        rule = "union"
    axis_rule = str(folder / "axis.txt") if rule == "file" else rule
    with mock.patch.multiple(merge, BATCH_ROWS=rows_per_batch, SHARD_BYTES=shard_bytes):
        store = store_of(folder, *parts, genes=axis_rule, seed=seed, chunk_values=20)

    axis = gene_axis([np.array(part.genes) for part in parts], axis_rule).tolist()
    assert store.genes == axis
    tables = []
    for number, part in enumerate(parts):
        counts = pd.DataFrame(part.counts, columns=part.genes).reindex(columns=axis, fill_value=0)
        obs = part.obs.replace({"perturbation": {part.control: "ctrl0"}}).reset_index(names="barcode")
        obs["barcode"] = f"s{number}:" + obs["barcode"]
        tables.append(pd.concat([obs.assign(source=number), counts.set_axis(range(len(axis)), axis=1)], axis=1))
    expected = pd.concat(tables).set_index("barcode").loc[store.barcodes]
    assert len(store) == len(expected) == sum(len(part.obs) for part in parts)
    counts = expected[list(range(len(axis)))].to_numpy()

    everything = np.arange(len(store))
    np.testing.assert_array_equal(store.dense(everything), counts)
    assert store.dense(everything).dtype == np.float32
    assert (store.sparse(everything) != counts).sum() == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vcc_fm.store.cells.CHUNK", 3)
        np.testing.assert_array_equal(store.sums(everything), counts.sum(axis=0))
    np.testing.assert_array_equal(store.depth, counts.sum(axis=1))
    some = np.random.default_rng(seed).integers(0, len(store), 7)
    np.testing.assert_array_equal(store.dense(some), counts[some])
    np.testing.assert_array_equal(store.sparse(some).toarray(), counts[some])
    assert store.sparse(some).has_sorted_indices

    np.testing.assert_array_equal(np.array(store.contexts)[store.context], expected["context"])
    np.testing.assert_array_equal(np.array(store.perturbations)[store.perturbation], expected["perturbation"])
    assert store.control == "ctrl0"
    assert "ctrl1" not in store.perturbations
    # A batch is one lane of one file in one context, whatever the names.
    identity = expected.groupby(["source", "batch", "context"]).ngroup().to_numpy()
    assert len({*zip(store.batch, identity, strict=True)}) == len(set(identity)) == len(set(store.batch))

    codes = np.column_stack([store.context, store.batch, store.perturbation])
    assert (np.lexsort(codes.T[::-1]) == everything).all()
    table = np.column_stack([store.groups.start, store.groups.end])
    np.testing.assert_array_equal(np.concatenate([np.arange(a, b) for a, b in table]), everything)
    for i, (a, b) in enumerate(table):
        assert (codes[a:b] == [store.groups.context[i], store.groups.batch[i], store.groups.perturbation[i]]).all()
    assert len(np.unique(codes, axis=0)) == len(table)
    sizes = expected.groupby(["context", "perturbation"]).size()
    assert store.group_cells == {key: int(n) for key, n in sizes.items()}
    for (context, perturbation), n in sizes.items():
        rows = store.rows(context, perturbation)
        assert len(rows) == n
        assert (expected.iloc[rows][["context", "perturbation"]] == [context, perturbation]).all(axis=None)

    measured = np.array([np.isin(axis, part.genes) for part in parts])
    np.testing.assert_array_equal(store.measured[store.batch], measured[expected["source"]])


def plain(cells: int = 40, contexts: tuple[str, ...] = ("K", "H")) -> Screen:
    """A screen of A, B and control in two lanes."""
    row = np.arange(cells)
    counts = np.random.default_rng(1).poisson(1.5, (cells, 5))
    labels = np.array([CONTROL, "A", CONTROL, "B"])[row // 2 % 4]
    return screen(counts, np.array(contexts)[row % len(contexts)], np.array(["1", "2"])[row // 8 % 2], labels)


def test_datasets_opens_a_store_and_gives_the_same_rows(tmp_path):
    store = store_of(tmp_path, plain(), minimum_cells=2)
    opened = datasets.load_from_disk(str(store.folder))
    assert len(opened) == len(store)
    dense = store.dense(np.arange(len(store)))
    for row in (0, 7, len(store) - 1):
        entry = opened[row]
        counts = np.zeros(len(store.genes))
        counts[entry["genes"]] = entry["counts"]
        np.testing.assert_array_equal(counts, dense[row])
        assert entry["depth"] == store.depth[row]
        assert entry["barcode"] == store.barcodes[row]
        labels = [entry[name] for name in ("context", "batch", "perturbation")]
        assert labels == [store.context[row], store.batch[row], store.perturbation[row]]


def test_a_lane_of_two_contexts_is_a_batch_in_each(tmp_path):
    store = store_of(tmp_path, plain())
    assert store.batches == ["H:1", "H:2", "K:1", "K:2"]
    one_context = store_of(tmp_path / "one", plain(contexts=("K",)))
    assert one_context.batches == ["1", "2"]


def test_the_seed_shuffles_cells_inside_their_group_only(tmp_path):
    config = write_screen(tmp_path, "s0", plain(200))
    first, other = (write_store(tmp_path / f"store{seed}", [config], seed) for seed in (0, 1))
    for name in ("context", "batch", "perturbation", "start", "end"):
        np.testing.assert_array_equal(getattr(first.groups, name), getattr(other.groups, name))
    start, end = first.groups.start, first.groups.end
    for a, b in zip(start, end, strict=True):
        assert set(first.barcodes[a:b]) == set(other.barcodes[a:b])
    assert (first.barcodes != other.barcodes).mean() > 0.5
    numbers = [int(barcode.removeprefix("cell")) for barcode in first.barcodes[: end[0]]]
    assert numbers != sorted(numbers)


def test_the_same_input_gives_the_same_bytes_whatever_the_chunk(tmp_path):
    configs = [write_screen(tmp_path, name, plain(30)) for name in ("one", "two")]
    stores = [
        write_store(tmp_path / f"{i}", configs, chunk_values=chunk) for i, chunk in enumerate((20, 20, 1, 10**6))
    ]
    files = [{path.name: path.read_bytes() for path in store.folder.iterdir()} for store in stores]
    assert set(files[0]) == {DATA_FILE, "store.json", "state.json", "dataset_info.json"}
    assert files[1:] == files[:1] * 3


def test_a_damaged_store_is_refused(tmp_path):
    folder = store_of(tmp_path, plain()).folder
    data = (folder / DATA_FILE).read_bytes()
    (folder / DATA_FILE).write_bytes(data[:-8])
    with pytest.raises(
        UserError, match=rf"{DATA_FILE}: {len(data) - 8} bytes, but store.json says {len(data)}; it was"
    ):
        CellStore(folder)
    (folder / DATA_FILE).unlink()
    with pytest.raises(UserError, match=rf"{DATA_FILE}: missing; remove .*store and run the stage"):
        CellStore(folder)
    (folder / DATA_FILE).write_bytes(data)
    text = (folder / "store.json").read_text()
    (folder / "store.json").write_text(json.dumps(json.loads(text) | {"schema": 0}))
    with pytest.raises(UserError, match="store schema 0, this program reads 4; prepare it again"):
        CellStore(folder)
    (folder / "store.json").write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match=r"store.json is not readable as JSON: .* run the stage again"):
        CellStore(folder)
    (folder / "store.json").unlink()
    with pytest.raises(UserError, match=r"store.json: missing; the stage that writes it has not been run"):
        CellStore(folder)
    (folder / "store.json").write_text(text)
    assert len(CellStore(folder)) == 40


def test_few_cells_are_counted_over_the_sources_and_dropped(tmp_path):
    labels = [CONTROL, "A", "A", "B", "B"]
    first = screen(np.ones((5, 2)), "K", "1", labels)
    second = screen(np.ones((3, 2)), "K", "1", [CONTROL, "A", "C"])
    store = store_of(tmp_path, first, second, minimum_cells=3)
    assert store.group_cells == {("K", "A"): 3, ("K", CONTROL): 2}
    assert store.perturbations == ["A", CONTROL]
    reason = "perturbation with fewer than 3 cells"
    assert [source["dropped"] for source in store.meta["sources"]] == [{reason: 2}, {reason: 1}]


def test_sources_may_join_combinations_each_in_its_way(tmp_path):
    first = screen(np.ones((2, 2)), "K", "1", [CONTROL, "A+B"])
    second = screen(np.ones((3, 2)), "K", "1", ["no_target", "A_B", "C"], control="no_target", separator="_")
    store = store_of(tmp_path, first, second)
    assert store.group_cells == {("K", "A+B"): 2, ("K", "C"): 1, ("K", CONTROL): 2}
    assert store.meta["relabelled_controls"] == ["no_target"]


def test_labels_that_mean_another_thing_elsewhere_are_refused(tmp_path):
    first = screen(np.ones((2, 2)), "K", "1", [CONTROL, "A"])
    second = screen(np.ones((3, 2)), "K", "1", ["NT", "A", CONTROL], control="NT")
    with pytest.raises(UserError, match=r"perturbation 'control' is or holds 'control', the control of source 's0'"):
        store_of(tmp_path / "control", first, second)
    third = screen(np.ones((2, 2)), "K", "1", [CONTROL, "A+B"], separator="/")
    with pytest.raises(UserError, match=r"source 's1': perturbation 'A\+B' holds '\+', which joins target genes in"):
        store_of(tmp_path / "separator", first, third)


def test_a_store_without_a_count_is_refused(tmp_path):
    with pytest.raises(UserError, match="no gene of any source is on the gene axis with a count above zero"):
        store_of(tmp_path, screen(np.zeros((2, 2)), "K", "1", [CONTROL, "A"]))


def test_batches_of_one_name_stay_apart(tmp_path):
    """Lane 1 holds two contexts, and a lane of a third is called as a part of it will be."""
    lanes = ["1", "1", "K:1", "1", "1", "K:1"]
    store = store_of(tmp_path, screen(np.eye(6) + 1, ["K", "H", "J"] * 2, lanes, [CONTROL] * 3 + ["A"] * 3))
    assert store.batches == ["H:1", "K:1", "K:1 (2)"]
    for batch in range(3):
        assert len(set(store.context[store.batch == batch])) == 1
    assert verify(store.folder)["rows"] == 6


def test_a_source_has_no_colon_in_its_name(tmp_path):
    config = write_screen(tmp_path, "s0", plain())
    with pytest.raises(ValueError, match="name"):
        SourceConfig(**config.model_dump() | {"name": "a:b"})


def test_a_cell_too_deep_for_the_store_is_refused(tmp_path):
    config = write_screen(tmp_path, "s0", screen(np.ones((4, 4)), "K", "1", [CONTROL, "A", "A", CONTROL]))
    data = anndata.read_h5ad(config.path)
    data.X = data.X.astype(np.int64)
    data.X[2] = 2**29
    data.write_h5ad(config.path)
    with pytest.raises(UserError, match=r"the counts of cell 'cell2' add up to 2,147,483,648; no cell is so deep"):
        write_store(tmp_path / "store", [config])


def test_a_store_travels_to_another_process(tmp_path):
    store = store_of(tmp_path, plain())
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(again.dense(np.arange(40)), store.dense(np.arange(40)))


def test_labels_have_names_in_the_dataset(tmp_path):
    store = store_of(tmp_path, plain())
    read = datasets.load_from_disk(str(store.folder))
    for label, names in (("context", store.contexts), ("batch", store.batches), ("perturbation", store.perturbations)):
        assert read.features[label].names == names
        assert read.features[label].int2str(read[label][:]) == [names[code] for code in getattr(store, label)]
