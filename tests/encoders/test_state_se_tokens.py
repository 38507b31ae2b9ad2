"""The tokens of SE, against a slow plain reading of what it does."""

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from vcc_fm.encoders.cells.state_se_tokens import GeneMap, Tokenizer, Tokens, match_genes
from vcc_fm.ground.errors import UserError

VOCABULARY = [f"GENE{i}" for i in range(60)]


def columns_of(size: int, unknown: int = 0, seed: int = 0) -> list[str]:
    """Names of ``size`` known genes and ``unknown`` others, mixed up."""
    rng = np.random.default_rng(seed)
    names = [*rng.permutation(VOCABULARY)[:size].tolist(), *(f"OTHER{i}" for i in range(unknown))]
    return [names[i] for i in rng.permutation(len(names))]


def gene_map(size: int, unknown: int = 0, seed: int = 0) -> GeneMap:
    return match_genes(columns_of(size, unknown, seed), VOCABULARY, "m.h5ad")


def counts(cells: int, genes: int, mean: float = 0.8, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).poisson(mean, (cells, genes)).astype(np.int32)


def rows(matrix: Any) -> sp.csr_matrix:
    return sp.csr_matrix(matrix)


def tokens_of(tokens: Tokens, cell: int) -> list[tuple[int, float, int]]:
    """(gene id, value, multiplicity) of a cell."""
    used = slice(tokens.length[cell])
    assert not tokens.multiplicity[cell, tokens.length[cell] :].any()
    return list(
        zip(
            tokens.ids[cell, used].tolist(),
            tokens.values[cell, used].tolist(),
            tokens.multiplicity[cell, used].tolist(),
            strict=True,
        )
    )


def same(one: Tokens, other: Tokens) -> bool:
    return all(
        getattr(one, name).tobytes() == getattr(other, name).tobytes()
        for name in ("ids", "values", "multiplicity", "length", "cls_value", "empty")
    )


def taken(tokens: Tokens, order: np.ndarray) -> Tokens:
    return Tokens(*(getattr(tokens, name)[order] for name in Tokens.__dataclass_fields__))


# ------------------------------------------------------------------------------------------------------ plain reading


def log_values(row: list[float], mode: str, target_sum: float | None) -> list[float]:
    if mode == "exact":
        scale = 1.0 if target_sum is None else target_sum / max(math.fsum(row), 1e-9)
        return [math.log1p(x * scale) for x in row]
    guess = max(row) > 35 or math.fsum(math.expm1(x) for x in row) > 5e6
    return [math.log1p(x) for x in row] if guess else list(row)


def check_cell(
    found: list[tuple[int, float, int]],
    cls_value: float,
    row: list[float],
    ids: list[int],
    most: int,
    mode: str,
    target_sum: float | None,
) -> None:
    """Hold the tokens of one cell against a dictionary's worth of arithmetic; no column name repeats."""
    logs = log_values(row, mode, target_sum)
    known = {gene: (x, log) for gene, x, log in zip(ids, row, logs, strict=True) if gene >= 0}
    total = math.fsum(log for _, log in known.values())
    share = {gene: 100 * log / total for gene, (_, log) in known.items()}
    expressed = sorted((gene for gene, (x, _) in known.items() if x > 0), key=lambda gene: (-known[gene][0], gene))
    silent = {gene for gene, (x, _) in known.items() if x == 0}

    genes = [gene for gene, _, _ in found]
    assert len(set(genes)) == len(genes)
    assert [value for _, value, _ in found] == pytest.approx([share[gene] for gene in genes], rel=1e-6)
    if len(expressed) > most:
        cut = known[expressed[most - 1]][0]
        certain = [gene for gene in expressed if known[gene][0] > cut]
        assert genes[: len(certain)] == certain
        assert all(known[gene][0] == cut for gene in genes[len(certain) :])
        assert genes[len(certain) :] == sorted(genes[len(certain) :])
        assert len(genes) == most
    else:
        assert genes[: len(expressed)] == expressed
        drawn = genes[len(expressed) :]
        assert set(drawn) <= silent
        assert drawn == sorted(drawn)
    times = sum(multiplicity for _, _, multiplicity in found)
    assert times == (most if silent or len(expressed) >= most else len(expressed))
    if len(known) >= most:
        assert all(multiplicity == 1 for _, _, multiplicity in found)
    assert all(multiplicity == 1 for _, _, multiplicity in found[: len(expressed)])
    fourth = [gene for gene in ids if gene >= 0][3] if mode == "compat" else None
    assert cls_value == pytest.approx(0.0 if fourth is None else share[fourth], rel=1e-6)


