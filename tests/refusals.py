"""Inputs that `vcc-fm plan` refuses: each breaks one thing of a small recipe that nothing stands in the way of."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
import zarr
from program import TINY
from safetensors.numpy import save_file

GENES = [f"G{i}" for i in range(20)]
LABELS = ["non-targeting", "G0", "G1", "G2", "G3"]
ESM2 = {
    "model_type": "esm", "position_embedding_type": "rotary", "emb_layer_norm_before": False, "token_dropout": True,
    "vocab_size": 33, "num_hidden_layers": 2, "hidden_size": 16,
}  # fmt: skip


class Case(NamedTuple):
    """An input, the function whose refusal of it the plan reports, and a part of what the plan says."""

    by: str
    edit: Callable[[Path, dict[str, Any]], None]
    said: str


def write_inputs(folder: Path) -> dict[str, Any]:
    """Write a screen of two contexts and its proteins; the recipe of a run that nothing stands in the way of."""
    rng = np.random.default_rng(0)
    label = np.repeat(LABELS, 16)
    obs = pd.DataFrame({"target": label, "line": np.tile(["x", "y"], 40), "guides": 1.0, "day": np.arange(80)})
    obs.index = [f"cell{i}" for i in range(len(obs))]
    counts = sp.csr_matrix(rng.poisson(3.0, (len(obs), len(GENES))).astype(np.float32))
    anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=GENES)).write_h5ad(folder / "s.h5ad")
    (folder / "p.fasta").write_text("".join(f">{gene}\nMKVLA{'W' * i}\n" for i, gene in enumerate(GENES)))
    (folder / "names.tsv").write_text("alias\tapproved\n" + "".join(f"X{gene}\t{gene}\n" for gene in GENES))
    source = {"name": "s", "path": str(folder / "s.h5ad"), "perturbation_column": "target", "context_column": "line"}
    return {
        "name": "case",
        "output": str(folder),
        "data": {"sources": [source]},
        "embed": {"cells": {"width": 4}, "proteins": {"kmer": 1, "fasta": str(folder / "p.fasta")}},
        "split": {"hold_out": "perturbations", "test": ["G0"], "validation": ["G1"]},
        "decoder": {"gene_rank": 4, "backbone": dict(TINY["decoder"]["backbone"])},
        "train": {"steps": 2, "batch_sets": 4},
    }


Edit = Callable[[Path, dict[str, Any]], None]


def keys(**changes: Any) -> Edit:
    """Sets keys of the recipe, written with two underscores for a dot; FOLDER stands for the inputs' folder."""

    def edit(folder: Path, content: dict[str, Any]) -> None:
        for key, value in json.loads(json.dumps(changes).replace("FOLDER", str(folder))).items():
            *parents, last = key.split("__")
            place: Any = content
            for part in parents:
                place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
            place[last] = value

    return edit


def in_4_bits(**lora: Any) -> Edit:
    """Pretrains a base and holds it in 4 bits."""
    return keys(
        decoder__base="pretrain",
        pretrain__steps=2,
        pretrain__batch_sets=4,
        decoder__lora={"load_in_4bit": True} | lora,
    )


def source(**changes: Any) -> Edit:
    """Sets keys of the only source."""
    return keys(**{f"data__sources__0__{key}": value for key, value in changes.items()})


def proteins(encoder: str | None = None, **changes: Any) -> Edit:
    """Sets keys of the encoder of proteins; with ``encoder`` of another one, from the same sequences."""

    def edit(folder: Path, content: dict[str, Any]) -> None:
        if encoder is not None:
            fasta = {} if encoder == "table" else {"fasta": content["embed"]["proteins"]["fasta"]}
            content["embed"]["proteins"] = {"encoder": encoder, **fasta}
        keys(**{f"embed__proteins__{key}": value for key, value in changes.items()})(folder, content)

    return edit


def both(*edits: Edit) -> Edit:
    """One edit after the other."""

    def edit(folder: Path, content: dict[str, Any]) -> None:
        for one in edits:
            one(folder, content)

    return edit


