"""Every refusal that a stage can make is in one of two columns: `plan` makes it, or no plan could.

A refusal that is in neither, because somebody wrote a new one, fails the first test.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from refusals import CASES, Case, write_inputs

from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.read import load_recipe
from vcc_fm.run.plan import make_plan

ROOT = Path(__file__).parents[1] / "vcc_fm"

OTHERS = (
    "inspection",
    "cli",
    "encoders.images.encoder",
    "encoders.images.slide",
    "pipeline",
    "run.export",
    "run.plan",
    "run.plan_checks",
    "run.plan_decoder",
    "run.seeds",
    "run.submission",
    "scoring.compare",
    "scoring.cz",
    "scoring.presets.myllia",
    "scoring.seeds",
    "scoring.worlds",
    "slides",
    "store.verify",
    "submission",
)
"""Rooms and modules whose refusals no stage of a screen makes: other commands, the plan, and recipes on slides, of
which no plan is made."""

REASONS = {
    "values": "follows from the counts, which a plan does not read",
    "weights": "follows from what is in a checkpoint's weights and beside them",
    "made": "speaks of what an earlier stage made",
    "shared": "speaks of a shared model, which no recipe names",
    "machine": "speaks of the machine: network, memory, other processes",
    "command": "of the command line or the YAML, before there is a recipe to plan",
    "ruled out": "cannot happen in a run: the recipe's types or the reading of labels rule it out",
}

REFUSALS: dict[str, tuple[int, int, str]] = {
    "baselines.oracles.Oracle.truth": (0, 1, "made"),
    "splits.cell_load_table._context": (4, 0, ""),
    "splits.cell_load_table._fewshot_lists": (3, 0, ""),
    "splits.cell_load_table._load": (2, 0, ""),
    "splits.cell_load_table._mapping": (1, 0, ""),
    "splits.cell_load_table._trained_datasets": (2, 0, ""),
    "splits.cell_load_table._trains": (1, 0, ""),
    "splits.cell_load_table._zeroshot": (2, 0, ""),
    "splits.cell_load_table.read_cell_load_table": (3, 0, ""),
    "cellsets.dataset.Dataset.__post_init__": (0, 1, "made"),
    "splits.groups.training_groups": (3, 0, ""),
    "splits.groups.validation_groups": (1, 0, ""),
    "splits.hold_out._check": (2, 0, ""),
    "splits.hold_out._choose": (1, 0, ""),
    "splits.hold_out._hold_out_perturbations": (1, 0, ""),
    "splits.hold_out._known_contexts": (1, 0, ""),
    "splits.hold_out._refuse_overlap": (1, 0, ""),
    "splits.hold_out._refuse_unknown": (2, 0, ""),
    "splits.hold_out._targets": (1, 0, ""),
    "splits.hold_out.make_splits": (1, 0, ""),
    "splits.split.Split.read": (0, 3, "made"),
    "cellsets.targets.protein_coverage": (1, 0, ""),
    "cellsets.targets.require_vectors": (1, 0, ""),
    "decoder.adapter._lora_config": (0, 1, "shared"),
    "decoder.adapter.load_adapter": (0, 3, "shared"),
    "decoder.arc_st.ArcSt._config": (1, 0, ""),
    "decoder.arc_st.ArcSt._encoded": (0, 1, "weights"),
    "decoder.arc_st.ArcSt._layers": (0, 3, "weights"),
    "decoder.arc_st.ArcSt._tensors": (0, 1, "weights"),
    "decoder.arc_st.ArcSt.backbone": (3, 0, ""),
    "decoder.arc_st.find_st": (2, 0, ""),
    "decoder.config.check_backbone": (3, 0, ""),
    "decoder.config.unfit": (1, 0, ""),
    "decoder.four_bit.require_bitsandbytes": (1, 0, ""),
    "decoder.graphs._record": (0, 1, "machine"),
    "decoder.load._headers": (0, 1, "weights"),
    "decoder.load._load": (0, 3, "weights"),
    "decoder.load.base_config": (3, 0, ""),
    "decoder.load.check_weights": (0, 1, "weights"),
    "decoder.load.compare": (0, 1, "weights"),
    "decoder.load.load_backbone": (0, 1, "weights"),
    "decoder.load.load_decoder": (0, 1, "weights"),
    "decoder.load.local_model": (1, 0, ""),
    "decoder.lora._check": (1, 0, ""),
    "decoder.lora._check_4_bits": (2, 0, ""),
    "decoder.model.SetDecoder.from_pretrained": (0, 1, "weights"),
    "encoders.cells.expression.Expression.check": (1, 0, ""),
    "encoders.cells.expression.ExpressionEncoder.load": (0, 2, "made"),
    "encoders.cells.state_se.vocabulary_coverage": (0, 1, "weights"),
    "encoders.cells.state_se_decoder.StateSeGeneDecoder.decode": (0, 1, "weights"),
    "encoders.cells.state_se_decoder.StateSeGeneDecoder.from_tensors": (0, 2, "weights"),
    "encoders.cells.state_se_decoder._load": (0, 2, "weights"),
    "encoders.cells.state_se_decoder._matrix": (0, 2, "weights"),
    "encoders.cells.state_se_geometry.SeGeometry.from_shapes": (0, 4, "weights"),
    "encoders.cells.state_se_geometry.SeGeometry.from_shapes.size": (0, 2, "weights"),
    "encoders.cells.state_se_tokens.Tokenizer.__init__": (2, 2, "weights"),
    "encoders.cells.state_se_tokens.Tokenizer._refuse": (0, 3, "weights"),
    "encoders.cells.state_se_tokens.match_genes": (0, 1, "weights"),
    "encoders.cells.state_se_weights._address": (1, 0, ""),
    "encoders.cells.state_se_weights._check_settings": (0, 1, "weights"),
    "encoders.cells.state_se_weights._check_values": (0, 3, "weights"),
    "encoders.cells.state_se_weights._compare": (0, 2, "weights"),
    "encoders.cells.state_se_weights._find": (3, 0, ""),
    "encoders.cells.state_se_weights._heads": (0, 1, "weights"),
    "encoders.cells.state_se_weights._read_lightning": (1, 0, ""),
    "encoders.cells.state_se_weights._weights_in": (2, 0, ""),
    "encoders.cells.state_se_weights.read_width": (2, 0, ""),
    "encoders.cells.stored.StoredCells._store": (0, 1, "made"),
    "encoders.cells.stored.StoredCells.load": (0, 1, "made"),
    "encoders.proteins.composition.Composition.encode": (0, 1, "ruled out"),
    "encoders.proteins.esm2_encoder.choose_dtype": (0, 1, "ruled out"),
    "encoders.proteins.esm2_encoder.choose_layer": (1, 0, ""),
    "encoders.proteins.esm2_fair_esm._build": (0, 3, "weights"),
    "encoders.proteins.esm2_fair_esm._read": (4, 0, ""),
    "encoders.proteins.esm2_fair_esm.load_fair_esm": (1, 0, ""),
    "encoders.proteins.esm2_tokens.check_sequences": (0, 1, "ruled out"),
    "encoders.proteins.esm2_transformers._config": (3, 0, ""),
    "encoders.proteins.esm2_transformers._find": (2, 0, ""),
    "encoders.proteins.esm2_transformers._weights": (0, 3, "weights"),
    "encoders.proteins.stored.StoredProteins._store": (0, 1, "made"),
    "encoders.proteins.table.read_pt": (1, 0, ""),
    "encoders.proteins.token_batches.plan_shards": (1, 0, ""),
    "encoders.proteins.windows.cut_windows": (1, 0, ""),
    "encoders.torch_file.load_plain": (4, 0, ""),
    "encoders.torch_file.symbol_vectors": (4, 0, ""),
    "ground.errors.asked_by": (1, 0, ""),
    "ground.errors.reading": (1, 0, ""),
    "ground.files.one_writer": (0, 1, "machine"),
    "ground.files.read_json": (0, 1, "made"),
    "ground.files.unsealed": (0, 1, "made"),
    "ground.hub._explained": (0, 8, "machine"),
    "ground.paths.expand": (3, 0, ""),
    "ground.processes.check_compiler": (0, 1, "machine"),
    "hub.bundle._check": (0, 6, "shared"),
    "hub.bundle._write_weights": (0, 1, "made"),
    "hub.bundle.merge_bundle": (0, 1, "shared"),
    "hub.bundle.read_bundle": (0, 5, "shared"),
    "hub.licences.require_accepted": (1, 0, ""),
    "prediction.asking._of": (4, 0, ""),
    "prediction.asking.asked_for": (1, 0, ""),
    "prediction.asking.read_perturbations": (5, 0, ""),
    "prediction.emit._integers": (0, 1, "values"),
    "prediction.predictors.DecoderPredictor.__init__": (0, 1, "made"),
    "recipe.read._Loader.construct_mapping": (0, 2, "command"),
    "recipe.read._apply": (0, 3, "command"),
    "recipe.read._position": (0, 1, "command"),
    "recipe.read.load_any": (5, 0, ""),
    "recipe.read.load_recipe": (0, 1, "command"),
    "recipe.train.TrainConfig.check_processes": (2, 0, ""),
    "recipe.train.TrainConfig.check_tracker": (0, 1, "machine"),
    "run.inputs.base_address": (1, 0, ""),
    "run.inputs.protein_fasta": (1, 0, ""),
    "run.launch._judge": (0, 3, "machine"),
    "run.outputs.Output.require": (0, 1, "made"),
    "run.outputs.check_outputs": (0, 2, "made"),
    "run.prepare._check_read": (0, 1, "command"),
    "run.prepare._take_store": (0, 1, "made"),
    "run.prepare.check_sources": (0, 1, "made"),
    "run.share._check_base": (0, 1, "made"),
    "run.share.share_run": (0, 3, "shared"),
    "splits.hold_out.among_combinations": (1, 0, ""),
    "run.stages.stage_named": (0, 1, "command"),
    "run.train._judge.judge": (0, 1, "values"),
    "scoring.inputs._check_counts": (1, 4, "made"),
    "scoring.inputs._open": (0, 1, "made"),
    "scoring.inputs.check_groups": (1, 0, ""),
    "scoring.inputs.check_measured": (1, 0, ""),
    "scoring.inputs.check_pair": (0, 4, "made"),
    "scoring.inputs.read_labels": (0, 3, "made"),
    "scoring.preset.preset_named": (0, 2, "made"),
    "scoring.score._checked": (1, 0, ""),
    "scoring.table.read_table": (0, 1, "made"),
    "sources.alignment.open_sources": (1, 0, ""),
    "sources.anndata_file._hdf5": (0, 2, "machine"),
    "sources.anndata_file._root": (3, 0, ""),
    "sources.anndata_file.locate": (2, 0, ""),
    "sources.anndata_file.open_file": (1, 0, ""),
    "sources.anndata_file.read_table": (1, 0, ""),
    "sources.anndata_source.AnnDataSource.__init__": (1, 0, ""),
    "sources.anndata_source.AnnDataSource._as_matrix": (0, 1, "values"),
    "sources.anndata_source.AnnDataSource._find_reading": (2, 0, ""),
    "sources.anndata_source.AnnDataSource._refusal": (2, 0, ""),
    "sources.anndata_source.AnnDataSource._summed": (0, 1, "values"),
    "sources.anndata_source.AnnDataSource._too_few": (0, 1, "values"),
    "sources.anndata_source.AnnDataSource.sha256": (0, 1, "values"),
    "sources.controls.require_controls": (1, 0, ""),
    "sources.download._check_address": (3, 0, ""),
    "sources.download._check_content": (0, 3, "machine"),
    "sources.download._check_public": (0, 1, "machine"),
    "sources.download._download": (0, 4, "machine"),
    "sources.download.check_sha256": (1, 0, ""),
    "sources.download.fetch": (0, 1, "machine"),
    "sources.fasta._entries": (1, 0, ""),
    "sources.fasta._of_other_organisms": (1, 0, ""),
    "sources.fasta._parse": (1, 0, ""),
    "sources.genes._text": (2, 0, ""),
    "sources.genes.gene_axis": (2, 0, ""),
    "sources.genes.gene_columns": (2, 0, ""),
    "sources.genes.read_axis": (4, 0, ""),
    "sources.inside.check_folder": (1, 0, ""),
    "sources.inside.check_hdf5": (1, 0, ""),
    "sources.inside.check_lengths": (1, 0, ""),
    "sources.labels._check_columns": (1, 0, ""),
    "sources.labels._check_controls": (1, 0, ""),
    "sources.labels._keep": (2, 0, ""),
    "sources.labels.column_labels": (1, 0, ""),
    "sources.labels._with_guides": (2, 0, ""),
    "sources.matrix.CscMatrix._turn": (0, 1, "machine"),
    "sources.matrix._check_kind": (1, 0, ""),
    "sources.matrix._check_range": (0, 1, "values"),
    "sources.matrix._checked_indptr": (2, 0, ""),
    "sources.matrix._open": (2, 0, ""),
    "sources.perturbations._check_texts": (2, 0, ""),
    "sources.perturbations.read_perturbations": (4, 0, ""),
    "sources.remote.open_local": (3, 0, ""),
    "sources.remote.read_bytes": (2, 0, ""),
    "sources.simulate._check": (5, 0, ""),
    "sources.symbol_files._read": (1, 0, ""),
    "sources.truth.read_truth": (0, 1, "made"),
    "sources.symbols.coverage": (2, 0, ""),
    "sources.totals._read": (2, 0, ""),
    "sources.totals.read_totals": (1, 0, ""),
    "sources.zarr_array.check_chunks": (2, 0, ""),
    "store.cell_table._check_controls": (1, 0, ""),
    "store.cell_table._unified": (1, 0, ""),
    "store.description.damaged": (0, 1, "made"),
    "store.description.read_store_json": (0, 1, "made"),
    "store.first_pass._check_depth": (0, 1, "values"),
    "store.kept._Decision.rows": (0, 2, "values"),
    "store.prepare.read_source": (0, 1, "command"),
    "store.shared.local_store": (2, 0, ""),
    "training.accelerator._check_engine": (0, 4, "machine"),
    "training.accelerator._check_fits": (0, 2, "machine"),
    "training.accelerator._deepspeed": (0, 3, "machine"),
    "training.accelerator.make_accelerator": (0, 2, "machine"),
    "training.checkpoint.Checkpoints._check_engine": (0, 1, "machine"),
    "training.checkpoint.Checkpoints.best": (0, 1, "made"),
    "training.checkpoint.Checkpoints.resume": (0, 1, "made"),
    "training.checkpoint.Checkpoints.save_best": (0, 1, "values"),
    "training.loop.Trainer._not_finite": (0, 1, "values"),
}
"""Function -> refusals in it that a plan makes, those that it does not make, and why not.