VALUES = st.one_of(st.just(0.0), st.integers(0, 3), st.integers(0, 60), st.sampled_from([16.0, 2.0**20]))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_cell_agrees_with_the_plain_reading(data: st.DataObject) -> None:
    mode = data.draw(st.sampled_from(["exact", "compat"]))
    target_sum = data.draw(st.sampled_from([None, 1.0, 1e4])) if mode == "exact" else None
    size, unknown = data.draw(st.integers(4, 12)), data.draw(st.integers(0, 3))
    genes = gene_map(size, unknown, data.draw(st.integers(0, 5)))
    pad = data.draw(st.integers(2, 20))
    value = VALUES if mode == "exact" else st.one_of(VALUES, st.floats(0.125, 8, width=32))
    matrix = np.array(
        data.draw(st.lists(st.lists(value, min_size=size + unknown, max_size=size + unknown), max_size=4))
    )
    matrix = matrix.reshape(-1, size + unknown).astype(data.draw(st.sampled_from([np.float32, np.float64])))
    tokens = Tokenizer(genes, pad, mode, target_sum).tokenize(rows(matrix))
    known = genes.ids >= 0
    np.testing.assert_array_equal(tokens.empty, ~(matrix[:, known] > 0).any(axis=1))
    for cell in np.flatnonzero(~tokens.empty):
        check_cell(
            tokens_of(tokens, cell),
            tokens.cls_value[cell],
            matrix[cell].tolist(),
            genes.ids.tolist(),
            pad - 1,
            mode,
            target_sum,
        )
    for cell in np.flatnonzero(tokens.empty):
        assert (tokens_of(tokens, cell), tokens.cls_value[cell]) == ([], 0)


def test_a_large_sparse_cell_agrees_with_the_plain_reading() -> None:
    """Many digits to sort by, many values at the cut: counts over a wide range, and distinct fractions."""
    vocabulary = [f"GENE{i}" for i in range(3000)]
    genes = match_genes([*np.random.default_rng(3).permutation(vocabulary), "OTHER"], vocabulary, "m.h5ad")
    rng = np.random.default_rng(4)
    wide = np.floor(np.exp(rng.normal(0, 3, (6, 3001)))).astype(np.int64)
    fine = rng.gamma(1.0, 1.0, (6, 3001)).astype(np.float32) * (rng.random((6, 3001)) < 0.6)
    for matrix, mode, target_sum in ((wide, "exact", 1e4), (wide, "compat", None), (fine, "compat", None)):
        for pad in (101, 2048, 2900):
            tokens = Tokenizer(genes, pad, mode, target_sum).tokenize(rows(matrix))
            for cell in range(6):
                row = matrix[cell].tolist()
                found = tokens_of(tokens, cell)
                check_cell(found, tokens.cls_value[cell], row, genes.ids.tolist(), pad - 1, mode, target_sum)


@pytest.mark.parametrize("size", [63, 64, 65, 127, 128, 129])
def test_panels_of_many_sizes_agree_with_the_plain_reading(size: int) -> None:
    vocabulary = [f"GENE{i}" for i in range(size)]
    genes = match_genes([*vocabulary[::-1], *(f"OTHER{i}" for i in range(70))], vocabulary, "m.h5ad")
    for mean in (0.05, 0.8, 9.0):
        matrix = counts(8, size + 70, mean)
        matrix[0, :size] = 1
        matrix[1, [0, size - 1]] = 3
        for pad in (20, size, size + 1, size + 2, 2 * size):
            tokens = Tokenizer(genes, pad).tokenize(rows(matrix))
            for cell in np.flatnonzero(~tokens.empty):
                row = matrix[cell].tolist()
                check_cell(tokens_of(tokens, cell), 0, row, genes.ids.tolist(), pad - 1, "exact", None)


# --------------------------------------------------------------------------------------------------------- invariance