def written(name: str, content: str | bytes) -> Edit:
    """Writes a file beside the others."""

    def edit(folder: Path, recipe: dict[str, Any]) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return edit


ST = """model: {kwargs: {transformer_backbone_key: llama, transformer_backbone_kwargs: {
  hidden_size: 328, intermediate_size: 1, num_hidden_layers: 1, num_attention_heads: 12}}}"""


def run_of_st(config: str, *checkpoints: str) -> Edit:
    """Writes what there is of a run of Arc's ST without its weights, and starts from it."""
    files = [written(f"st/checkpoints/{name}", "") for name in checkpoints or ("last.ckpt",)]
    return both(written("st/config.yaml", config), *files, keys(decoder__base="FOLDER/st"))


def screen(change: Callable[[anndata.AnnData], Any]) -> Edit:
    """Writes the screen again, changed; ``change`` may return another table."""

    def edit(folder: Path, content: dict[str, Any]) -> None:
        table = anndata.read_h5ad(folder / "s.h5ad")
        changed = change(table)
        (changed if isinstance(changed, anndata.AnnData) else table).write_h5ad(folder / "s.h5ad")

    return edit


def without(label: str, keep: int, line: str = "x") -> Edit:
    """Leaves ``keep`` cells of a label in a context."""

    def change(table: anndata.AnnData) -> anndata.AnnData:
        mine = ((table.obs["target"] == label) & (table.obs["line"] == line)).to_numpy()
        return table[~mine | (np.cumsum(mine) <= keep)].copy()

    return screen(change)


def labelled(column: str, values: Any) -> Edit:
    """Puts other values into an obs column."""
    return screen(lambda table: table.obs.__setitem__(column, values))


def hdf5(change: Callable[[h5py.File], Any]) -> Edit:
    """Changes the screen's file as no writer of h5ad would."""

    def edit(folder: Path, content: dict[str, Any]) -> None:
        with h5py.File(folder / "s.h5ad", "r+") as file:
            change(file)

    return edit


def rewritten(path: str, values: Any) -> Edit:
    """Puts another array in place of one of the screen's file."""

    def change(file: h5py.File) -> None:
        attributes = dict(file[path].attrs)
        del file[path]
        file[path] = values
        file[path].attrs.update(attributes)

    return hdf5(change)


def with_old_obs(file: h5py.File) -> None:
    """obs as anndata wrote it before 0.7."""
    del file["obs"]
    file["obs"] = np.array([(1,)], dtype=[("target", "i4")])


def zarr_with_a_link(folder: Path, content: dict[str, Any]) -> None:
    """The screen as a zarr store that leads out of itself."""
    anndata.read_h5ad(folder / "s.h5ad").write_zarr(folder / "s.zarr")
    (folder / "s.zarr" / "uns" / "more").symlink_to(folder.parent)
    content["data"]["sources"][0]["path"] = str(folder / "s.zarr")


def two_sources(control: str, separator: str = "+", **words: str) -> Edit:
    """A second source, with words of its own for the labels."""

    def edit(folder: Path, content: dict[str, Any]) -> None:
        table = anndata.read_h5ad(folder / "s.h5ad")
        table.obs["target"] = table.obs["target"].astype(str).replace({"non-targeting": control, **words})
        table.write_h5ad(folder / "t.h5ad")
        more = {"name": "t", "path": str(folder / "t.h5ad"), "control": control, "separator": separator}
        content["data"]["sources"].append({**content["data"]["sources"][0], **more})

    return edit


def table(text: str, head: str = '[datasets]\ns = "s.h5ad"\n') -> Edit:
    """A cell-load table in place of the split."""
    return both(written("t.toml", head + text), keys(split={"hold_out": "table", "table": "FOLDER/t.toml"}))


def torch_file(name: str, value: dict[str, list[float]]) -> Edit:
    """Writes a dictionary of vectors with torch."""

    def edit(folder: Path, content: dict[str, Any]) -> None:

        torch.save({symbol: torch.tensor(vector) for symbol, vector in value.items()}, folder / name)

    return edit


