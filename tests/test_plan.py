"""The plan: it says what a run will find and make, refuses what would fail later, and writes nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from copy import deepcopy
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from program import ENVIRONMENT, TINY, vcc_fm, write_recipe
from rich.console import Console

from vcc_fm.decoder.build import build_decoder
from vcc_fm.decoder.lora import add_adapters
from vcc_fm.recipe.decoder import GENE_AXES
from vcc_fm.recipe.read import load_recipe
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.run.load import load_dataset
from vcc_fm.run.plan import make_plan
from vcc_fm.run.plan_text import print_plan
from vcc_fm.run.stages import run_stage, stages_of
from vcc_fm.training.accelerator import count_parameters

LLAMA = TINY["decoder"]["backbone"]


def planned(folder: Path, *overrides: str, processes: int = 1) -> dict[str, Any]:
    return make_plan(load_recipe(write_recipe(folder), list(overrides)), processes)


def with_backbone(folder: Path, backbone: dict[str, Any]) -> dict[str, Any]:
    content = {**deepcopy(TINY), "output": str(folder)}
    content["decoder"]["backbone"] = backbone
    return make_plan(Recipe.model_validate(content), 1)


# ------------------------------------------------------------------------------------------------ what it says is so
def test_the_plan_says_what_the_stages_find_and_make(tiny_run):
    plan = make_plan(tiny_run, 1)
    data = load_dataset(tiny_run, 0)
    assert plan["problems"] == []
    assert plan["cells"]["cells"] == len(data.cells)
    assert plan["cells"]["genes"] == len(data.cells.genes)
    assert plan["cells"]["contexts"] == data.cells.contexts
    assert plan["cells"]["batches"] == len(data.cells.batches)
    assert plan["cells"]["perturbations"] == len(data.cells.perturbations) - 1
    assert plan["split"] == [{"fold": 0, "counts": data.split.counts(), "warnings": data.split.warnings}]
    assert plan["proteins"]["width"] == data.protein_vectors.width
    assert plan["proteins"]["axis_with_sequence"] == len(data.cells.genes)
    parameters = count_parameters(build_decoder(tiny_run.decoder, data, "scratch", 0)[0])
    assert (plan["decoder"]["parameters"], plan["decoder"]["trainable"]) == parameters
    assert {stage["stage"]: stage["done"] for stage in plan["stages"]} == {
        "prepare": True,
        "embed proteins": True,
        "embed cells": True,
        "split": True,
        "train": False,
        "predict": False,
        "score": False,
    }


def test_the_plan_counts_a_decoder_of_wide_proteins(tmp_path):
    """The gene factors keep a few axes of them, and the arithmetic of the plan must know it."""
    recipe = load_recipe(write_recipe(tmp_path), ["embed.proteins.kmer=2", "decoder.base=scratch", "pretrain=null"])
    for stage in stages_of(recipe)[:4]:
        run_stage(stage, recipe, Console(quiet=True))
    data = load_dataset(recipe, 0)
    assert data.protein_vectors.width > GENE_AXES
    found = make_plan(recipe, 1)["decoder"]
    decoder, _ = build_decoder(recipe.decoder, data, "scratch", 0)
    assert (found["parameters"], found["trainable"]) == count_parameters(decoder)


def test_the_plan_counts_what_adapters_train(tiny_run):
    adapted = tiny_run.model_copy(
        update={
            "decoder": tiny_run.decoder.model_copy(update={"base": "pretrain"}),
            "pretrain": tiny_run.train,
        }
    )
    decoder, _ = build_decoder(tiny_run.decoder, load_dataset(tiny_run, 0), "scratch", 0)
    total, trainable = count_parameters(add_adapters(decoder, tiny_run.decoder.lora, "base"))
    found = make_plan(adapted, 1)["decoder"]
    assert (found["parameters"], found["trainable"]) == (total, trainable)
    assert trainable < total


def test_a_plan_writes_nothing(tmp_path, monkeypatch):
    recipe = write_recipe(tmp_path / "r")
    monkeypatch.chdir(tmp_path)
    ended = vcc_fm("plan", recipe, "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["recipe"] == "tiny"
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "r", recipe]


def test_a_plan_is_printed_as_it_is(tmp_path):
    plan = planned(tmp_path, "split.contexts=['[red]omega [0, 1]']")
    out = StringIO()
    print_plan(plan, Console(file=out, width=200))
    assert "problem split.contexts: there is no context '[red]omega [0, 1]'" in out.getvalue()
    for part in ("prepare", "to do", "50 genes", "processes", "llama, base pretrain"):
        assert part in out.getvalue()
    assert "nothing stands in the way" not in out.getvalue()


def test_a_plan_does_not_import_torch_for_what_can_be_judged_without(tmp_path):
    # Of the seconds that a plan takes, the import of torch and transformers would be two thirds.
    recipe = write_recipe(tmp_path)
    look = f"import sys; from vcc_fm.run.plan import DRIVERS, make_plan; from vcc_fm.recipe.read import load_recipe; \
        from pathlib import Path; plan = make_plan(load_recipe({str(recipe)!r}), 1); \
        print(plan['problems'], any(map(Path.exists, map(Path, DRIVERS))), \
        bool({{'torch', 'transformers', 'datasets', 'matplotlib'}} & sys.modules.keys()))"
    ended = subprocess.run([sys.executable, "-c", look], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    problems, driver, found = ended.stdout.rsplit(maxsplit=2)
    assert problems == "[]", ended.stderr
    if driver == "False":
        assert found == "False"


@pytest.mark.parametrize("base", ["scratch", "pretrain"])
def test_the_sizes_of_a_plain_llama_are_those_of_one_that_is_built(tmp_path, base):
    content = {**deepcopy(TINY), "output": str(tmp_path)}
    content["decoder"] |= {"base": base, "gene_rank": 7, "lora": {"r": 3, "alpha": 4}}
    content["decoder"]["backbone"] |= {
        "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 3, "vocab_size": 5
    }  # fmt: skip
    content["pretrain"] = content["pretrain"] if base == "pretrain" else None
    plain = make_plan(Recipe.model_validate(content), 1)["decoder"]
    content["decoder"]["backbone"]["rms_norm_eps"] = 1e-6  # its default; but now the plan has to build the decoder
    assert plain == make_plan(Recipe.model_validate(content), 1)["decoder"]


def test_a_plan_says_how_many_folds_it_does_not_list(tmp_path):
    plan = planned(tmp_path, "split={hold_out: perturbations, folds: 4}")
    out = StringIO()
    print_plan(plan, Console(file=out, width=600))
    said = out.getvalue()
    assert "fold-0/base" in said
    assert "and 7 more, to" in said
    assert "fold-3/model" in said
    assert [f"split, fold {fold}" in said for fold in range(5)] == [True] * 4 + [False]


def test_what_learned_vectors_of_perturbations_without_proteins_mean_is_said(tmp_path):
    (tmp_path / "p.fasta").write_text(">OTHER\nMKV\n")
    plan = planned(tmp_path, f"embed.proteins.fasta={tmp_path / 'p.fasta'}", "embed.proteins.missing=learned")
    out = StringIO()
    print_plan(plan, Console(file=out, width=200))
    assert plan["problems"] == []
    assert "note no perturbation has a protein sequence (drugs and stimuli have none)" in out.getvalue()


# ----------------------------------------------------------------------------------------------- without the data
def test_a_plan_without_data_says_what_is_missing_and_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.delenv("VCC_FM_NOWHERE", raising=False)
    source = {"perturbation_column": "target", "context": "K562"}
    content = {
        **TINY,
        "output": str(tmp_path),
        "data": {
            "sources": [
                {"name": "a", "path": str(tmp_path / "a.h5ad"), "get": "https://example.org/a", **source},
                {"name": "b", "path": "${VCC_FM_NOWHERE}/b.h5ad", **source},
            ],
            "genes": str(tmp_path / "genes.txt"),
        },
        "embed": {"proteins": {"fasta": str(tmp_path / "p.fasta"), "get": "UniProt, reviewed"}},
        "split": {"hold_out": "table", "table": str(tmp_path / "split.toml")},
    }
    plan = make_plan(Recipe.model_validate(content), 1)
    assert plan["problems"] == [
        f"data.sources a: {tmp_path}/a.h5ad is missing; get it from https://example.org/a",
        "data.sources b: ${VCC_FM_NOWHERE}/b.h5ad: the environment variable VCC_FM_NOWHERE is not set; point it at "
        "the folder with the data",
        f"data.genes: {tmp_path}/genes.txt is missing",
        f"split.table: {tmp_path}/split.toml is missing",
        f"embed.proteins.fasta: {tmp_path}/p.fasta is missing; get it from UniProt, reviewed",
    ]


def test_a_missing_split_table_or_fasta_is_said_once_beside_what_can_be_read(tmp_path):
    plan = planned(
        tmp_path,
        "split={hold_out: table, table: none.toml}",
        "embed.proteins.fasta=none.fasta",
        "embed.proteins.get=UniProt",
    )
    assert plan["cells"]["genes"] == 50
    assert plan["problems"] == [
        "split.table: none.toml is missing",
        "embed.proteins.fasta: none.fasta is missing; get it from UniProt",
    ]


# --------------------------------------------------------------------------------------------- what would fail later
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("split.test=[SIM0001x]", "split.test: there is no perturbation 'SIM0001x'; nearest: "),
        ("split.test=9", "split.test=9 is more than the 8 perturbations"),
        ("split={hold_out: perturbations, folds: 9}", "split.folds=9 is more than the 8 perturbations"),
        ("split={hold_out: perturbations, test: 1.0}", "leaves nothing to train on"),
        (
            "split={hold_out: contexts, contexts: [alpha, beta]}",
            "pretrain.contexts=['alpha', 'beta']: the split leaves",
        ),
        ("pretrain.contexts=[alpha, omega]", "pretrain.contexts: there is no context omega; there are alpha, beta,"),
        ("train.contexts=[omega]", "train.contexts: there is no context omega; there are alpha, beta, gamma"),
        ("train.batch_sets=5", "train.batch_sets=5 is not a multiple of 2 processes"),
        ("pretrain.micro_sets=4", "pretrain.batch_sets=4 is not a multiple of 2 processes x pretrain.micro_sets=4"),
        ("train.processes=3", "train.processes=3, but 2 take part; pass --processes 3"),
        ("embed.cells.width=50", "embed.cells.width=50: 50 genes measured by all sources and"),
        ("data.simulate.perturbations=51", "data.simulate.genes=50 is fewer than data.simulate.perturbations=51"),
        ("data.simulate.contexts=[]", "data.simulate.contexts is empty"),
        ("data.simulate.contexts=[alpha, Alpha]", "names must differ by more than case"),
        ("data.genes=none.txt", "data.genes: none.txt is missing"),
        ("decoder.lora.target_modules=[nothing]", "decoder.lora.target_modules: the backbone has no nothing; it has "),
    ],
)
def test_what_would_fail_later_is_a_problem(tmp_path, override, said):
    problems = planned(tmp_path, override, processes=2)["problems"]
    assert [problem for problem in problems if said in problem], problems
    assert len(problems) == len(set(problems))
    assert all(len(problem.splitlines()) <= 2 for problem in problems)


def test_calibration_without_validation_groups_is_a_problem(tmp_path):
    problems = planned(tmp_path, "split.validation=0.0", "predict.effect_scale=validation")["problems"]
    assert problems == [
        "predict.effect_scale=validation needs validation groups, the split has none; give a number, or raise "
        "split.validation"
    ]
    assert planned(tmp_path, "split.validation=0.0")["problems"] == []


def test_target_genes_without_a_sequence_are_a_problem_unless_they_learn_a_vector(tmp_path):
    (tmp_path / "p.fasta").write_text(">SIM0001\nMKV\n")
    fasta = f"embed.proteins.fasta={tmp_path / 'p.fasta'}"
    plan = planned(tmp_path, fasta)
    without = plan["proteins"]["targets_without_sequence"]
    assert len(without) >= 7
    assert f"{len(without)} target genes have no protein vector: {without[0]}, " in plan["problems"][0]
    learned = planned(tmp_path, fasta, "embed.proteins.missing=learned")
    assert learned["problems"] == []
    assert learned["decoder"]["parameters"] > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": None}, "decoder.backbone.model_type is missing"),
        ({"num_attention_heads": 3}, "The hidden size (16) is not a multiple of the number of attention heads (3)"),
        ({"num_attention_heads": "x"}, "num_attention_heads"),
        ({"hidden_size": 0}, "a llama of these settings cannot be built"),
        ({"hidden_size": -4}, "a llama of these settings cannot be built"),
        ({"hidden_size": 18, "num_attention_heads": 6}, "a llama of these settings cannot be built"),
        ({"model_type": "vit", "vocab_size": None}, "a vit of these settings cannot be built"),
        ({"model_type": "t5", "intermediate_size": None}, "a t5 of these settings cannot be built"),
    ],
)
def test_a_backbone_that_cannot_be_built_or_read_tokens_is_a_problem(tmp_path, change, said):
    backbone = {key: value for key, value in {**LLAMA, **change}.items() if value is not None}
    plan = with_backbone(tmp_path, backbone)
    assert plan["decoder"] is None
    assert len(plan["problems"]) == 1
    assert said in plan["problems"][0]
    assert len(plan["problems"][0].splitlines()) == 1


@pytest.mark.parametrize(
    "backbone",
    [
        {**LLAMA, "model_type": "mistral", "num_key_value_heads": 1},
        {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 2},
    ],
)
def test_other_backbones_can_be_planned(tmp_path, backbone):
    plan = with_backbone(tmp_path, backbone)
    assert plan["problems"] == []
    assert plan["decoder"]["backbone"] == backbone["model_type"]


# ---------------------------------------------------------------------------------------------------------- the base
def on_base(folder: Path, base: Path) -> dict[str, Any]:
    content = {**deepcopy(TINY), "output": str(folder), "pretrain": None}
    content["decoder"]["base"] = str(base)
    return make_plan(Recipe.model_validate(content), 1)


def test_a_base_that_is_not_there_is_a_problem(tmp_path):
    (plan,) = on_base(tmp_path, tmp_path / "none")["problems"]
    assert plan.startswith(f"decoder.base={tmp_path}/none: no such folder")
    (tmp_path / "empty").mkdir()
    (plan,) = on_base(tmp_path, tmp_path / "empty")["problems"]
    assert plan.startswith(f"decoder.base={tmp_path}/empty: no decoder or backbone that transformers can load")


def test_a_base_trained_on_the_same_or_on_other_vectors_is_no_problem(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path))
    layout = Layout(recipe)
    base = tmp_path / "base"
    base.mkdir()
    for protein in (layout.proteins.fingerprint, "f" * 64):
        config = {
            "model_type": "perturbation-decoder",
            "backbone": LLAMA,
            "cell_encoder": {"fingerprint": layout.cell_embeddings.fingerprint},
            "protein_encoder": {"fingerprint": protein},
        }
        (base / "config.json").write_text(json.dumps(config))
        assert on_base(tmp_path, base)["problems"] == []


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("decoder.backbone.model_type=lama", r"transformers knows no such model; did you mean llama\?"),
        (
            "decoder.backbone.hiden_size=32",
            r"decoder.backbone.hiden_size: no key of llama's config \(did you mean hidden_size",
        ),
    ],
)
def test_a_misspelt_backbone_is_a_problem(tmp_path, override, said):
    (problem,) = make_plan(load_recipe(write_recipe(tmp_path), [override]), 1)["problems"]
    assert re.search(said, problem)
