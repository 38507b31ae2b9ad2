"""Bases of all kinds: a decoder of other cells, a plain transformers checkpoint, and what starts anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_decoder_model import BACKBONES
from transformers import AutoConfig, AutoModel

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.decoder.build import adopt, build_decoder
from vcc_fm.decoder.config import check_backbone
from vcc_fm.decoder.load import load_decoder
from vcc_fm.decoder.model import PerturbationDecoder
from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.decoder import GENE_AXES
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.load import load_dataset


@pytest.fixture(scope="module")
def data(tiny_run: Recipe) -> Dataset:
    return load_dataset(tiny_run, 0)


def scratch(recipe: Recipe, data: Dataset, seed: int = 3) -> PerturbationDecoder:
    decoder, notes = build_decoder(recipe.decoder, data, "scratch", seed)
    assert notes == []
    assert isinstance(decoder, PerturbationDecoder)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return decoder


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_plain_checkpoint_is_a_base(tiny_run: Recipe, data: Dataset, tmp_path: Path, kind: str) -> None:
    keys = {**BACKBONES[kind], "hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 5}
    if kind == "gpt2":
        keys |= {"n_embd": keys.pop("hidden_size"), "n_layer": keys.pop("num_hidden_layers")}
    torch.manual_seed(1)
    plain = AutoModel.from_config(AutoConfig.for_model(**keys))
    plain.save_pretrained(tmp_path)
    model, _ = build_decoder(tiny_run.decoder, data, str(tmp_path), 0)
    assert {
        name for name, p in model.named_parameters() if p.requires_grad and "backbone" in name and "lora" not in name
    } == set()
    assert any("lora" in name for name, _ in model.named_parameters())
    loaded = model.merge_and_unload().backbone.state_dict()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, loaded[name]), name


def test_the_same_dataset_gives_the_same_decoder(tiny_run: Recipe, data: Dataset) -> None:
    base = scratch(tiny_run, data)
    moved, notes = adopt(base, tiny_run.decoder, data)
    assert notes == []
    for name, value in base.state_dict().items():
        assert torch.equal(value, moved.state_dict()[name]), name


def test_genes_contexts_and_batches_are_matched_by_name(tiny_run: Recipe, data: Dataset) -> None:
    base = scratch(tiny_run, data)
    base.config.genes = [*reversed(base.config.genes[1:]), "ELSEWHERE"]
    base.config.contexts = ["unheard of", base.config.contexts[1]]
    base.context_code = torch.nn.Embedding(3, base.context_code.embedding_dim)
    moved, _ = adopt(base, tiny_run.decoder, data)
    genes = data.cells.genes
    assert torch.equal(moved.gene_factors.free[5], base.gene_factors.free[base.config.genes.index(genes[5])])
    assert torch.equal(moved.gene_factors.free[1], base.gene_factors.free[-2])
    assert moved.gene_factors.free[0].abs().sum() == 0, "a gene that the base never saw starts from its protein alone"
    assert torch.equal(moved.context_code.weight[2], base.context_code.weight[2])
    assert moved.context_code.weight[1].abs().sum() == 0
    assert torch.equal(moved.head.log_dispersion, torch.from_numpy(data.dispersion).log().float())


def test_a_gene_is_seen_as_its_protein_has_it_on_axes_that_are_kept(tiny_run: Recipe, data: Dataset) -> None:
    base = scratch(tiny_run, data)
    genes, scaling = base.gene_factors, base.protein_scaling
    vectors = torch.from_numpy(data.gene_vectors)
    whole, seen = scaling(vectors), genes.coordinates_GK[data.genes_with_protein]
    assert 0 < len(seen) == len(vectors) <= len(data.cells.genes)
    # Short vectors: the axes keep all that tells the genes apart, times one factor.
    assert genes.axes_KV.shape[0] == vectors.shape[1] <= GENE_AXES
    kept = torch.pdist(seen) / torch.pdist(whole)
    torch.testing.assert_close(kept, kept.mean().expand_as(kept), rtol=1e-3, atol=0)
    assert seen[:, genes.axes_KV.any(dim=1)].square().mean() == pytest.approx(1.0, rel=1e-4)
    # Of fewer genes, other axes would be the principal ones; those of the base stay, and mean what they did.
    few = replace(data)
    few.__dict__["genes_with_protein"] = data.genes_with_protein[::3]
    moved, _ = adopt(base, tiny_run.decoder, few)
    assert len(few.gene_axes) < len(data.gene_axes)
    assert torch.equal(moved.gene_factors.axes_KV, genes.axes_KV)
    here = few.genes_with_protein
    torch.testing.assert_close(moved.gene_factors.coordinates_GK[here], genes.coordinates_GK[here])
    without = np.delete(np.arange(len(data.cells.genes)), here)
    assert (moved.gene_factors.coordinates_GK[without] == 0).all()


def test_long_vectors_are_seen_on_few_axes(tiny_run: Recipe, data: Dataset) -> None:
    store, width = data.protein_vectors, 3 * GENE_AXES
    vectors = np.random.default_rng(0).normal(1, 2, (len(store.keys), width)).astype(np.float32)
    known = {"keys": store.keys, "folder": store.folder, "missing": store.missing}
    meta = {**store.meta, "fingerprint": "longer"}
    longer = replace(data, protein_vectors=SimpleNamespace(vectors=vectors, width=width, meta=meta, **known))
    genes = scratch(tiny_run, longer).gene_factors
    assert genes.axes_KV.shape == (GENE_AXES, width)
    assert genes.projection.weight.shape[1] == GENE_AXES
    # What the axes show is what a singular value decomposition would.
    _, values, right = np.linalg.svd(longer.gene_vectors - vectors.mean(axis=0), full_matrices=False)
    shown = genes.coordinates_GK[longer.genes_with_protein].square().sum(0).numpy()
    number = min(GENE_AXES, len(values))
    np.testing.assert_allclose(shown[:number] / shown.sum(), values[:number] ** 2 / (values[:number] ** 2).sum(), 1e-3)
    assert shown.sum() == pytest.approx(len(longer.genes_with_protein) * number, rel=1e-3)
    length = np.linalg.norm(genes.axes_KV.numpy(), axis=1, keepdims=True)[:number]
    along = np.abs((genes.axes_KV.numpy()[:number] / length * right[:number]).sum(axis=1))
    np.testing.assert_allclose(along[:5], 1.0, atol=1e-3)


def test_other_vectors_start_their_reader_anew(tiny_run: Recipe, data: Dataset) -> None:
    base = scratch(tiny_run, data)
    base.config.protein_encoder = {**base.config.protein_encoder, "fingerprint": "another"}
    moved, notes = adopt(base, tiny_run.decoder, data)
    (note,) = notes
    assert "other protein vectors" in note
    state, before = moved.state_dict(), base.state_dict()
    assert not torch.equal(state["target_projection.0.weight"], before["target_projection.0.weight"])
    assert not torch.equal(state["gene_factors.projection.weight"], before["gene_factors.projection.weight"])
    assert torch.equal(state["cell_projection.0.weight"], before["cell_projection.0.weight"])
    assert torch.equal(state["gene_factors.free"], before["gene_factors.free"])


def test_a_cell_width_that_differs_can_be_adopted(tiny_run: Recipe, data: Dataset) -> None:
    wide = replace(data, cell_vectors=_Wider(data.cell_vectors))
    base = scratch(tiny_run, wide)
    moved, notes = adopt(base, tiny_run.decoder, data)
    assert len(notes) == 1
    assert moved.config.cell_width == base.config.cell_width - 1


class _Wider:
    """Vectors of another encoder: one component more."""

    def __init__(self, store: Any):
        self.keys, self.width, self.folder = store.keys, store.width + 1, store.folder
        self.meta = {**store.meta, "fingerprint": "wider"}
        self.missing = store.missing
        self.take = lambda rows: np.pad(store.take(rows), ((0, 0), (0, 1)))


def test_misspelt_backbones_are_refused() -> None:
    check_backbone({"model_type": "llama", "hidden_size": 8})
    check_backbone({"model_type": "gpt2", "hidden_size": 8, "n_head": 2})
    with pytest.raises(UserError, match=r"model_type is missing"):
        check_backbone({"hidden_size": 8})
    with pytest.raises(UserError, match=r"model_type=lama: .*did you mean llama\?"):
        check_backbone({"model_type": "lama"})
    with pytest.raises(UserError, match=r"decoder.backbone.hiden_size: .*did you mean hidden_size\?"):
        check_backbone({"model_type": "llama", "hiden_size": 8})


def test_the_terms_of_a_base_go_along(tiny_run: Recipe, data: Dataset, tmp_path: Path) -> None:
    keys = {**BACKBONES["llama"], "hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 5}
    AutoModel.from_config(AutoConfig.for_model(**keys)).save_pretrained(tmp_path / "llm")
    model, _ = build_decoder(tiny_run.decoder, data, str(tmp_path / "llm"), 0)
    assert model.config.started_from["licence"] == "that of llm: see its card"
    ours = scratch(tiny_run, data)
    ours.config.cell_encoder |= {"licence": "Non-commercial", "citation": "Arc", "fingerprint": "other"}
    moved, _ = adopt(ours, tiny_run.decoder, data)
    assert moved.config.started_from == {"files": {}, "licence": "Non-commercial", "citation": "Arc"}
    again, _ = adopt(moved, tiny_run.decoder, data)
    assert again.config.started_from == moved.config.started_from
    plain, _ = adopt(scratch(tiny_run, data), tiny_run.decoder, data)
    assert plain.config.started_from == {}


def test_a_base_that_is_nothing_is_refused(tiny_run: Recipe, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no decoder or backbone that transformers can load \(it has no config.json\)"
    ):
        build_decoder(tiny_run.decoder, data, str(tmp_path), 0)


class _Trap:
    """What a hostile pickle does when it is opened."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("trap-was-sprung"),))


def test_a_checkpoint_that_runs_code_is_refused(
    tiny_run: Recipe, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = {**BACKBONES["bert"], "hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 5}
    AutoConfig.for_model(**keys).save_pretrained(tmp_path / "pickled")
    torch.save({"weight": _Trap()}, tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"weights cannot be loaded \(safetensors only\)"):
        build_decoder(tiny_run.decoder, data, str(tmp_path / "pickled"), 0)
    remote = tmp_path / "remote"
    remote.mkdir()
    (remote / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}')
    (remote / "mine.py").write_text("open('trap-was-sprung', 'w')")
    with pytest.raises(UserError, match=r"names code to load it with \(auto_map\)"):
        build_decoder(tiny_run.decoder, data, str(remote), 0)
    assert not (tmp_path / "trap-was-sprung").exists()


def test_weights_that_do_not_fit_are_refused(tmp_path: Path, tiny_run: Recipe, data: Dataset) -> None:
    scratch(tiny_run, data).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(UserError, match="is not readable as safetensors"):
        load_decoder(tmp_path)