def zarr_array(folder: Path, content: dict[str, Any]) -> None:
    """A zarr array in place of the screen."""
    zarr.save_array(str(folder / "a.zarr"), np.ones(3))
    source(path="FOLDER/a.zarr")(folder, content)


def zarr_without_chunks(folder: Path, content: dict[str, Any]) -> None:
    """The screen as a zarr store that lost the values of X."""
    anndata.read_h5ad(folder / "s.h5ad").write_zarr(folder / "s.zarr")
    for file in (folder / "s.zarr" / "X" / "data").rglob("*"):
        if file.is_file() and file.name not in ("zarr.json", ".zarray", ".zattrs"):
            file.unlink()
    source(path="FOLDER/s.zarr")(folder, content)


def a_second_file_with_fewer_genes(folder: Path, content: dict[str, Any]) -> None:
    """More cells of the same lines, of which two genes were not measured."""
    anndata.read_h5ad(folder / "s.h5ad")[:, 2:].write_h5ad(folder / "s2.h5ad")
    first = content["data"]["sources"][0]
    content["data"]["sources"].append({**first, "name": "s2", "path": str(folder / "s2.h5ad")})


UNTRAINED = proteins(encoder="esm2", untrained={"width": 8, "heads": 2})
PT = proteins(encoder="table", table="FOLDER/f.pt")
ESM = proteins(encoder="esm2", model="FOLDER/esm")


def se(name: str) -> Edit:
    """SE's weights in that file or folder."""
    return keys(embed__cells={"encoder": "state-se", "model": f"FOLDER/{name}"})


def asked(**ask: Any) -> Edit:
    return keys(predict={"ask": [ask]})


def panel(text: str) -> Edit:
    return both(written("panel.csv", text), asked(perturbations="FOLDER/panel.csv"))


SPLIT, LOAD, SOURCES = "splits.hold_out.", "splits.cell_load_table.", "sources."
ASKING = "prediction.asking."
ESM2_, SE = "encoders.proteins.esm2_transformers.", "encoders.cells.state_se_weights."
LOADED = "recipe.read.load_any"