@pytest.mark.parametrize("pad", [8, 30, 48, 80], ids=["cut", "silent", "nearly all", "padded"])
@pytest.mark.parametrize("target_sum", [None, 1e4])
def test_tokens_do_not_depend_on_batch_row_order_or_column_order(pad: int, target_sum: float | None) -> None:
    genes, matrix = gene_map(50, 5), counts(40, 55)
    tokenizer = Tokenizer(genes, pad, "exact", target_sum)
    whole = tokenizer.tokenize(rows(matrix))

    alone = [tokenizer.tokenize(rows(matrix[i : i + 1])) for i in range(40)]
    assert all(same(one, taken(whole, np.array([i]))) for i, one in enumerate(alone))

    order = np.random.default_rng(5).permutation(40)
    assert same(tokenizer.tokenize(rows(matrix[order])), taken(whole, order))

    columns = np.random.default_rng(6).permutation(55)
    turned = match_genes([genes.columns[i] for i in columns], VOCABULARY, "m.h5ad")
    assert same(Tokenizer(turned, pad, "exact", target_sum).tokenize(rows(matrix[:, columns])), whole)

    unsorted = rows(matrix)[:, ::-1]
    unsorted.has_sorted_indices = False
    backwards = match_genes(genes.columns[::-1], VOCABULARY, "m.h5ad")
    assert same(Tokenizer(backwards, pad, "exact", target_sum).tokenize(unsorted), whole)


@pytest.mark.parametrize("dtype", [np.uint16, np.int64, np.float32, np.float64])
def test_tokens_do_not_depend_on_number_type_or_stored_zeros(dtype: type) -> None:
    matrix = counts(20, 50)
    signed = np.where(matrix == 0, -0.0, matrix).ravel().astype(dtype)
    stored = sp.csr_matrix((signed, np.tile(np.arange(50), 20), np.arange(0, 1001, 50)))
    for mode in ("exact", "compat"):
        tokenizer = Tokenizer(gene_map(50), 20, mode)
        assert same(tokenizer.tokenize(stored), tokenizer.tokenize(rows(matrix)))


def test_threads_may_share_a_tokenizer() -> None:
    tokenizer, matrix = Tokenizer(gene_map(50), 45), rows(counts(4000, 50))
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(tokenizer.tokenize, [matrix[i : i + 500] for i in range(0, 4000, 500)]))
    whole = tokenizer.tokenize(matrix)
    assert all(same(part, taken(whole, np.arange(500 * i, 500 * i + 500))) for i, part in enumerate(parts))


def test_compat_depends_on_column_order_in_the_cls_value_alone() -> None:
    genes, matrix = gene_map(50), counts(40, 50)
    order = np.arange(50)[::-1]
    turned = match_genes([genes.columns[i] for i in order], VOCABULARY, "m.h5ad")
    one = Tokenizer(genes, 20, "compat").tokenize(rows(matrix))
    other = Tokenizer(turned, 20, "compat").tokenize(rows(matrix[:, order]))
    assert one.ids.tobytes() == other.ids.tobytes()
    assert one.values.tobytes() == other.values.tobytes()
    assert (one.cls_value != other.cls_value).any()


def test_another_seed_or_another_cell_gives_other_draws() -> None:
    matrix = counts(30, 50)
    one, other = (Tokenizer(gene_map(50), 45, seed=seed).tokenize(rows(matrix)) for seed in (0, 1))
    assert (one.ids != other.ids).any(axis=1).all()
    # Two cells that differ in one count of one gene, and express the same genes.
    pair = np.repeat(matrix[:1], 2, axis=0)
    pair[1, np.flatnonzero(pair[1])[0]] += 1
    tokens = Tokenizer(gene_map(50), 45).tokenize(rows(pair))
    assert set(tokens.ids[0]) != set(tokens.ids[1])


# ------------------------------------------------------------------------------------------------------- distribution