A plan runs most of these functions itself, on what the stage will run them on: one input of ``CASES`` shows that it
reports what they raise. Those in ``REPEATED`` it cannot run, and looks for the same mistake on its own.
"""

REPEATED = {
    "encoders.cells.state_se_tokens.Tokenizer.__init__", "encoders.proteins.esm2_fair_esm.load_fair_esm",
    "scoring.inputs._check_counts", "scoring.score._checked", "sources.anndata_file.open_file",
}  # fmt: skip


def refusals(node: ast.AST, name: str) -> Iterator[str]:
    """The function around each ``UserError(...)``, as a dotted name, wherever in the source it is made."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from refusals(child, f"{name}.{child.name}")
        else:
            if isinstance(child, ast.Call) and isinstance(child.func, ast.Name) and child.func.id == "UserError":
                yield name
            yield from refusals(child, name)


def of_stages() -> Counter[str]:
    """Function -> number of refusals in it, of all modules that stages run."""
    found: Counter[str] = Counter()
    for file in sorted(ROOT.rglob("*.py")):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        if module not in OTHERS and module.partition(".")[0] not in OTHERS:
            found.update(refusals(ast.parse(file.read_text(encoding="utf-8")), module))
    return found


def planned(folder: Path, content: dict[str, Any]) -> list[str]:
    """What stands in the way of a recipe: why it cannot be read, or the plan's problems."""
    path = folder / "case.yaml"
    path.write_text(yaml.safe_dump(content))
    try:
        return make_plan(load_recipe(path), 1)["problems"]
    except UserError as error:
        return [str(error)]