CASES = [
    # --------------------------------------------------------------------------------------------------- the recipe
    Case(LOADED, keys(trian=1), "unknown key trian (did you mean train?)"),
    Case("scoring.inputs._check_counts", keys(predict__depth=2e6), "predict.depth=2e+06: give UMI above 0"),
    Case("scoring.score._checked", keys(score__baselines=["control"] * 2), "'control' stands twice"),
    Case(
        "encoders.proteins.esm2_encoder.choose_layer",
        both(UNTRAINED, proteins(layer=3)),
        "embed.proteins.untrained has 2 layers",
    ),
    Case(
        "encoders.proteins.esm2_fair_esm.load_fair_esm",
        proteins(encoder="esm2", model="e.pt", spread=True),
        "original checkpoints run on one device",
    ),
    Case(
        "encoders.cells.state_se_tokens.Tokenizer.__init__",
        keys(embed__cells={"encoder": "state-se", "pad_length": 1}),
        "embed.cells.pad_length: ",
    ),
    Case("ground.paths.expand", source(path="${VCC_FM_NOT_SET}/s.h5ad"), "VCC_FM_NOT_SET is not set"),
    Case("run.inputs.protein_fasta", proteins(fasta=None), "embed.proteins.fasta is missing"),
    Case("sources.simulate._check", keys(data={"simulate": {"contexts": []}}), "data.simulate.contexts is empty"),
    # ---------------------------------------------------------------------------------------------------- the split
    Case(SPLIT + "_hold_out_perturbations", keys(split={"hold_out": "perturbations", "folds": 5}), "folds=5 is more"),
    Case(
        "splits.hold_out.among_combinations",
        keys(split__test_among="combinations", split__test=1),
        "0 combinations with",
    ),
    Case(SPLIT + "_choose", keys(split__test=9), "split.test=9 is more than the 4"),
    Case(SPLIT + "_refuse_unknown", keys(split__test=["G7"]), "there is no perturbation 'G7'"),
    Case(SPLIT + "_known_contexts", keys(split={"hold_out": "contexts", "contexts": ["z"]}), "no context 'z'"),
    Case(SPLIT + "_refuse_overlap", keys(split__validation=["G0"]), "listed in both"),
    Case(SPLIT + "_check", keys(split__test=1.0), "leaves nothing to train on"),
    Case("ground.errors.reading", table("[", ""), "not readable as TOML"),
    Case(LOAD + "_load", table("[other]\nx = 1", ""), "unknown section [other]"),
    Case(LOAD + "_mapping", table("", "datasets = 1\n"), "must be a section"),
    Case(LOAD + "_trained_datasets", table('[training]\nz = "train"'), "is not in [datasets]"),
    Case(LOAD + "_context", table('[training]\ns = "train"\n[zeroshot]\n"s.z" = "test"'), "there is no context"),
    Case(
        LOAD + "_trains",
        table('[training]\na = "train"\n[zeroshot]\n"a.x" = "test"', '[datasets]\na = "a.h5ad"\nb = "b.h5ad"\n'),
        "is in no section",
    ),
    Case(LOAD + "_fewshot_lists", table('[training]\ns = "train"\n[fewshot."s.x"]\ntrain = []'), "unknown key"),
    Case(LOAD + "read_cell_load_table", table("", '[datasets]\n"s.a" = "s.h5ad"\n'), "must not contain a dot"),
    Case(LOAD + "_zeroshot", table('[training]\ns = "train"\n[zeroshot]\n"s.x" = "tets"'), "write"),
    # ------------------------------------------------------------------------- phases, controls, what is scored
    Case("splits.groups.training_groups", keys(train__contexts=["z"]), "train.contexts: there is no context z"),
    Case(
        "splits.groups.training_groups",
        keys(split={"hold_out": "contexts", "contexts": ["x"]}, train__contexts=["x"]),
        "leaves nothing to train on there",
    ),
    Case(
        "splits.groups.training_groups",
        keys(train__context_weights={"z": 2.0}),
        "no training group of fold 0 has the context z",
    ),
    Case(
        "splits.groups.training_groups",
        keys(train__perturbation_weights={"G0": 2.0}),
        "has the perturbation G0; take",
    ),
    Case(
        "splits.groups.validation_groups",
        keys(split__validation=[], predict__effect_scale="validation"),
        "predict.effect_scale=validation needs validation groups",
    ),
    Case(
        "recipe.train.TrainConfig.check_processes",
        keys(train__processes=2),
        "train.processes=2, but 1 take part",
    ),
    Case(
        "scoring.inputs.check_measured",
        a_second_file_with_fewer_genes,
        "x is scored, and of its sources (s, s2) not all",
    ),
    Case("scoring.inputs.check_groups", without("G0", 1), "a single cell of G0 in x; the replicate splits"),
    Case("scoring.inputs.check_groups", without("non-targeting", 1), "a single cell of non-targeting in x"),
    Case(
        "scoring.inputs.check_groups",
        both(without("G1", 1), keys(predict__effect_scale="validation")),
        "a single cell of G1 in x",
    ),
    Case(
        "sources.controls.require_controls",
        both(
            *(without(label, 0) for label in LABELS if label != "G0"),
            keys(split={"hold_out": "few-shot", "contexts": ["y"], "test": ["G0"], "unseen": 1.0}),
        ),
        "no control cells ('non-targeting') in context x",
    ),
    Case("splits.hold_out.make_splits", keys(data__minimum_cells=99), "no perturbation is left"),
    Case("encoders.cells.expression.Expression.check", keys(embed__cells__width=20), "use a width below 16"),
    # ------------------------------------------------------------------------------------------------- the decoder
    Case("decoder.config.check_backbone", keys(decoder__backbone__model_type="lama"), "did you mean llama?"),
    Case("decoder.config.unfit", keys(decoder__backbone__hidden_size=18), "cannot be built"),
    Case(
        "decoder.lora._check",
        keys(decoder__base="pretrain", pretrain__steps=2, pretrain__batch_sets=4, decoder__lora__layers=[5]),
        "decoder.lora.layers: the backbone has no 5",
    ),
    Case("decoder.four_bit.require_bitsandbytes", in_4_bits(), "for which bitsandbytes is not installed: pip install"),
    Case("decoder.lora._check_4_bits", in_4_bits(full=["q_proj"]), "layers.0.self_attn.q_proj trains in full"),
    Case(
        "decoder.lora._check_4_bits",
        both(in_4_bits(), keys(decoder__backbone__intermediate_size=20)),
        "down_proj takes 20 values, no multiple of 8",
    ),
    Case("store.shared.local_store", keys(data={"store": "FOLDER/none"}), "is no store"),
    Case("run.inputs.base_address", keys(hub={"repo": "O/N", "what": "adapter"}), "has no address that others reach"),
    Case(
        "hub.licences.require_accepted",
        both(keys(hub={"repo": "O/N"}), source(licence="CC BY-NC 4.0")),
        "add --accept-licence",
    ),
    Case("decoder.load.base_config", keys(decoder__base="FOLDER"), "it has no config.json"),
    Case("ground.errors.asked_by", keys(decoder__base="FOLDER/none"), "decoder.base="),
    Case("decoder.load.local_model", keys(decoder__base="FOLDER/none"), "no such folder"),
    Case("decoder.arc_st.find_st", keys(decoder__base="FOLDER/none.ckpt"), "none.ckpt: no such file"),
    Case("decoder.arc_st.find_st", run_of_st("{}", "a.ckpt", "b.ckpt"), "it has a.ckpt, b.ckpt; give the path of one"),
    Case("decoder.arc_st.ArcSt._config", run_of_st("{}"), "it is no run of ST"),
    Case("decoder.arc_st.ArcSt.backbone", run_of_st(ST.replace("llama", "GPT2")), "the backbone is 'GPT2'"),
    Case("decoder.arc_st.ArcSt.backbone", run_of_st(ST.replace("328", "0")), "hidden_size is 0, where a size"),
    Case("decoder.arc_st.ArcSt.backbone", run_of_st(ST), "hidden_size 328, 12 heads of 27: transformers builds"),
    Case("cellsets.targets.require_vectors", written("p.fasta", ">G0\nMKV\n"), "3 target genes have no protein"),
    # -------------------------------------------------------------------------------------------- encoders' inputs
    Case(
        "encoders.proteins.token_batches.plan_shards",
        both(UNTRAINED, proteins(tokens_per_batch=9)),
        "a window takes 1024",
    ),
    Case(
        "encoders.proteins.windows.cut_windows",
        both(UNTRAINED, proteins(overlap=1022)),
        "can share 0 to 1021 residues",
    ),
    Case(
        "encoders.proteins.esm2_encoder.choose_layer",
        both(ESM, written("esm/config.json", json.dumps(ESM2)), proteins(layer=3)),
        "2 layers",
    ),
    Case(ESM2_ + "_config", both(ESM, written("esm/config.json", "{}")), "is not of ESM2"),
    Case(ESM2_ + "_find", proteins(encoder="esm2", model="FOLDER/none/here/x"), "no such folder, and no Hub id"),
    Case("encoders.proteins.esm2_fair_esm._read", proteins(encoder="esm2", model="FOLDER/none.pt"), "no such file"),
    Case(
        "encoders.torch_file.load_plain", both(PT, written("f.pt", "text")), "cut short, or not written by torch.save"
    ),
    Case(
        "encoders.proteins.table.read_pt", both(PT, torch_file("f.pt", {"G0": [float("nan")]})), "hold NaN or infinity"
    ),
    Case("encoders.torch_file.symbol_vectors", both(PT, torch_file("f.pt", {})), "an empty dictionary"),
    Case(SE + "_find", se("none.safetensors"), "no such file"),
    Case(SE + "_address", se("none"), "no such folder, and no Hub id"),
    Case(SE + "_weights_in", both(written("empty/text", ""), se("empty")), "no model.safetensors"),
    Case(
        "ground.errors.reading",
        both(written("f.safetensors", "text"), se("f.safetensors")),
        "not readable as safetensors",
    ),
    Case(SE + "_read_lightning", both(torch_file("f.ckpt", {}), se("f.ckpt")), "no Lightning checkpoint"),
    Case("encoders.torch_file.load_plain", both(written("f.ckpt", "text"), se("f.ckpt")), "cut short, or not written"),
    Case(
        SE + "read_width",
        both(lambda folder, content: save_file({"a": np.ones(2)}, folder / "f.safetensors"), se("f.safetensors")),
        "is missing; give a checkpoint of SE",
    ),
    # --------------------------------------------------------------------------------------------------- FASTA, names
    Case(SOURCES + "fasta._entries", written("p.fasta", "MKV"), "not FASTA"),
    Case(SOURCES + "fasta._parse", written("p.fasta", ">G0\nMK1V\n"), "none of the 1 proteins can be used"),
    Case(
        SOURCES + "fasta._of_other_organisms",
        written("p.fasta", "".join(f">sp|P0{i}|A Protein OX={i} GN=G{i}\nMKV\n" for i in range(4))),
        "proteins of 4 organisms",
    ),
    Case(
        "cellsets.targets.protein_coverage",
        written("p.fasta", ">G0\nMK1V\n" + "".join(f">{gene}\nMKVLA\n" for gene in GENES[1:])),
        "no sound protein",
    ),
    Case(SOURCES + "remote.open_local", both(written("d/f", ""), proteins(fasta="FOLDER/d")), "is a folder"),
    Case(SOURCES + "remote.read_bytes", written("p.fasta", gzip.compress(b">G0\nMKV\n" * 99)[:-9]), "gzip file cut"),
    Case(
        SOURCES + "download._check_address", proteins(fasta="ftp://example.org/p.fasta"), "not an address to download"
    ),
    Case(
        SOURCES + "symbol_files._read",
        both(written("n.tsv", "a\tb\n"), keys(data__names__symbols="FOLDER/n.tsv")),
        "table",
    ),
    Case(SOURCES + "download.check_sha256", proteins(sha256="0" * 64), "SHA-256"),
    Case(
        SPLIT + "_targets",
        both(
            screen(lambda t: t.obs.__setitem__("target", t.obs["target"].astype(str).replace("G1", "XG0"))),
            keys(data__names={"symbols": "FOLDER/names.tsv"}, split__validation=["G2"]),
        ),
        "'G0' and 'XG0' mean the same target genes",
    ),
    Case(SOURCES + "symbols.coverage", keys(data__names__pins={"G99": "G0"}), "G99 is neither a target gene nor"),
    Case(
        SOURCES + "alignment.open_sources",
        keys(data__names={"symbols": "FOLDER/names.tsv", "pins": {"XX": "XG0"}, "approved": True}),
        "XG0 is no approved symbol",
    ),
    Case(SOURCES + "genes.read_axis", both(written("a.txt", ""), keys(data__genes="FOLDER/a.txt")), "names no gene"),
    Case(
        SOURCES + "genes.gene_axis", both(written("a.txt", "Z"), keys(data__genes="FOLDER/a.txt")), "none of its genes"
    ),
    Case(SOURCES + "genes._text", source(symbols="none"), "var has no column 'none'"),
    Case(SOURCES + "genes.gene_columns", screen(lambda t: setattr(t, "var_names", GENES[:1] * 20)), "repeats 1 gene"),
    # ------------------------------------------------------------------------------------------------ what is asked
    Case(ASKING + "asked_for", asked(perturbations=["G3"]), "nothing that was held out is asked for"),
    Case(ASKING + "_of", asked(contexts=["z"]), "no control cells of 'z' (there are x, y)"),
    Case(ASKING + "_of", asked(perturbations=["non-targeting"], cells=4), "non-targeting is the control"),
    Case(ASKING + "_of", asked(perturbations=["G0", "G9"]), "G9 was not measured in x"),
    Case(ASKING + "_of", asked(perturbations=["G0+G1", "G1+G0"]), "mean the same target genes"),
    Case(ASKING + "read_perturbations", asked(perturbations="FOLDER/panel.csv"), "panel.csv: no such file"),
    Case(ASKING + "read_perturbations", panel("gene\nG0\n"), "no column target_gene or perturbation or pert"),
    Case(ASKING + "read_perturbations", panel("target_gene\nG0\nG0\n"), "'G0' stands twice"),
    Case(ASKING + "read_perturbations", panel("target_gene\nnon-targeting\n"), "names no perturbation"),
    Case(ASKING + "read_perturbations", panel("target_gene,n_cells\nG0,x\n"), "n_cells of G0 is 'x'"),
    # ------------------------------------------------------------------------------------------------------ labels
    Case(SOURCES + "labels._check_columns", source(perturbation_column="taget"), "did you mean 'target'?"),
    Case(SOURCES + "labels._keep", source(keep={"line": "z"}), "no cell has"),
    Case(SOURCES + "labels._with_guides", source(quality={"guides_column": "guides", "guides": [7]}), "no kept cell"),
    Case(
        SOURCES + "labels._check_controls",
        both(labelled("guides", [0] * 16 + [1] * 64), source(quality={"guides_column": "guides"})),
        "leaves out all 16 cells of the control",
    ),
    Case(SOURCES + "labels.column_labels", labelled("line", ["x", None] * 40), "has no value in 40"),
    Case(SOURCES + "perturbations._check_texts", source(also_control=["none"]), "has no label 'none' (also_control)"),
    Case(SOURCES + "perturbations.read_perturbations", source(control="none"), "has no control label 'none'"),
    Case("store.cell_table._unified", two_sources("NT", "_", G0="G1+G2"), "which joins target genes in"),
    Case("store.cell_table._check_controls", two_sources("NT", G0="G1+non-targeting"), "the control of source 's'"),
    # ----------------------------------------------------------------------------------------------------- the file
    Case("ground.errors.reading", written("s.h5ad", "text"), "not readable as HDF5"),
    Case(SOURCES + "inside.check_hdf5", hdf5(lambda f: f.__setitem__("uns/x", h5py.ExternalLink("o.h5", "/X"))), "x"),
    Case(SOURCES + "inside.check_folder", zarr_with_a_link, "is a link out of the store"),
    Case(SOURCES + "inside.check_lengths", rewritten("obs/day", np.arange(7)), "damaged"),
    Case(SOURCES + "anndata_file._root", zarr_array, "it is a single array"),
    Case(SOURCES + "anndata_file.open_file", source(path="FOLDER/none.h5ad"), "none.h5ad is missing"),
    Case(SOURCES + "anndata_file.locate", source(matrix="layers/none"), "has no matrix 'layers/none'"),
    Case(SOURCES + "anndata_file.read_table", hdf5(with_old_obs), "before 0.7"),
    Case(
        SOURCES + "anndata_source.AnnDataSource.__init__", hdf5(lambda f: f["X"].attrs.update(shape=(80, 9))), "shape"
    ),
    Case(SOURCES + "totals.read_totals", source(totals_column="none"), "(totals_column); set it"),
    Case(SOURCES + "totals._read", source(totals_column="line"), "totals_column 'line' holds"),
    Case(SOURCES + "anndata_source.AnnDataSource._find_reading", source(values="normalised"), "but they look like"),
    Case(SOURCES + "anndata_source.AnnDataSource._refusal", screen(lambda t: setattr(t, "X", t.X * -1.5)), "holds -"),
    Case(SOURCES + "matrix._open", hdf5(lambda f: f["X"].attrs.update({"encoding-type": "coo"})), "is not read"),
    Case(SOURCES + "matrix._check_kind", rewritten("X/data", np.array([b"a"] * 3)), "holds values of type"),
    Case(SOURCES + "matrix._checked_indptr", rewritten("X/indptr", np.zeros(81, int)), "indptr does not rise"),
    Case(SOURCES + "zarr_array.check_chunks", zarr_without_chunks, "are not in the store"),
]