def distinct_cells(cells: int, extra: np.ndarray) -> np.ndarray:
    """Cells [cells, 60] that differ in their first two genes and are alike in the rest, ``extra`` [58]."""
    pair = np.stack([np.arange(cells) % 200 + 50, np.arange(cells) // 200 + 50], axis=1)
    return np.hstack([pair, np.tile(extra, (cells, 1))]).astype(np.int32)


def uniform(tally: np.ndarray, draws_per_cell: int, cells: int) -> bool:
    """Whether each of k genes was drawn equally often, draws without replacement: chi-square at 1 in 10,000."""
    k = len(tally)
    expected = cells * draws_per_cell / k
    # Drawing without replacement makes a gene's variance smaller than a Poisson's by (k - draws) / (k - 1).
    statistic = ((tally - expected) ** 2).sum() / expected * (k - 1) / (k - draws_per_cell)
    return chi2.ppf(1e-4, k - 1) < statistic < chi2.ppf(1 - 1e-4, k - 1)


@pytest.mark.parametrize("silent", [True, False], ids=["silent genes", "ties at the cut"])
@pytest.mark.parametrize("pad", [5, 13, 33, 58])
def test_draws_without_replacement_are_uniform(pad: int, silent: bool) -> None:
    matrix = distinct_cells(4000, np.zeros(58) if silent else np.ones(58))
    tokens = Tokenizer(match_genes(VOCABULARY, VOCABULARY, "m.h5ad"), pad).tokenize(rows(matrix))
    assert (np.sort(tokens.ids[:, :2], axis=1) == [0, 1]).all()
    drawn = tokens.ids[:, 2:]
    assert uniform(np.bincount(drawn.ravel(), minlength=60)[2:], pad - 3, 4000)
    # Neighbours in the order of genes are chosen together as often as chance says.
    together = sum(len(set(row) & {g + 1 for g in row}) for row in drawn[:1000].tolist()) / 1000
    wanted = pad - 3
    assert together == pytest.approx(57 * wanted * (wanted - 1) / (58 * 57), abs=0.15)


def mix(z: int) -> int:
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


@pytest.mark.parametrize(
    ("size", "pad"),
    [(50, 5), (50, 40), (50, 80), (500, 150), (500, 400), (500, 800)],
    ids=[f"{what}, {size}" for size in ("few", "many") for what in ("ties at the cut", "silent genes", "repeated")],
)
def test_draws_are_those_of_the_stated_stream(size: int, pad: int) -> None:
    """Stores of embeddings made at different times must agree: the draws may not change unnoticed."""
    golden, seed, most = 0x9E3779B97F4A7C15, 2**40 + 3, pad - 1
    matrix = counts(20, size)
    vocabulary = [f"GENE{i}" for i in range(size)]
    genes = match_genes(np.random.default_rng(13).permutation(vocabulary).tolist(), vocabulary, "m.h5ad")
    tokens = Tokenizer(genes, pad, seed=seed).tokenize(rows(matrix))
    for cell in range(20):
        row = dict(zip(genes.ids.tolist(), matrix[cell].tolist(), strict=True))
        words = {gene: int(np.float32(x).view(np.uint32)) for gene, x in row.items() if x}
        key = mix(
            sum(mix(((gene << 32) + word + golden) % 2**64) for gene, word in words.items()) % 2**64
            ^ mix(seed + golden)
        )
        numbers = [mix((key + golden * (i + 1)) % 2**64) >> 32 for i in range(2 * size)]
        expressed, silent = sorted(words, key=lambda gene: (-words[gene], gene)), sorted(set(row) - set(words))
        pool, wanted, chosen = silent, most - len(words), expressed
        if len(words) > most:
            pool = [gene for gene in expressed if words[gene] == words[expressed[most - 1]]]
            chosen = [gene for gene in expressed if words[gene] > words[pool[0]]]
            wanted = most - len(chosen)
        drawn: Counter[int] = Counter()
        if len(row) < most:
            drawn.update(pool[number * len(pool) >> 32] for number in numbers[:wanted])
        else:
            for i, gene in enumerate(pool):
                if numbers[i] * (len(pool) - i) < wanted - drawn.total() << 32:
                    drawn[gene] = 1
        expected = [(gene, 1) for gene in chosen] + sorted(drawn.items())
        assert [(gene, times) for gene, _, times in tokens_of(tokens, cell)] == expected


def test_draws_with_replacement_are_multinomial() -> None:
    matrix = distinct_cells(4000, np.zeros(58))[:, :22]
    tokens = Tokenizer(match_genes(VOCABULARY[:22], VOCABULARY, "m.h5ad"), 63).tokenize(rows(matrix))
    times = np.zeros((4000, 22))
    for cell in range(4000):
        times[cell, tokens.ids[cell, : tokens.length[cell]]] = tokens.multiplicity[cell, : tokens.length[cell]]
    assert (times[:, :2] == 1).all()
    assert (times[:, 2:].sum(axis=1) == 60).all()
    tally = times[:, 2:].sum(axis=0)
    assert chi2.ppf(1e-4, 19) < ((tally - 12000) ** 2 / 12000).sum() < chi2.ppf(1 - 1e-4, 19)
    # 60 draws over 20 genes: mean 3, variance 60 * 1/20 * 19/20.
    assert times[:, 2:].var() == pytest.approx(60 / 20 * 19 / 20, rel=0.03)


# --------------------------------------------------------------------------------------------------------- edge cases


@pytest.mark.parametrize(
    ("outside", "raw"),
    [([12.0], False), ([15.0], False), ([15.0, 15.0], True), ([16.0], True), ([36.0], True), ([15.4] * 2, True)],
)
def test_compat_guesses_from_the_whole_row_of_each_cell(outside: list[float], raw: bool) -> None:
    row = [2.0, 1.0, 0.0, 1.0, *outside, *[0.0] * (2 - len(outside))]
    matrix = np.array([row, [1.0, 1.0, 0, 0, 0, 0], [40.0, 3.0, 0, 0, 0, 0]], np.float32)
    genes = match_genes(["GENE5", "GENE2", "GENE3", "GENE9", "OTHER1", "OTHER2"], VOCABULARY, "m.h5ad")
    tokens = Tokenizer(genes, 3, "compat").tokenize(rows(matrix))
    two = math.log1p(2) / (math.log1p(2) + 2 * math.log1p(1)) if raw else 0.5
    assert tokens.values[0, 0] == pytest.approx(100 * two, rel=1e-6)
    assert tokens.values[1, 0] == 50
    assert tokens.values[2, 0] == pytest.approx(100 * math.log(41) / (math.log(41) + math.log(4)), rel=1e-6)


def test_depth_is_taken_over_all_columns() -> None:
    matrix = np.array([[3, 1, 0, 0, 96]], np.int32)
    genes = match_genes([*VOCABULARY[:4], "OTHER"], VOCABULARY, "m.h5ad")
    tokens = Tokenizer(genes, 3, target_sum=1000.0).tokenize(rows(matrix))
    large, small = math.log1p(30), math.log1p(10)
    np.testing.assert_allclose(tokens.values[0], [100 * large / (large + small), 100 * small / (large + small)], 1e-6)


def test_cells_without_known_genes_have_no_tokens_and_leave_the_others_alone() -> None:
    matrix = counts(5, 55)
    genes = gene_map(50, 5)
    matrix[1], matrix[3, genes.ids >= 0] = 0, 0
    matrix[3, genes.ids < 0] = 7
    for mode in ("exact", "compat"):
        tokenizer = Tokenizer(genes, 20, mode)
        tokens = tokenizer.tokenize(rows(matrix))
        assert tokens.empty.tolist() == [False, True, False, True, False]
        assert tokens.length.tolist() == [19, 0, 19, 0, 19]
        kept = np.array([0, 2, 4])
        assert same(taken(tokens, kept), tokenizer.tokenize(rows(matrix[kept])))
    assert tokenizer.tokenize(rows(matrix[:0])).ids.shape == (0, 19)


def test_a_short_cell_without_silent_genes_has_a_shorter_sequence() -> None:
    tokens = Tokenizer(gene_map(6), 20).tokenize(rows([[1, 2, 3, 4, 5, 6]]))
    assert tokens.length.tolist() == [6]
    assert tokens.multiplicity[0, :6].tolist() == [1] * 6


def test_compat_keeps_repeated_names_as_tokens_of_their_own() -> None:
    genes = match_genes(["GENE5", "GENE2", "GENE5", "GENE9"], VOCABULARY, "m.h5ad")
    tokens = Tokenizer(genes, 5, "compat").tokenize(rows([[3.0, 1.0, 0.0, 2.0]]))
    found = [(gene, round(value, 3)) for gene, value, _ in tokens_of(tokens, 0)]
    assert found == [(5, 50), (9, 33.333), (2, 16.667), (5, 0)]


def test_genes_are_matched_by_exact_name() -> None:
    genes = match_genes(["GENE7", "gene1", "GENE2", "GENE7"], VOCABULARY, "m.h5ad")
    assert genes.ids.tolist() == [7, -1, 2, 7]
    assert (genes.matched, genes.share, genes.present.tolist()) == (3, 0.75, [2, 7])


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            ["ENSG00000141510.18", "ENSG00000012048"],
            r"m\.h5ad: 0 of 2 .*Ensembl ids \('ENSG00000141510\.18'\).*`symbols:",
        ),
        (["ENSMUSG00000059552", "ENSMUSG00000017146"], "Ensembl ids"),
        (["ENSG00000141510", "ENSG00000012048", "GENE1"], "1 of 3 .*Ensembl ids"),
        (["Gene1", "Gene2", "GENE3"], r"1 of 3 .*2 more differ only in case \('Gene1', known is 'GENE1'\).*human"),
        (["AB1", "AB2"], "unknown are 'AB1', 'AB2' …: set the source key `symbols"),
    ],
)
def test_names_that_do_not_match_are_refused_with_the_remedy(columns: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        match_genes(columns, VOCABULARY, "m.h5ad", minimum_share=0.5)


def test_coverage_below_the_smallest_share_is_refused() -> None:
    with pytest.raises(UserError, match=r"20 of 40 gene names .*60 symbols \(smallest share 0\.51\)"):
        match_genes(columns_of(20, 20), VOCABULARY, "m.h5ad", minimum_share=0.51)
    assert match_genes(columns_of(20, 20), VOCABULARY, "m.h5ad", minimum_share=0.5).matched == 20
    with pytest.raises(UserError, match="0 of 2"):
        match_genes(["A", "B"], VOCABULARY, "m.h5ad", minimum_share=0.0)


@pytest.mark.parametrize(
    ("mode", "value", "message"),
    [
        ("exact", -1.0, r"m\.h5ad: row 101, gene 'GENE\d+': -1 is negative or not finite; give raw counts$"),
        ("compat", -0.25, "-0.25 is negative or not finite; give raw counts or their log1p, not scaled"),
        ("exact", np.nan, "nan is negative or not finite"),
        ("compat", np.nan, "nan is negative or not finite"),
        ("compat", np.inf, "inf is negative or not finite"),
        ("exact", 0.5, "0.5 is no count; mode exact needs raw counts"),
    ],
)
def test_values_that_are_none_are_refused(mode: Any, value: float, message: str) -> None:
    matrix = counts(3, 50).astype(np.float32)
    matrix[1, 10] = value
    with pytest.raises(UserError, match=message):
        Tokenizer(gene_map(50), 20, mode).tokenize(rows(matrix), first_row=100)


def test_values_outside_the_vocabulary_are_checked_too() -> None:
    genes = match_genes(["OTHER", *VOCABULARY], VOCABULARY, "m.h5ad")
    matrix = counts(2, 61).astype(np.float32)
    matrix[1, 0] = 1.5
    with pytest.raises(UserError, match=r"row 1, gene 'OTHER': 1\.5 is no count"):
        Tokenizer(genes, 20).tokenize(rows(matrix))


def test_two_entries_for_one_gene_are_refused() -> None:
    twice = sp.csr_matrix((np.ones(3), np.array([4, 7, 4]), np.array([0, 3])), shape=(1, 50))
    genes = gene_map(50)
    with pytest.raises(UserError, match=f"row 0, gene '{genes.columns[4]}': two entries for one cell and gene"):
        Tokenizer(genes, 20).tokenize(twice)


def test_settings_without_meaning_are_refused() -> None:
    repeated = match_genes(["GENE1", "GENE2", "GENE3", "GENE2"], VOCABULARY, "m.h5ad")
    with pytest.raises(UserError, match=r"m\.h5ad: 1 gene names repeat, the first is 'GENE2'.*duplicate_genes: sum"):
        Tokenizer(repeated)
    with pytest.raises(UserError, match=r"m\.h5ad: 3 matched genes, mode compat needs 4"):
        Tokenizer(gene_map(3, 2), mode="compat")
    with pytest.raises(UserError, match="target_sum=10000: mode compat takes values as they are"):
        Tokenizer(gene_map(50), mode="compat", target_sum=1e4)
    with pytest.raises(UserError, match="pad_length=1"):
        Tokenizer(gene_map(50), 1)