def test_every_refusal_is_made_by_the_plan_or_has_a_reason_why_not():
    found = of_stages()
    unsorted = {name: number for name, number in found.items() if number != sum(REFUSALS.get(name, (0, 0))[:2])}
    assert not unsorted, "new refusals: let the plan make them, with a case in refusals.py, or say why it cannot"
    assert REFUSALS.keys() == found.keys(), "refusals that are gone"
    assert {name for name, (made, _, _) in REFUSALS.items() if made} == {case.by for case in CASES}
    assert {why for _, later, why in REFUSALS.values() if later} <= REASONS.keys()


def test_a_new_refusal_is_seen_wherever_it_stands():
    source = "class A:\n def f(self):\n  if 1:\n   raise UserError('x')\n  return [UserError(f'{1}')]\n"
    assert list(refusals(ast.parse(source), "m")) == ["m.A.f", "m.A.f"]


def test_nothing_stands_in_the_way_of_what_the_cases_break(tmp_path):
    assert planned(tmp_path, write_inputs(tmp_path)) == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.by)
def test_the_plan_makes_the_refusal(case: Case, tmp_path, monkeypatch):
    content = write_inputs(tmp_path)
    case.edit(tmp_path, content)
    # As if it was not installed, which one case is about and none needs.
    monkeypatch.setattr("vcc_fm.decoder.four_bit.find_spec", lambda name: None)
    raised = []

    def record(self: UserError, *texts: str) -> None:
        frame = sys._getframe(1)
        raised.append(f"{frame.f_globals['__name__'].removeprefix('vcc_fm.')}.{frame.f_code.co_qualname}")
        Exception.__init__(self, *texts)

    monkeypatch.setattr(UserError, "__init__", record)
    problems = planned(tmp_path, content)
    assert [problem for problem in problems if case.said in problem], problems
    assert case.by in raised or case.by in REPEATED or raised == ["recipe.read.load_any"], raised
