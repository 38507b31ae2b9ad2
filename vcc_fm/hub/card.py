"""Model and dataset cards: what a stranger must know, filled from the run itself.

Names come from files of others: what would be markup is written out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import DatasetCardData, EvalResult, ModelCardData

from vcc_fm.hub.licences import Ancestor
from vcc_fm.scoring.means import ALL
from vcc_fm.scoring.table import ScoreTable, number

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|!~$&])")
TAGS = ["biology", "single-cell", "perturb-seq", "perturbation-prediction", "virtual-cell", "vcc_fm"]


SIMULATED = "**All cells of this model are simulated.** It shows how the program works, nothing of biology."
LIMITS = [
    "## What it does not predict",
    "",
    "- Genes that the axis lacks, or that your control cells did not measure.",
    "- Target genes without a protein vector in this repository: they are refused by name.",
    "- A perturbation's efficiency, guide effects, doses and times: a label is a set of target genes.",
    "- Effects beyond what the training perturbations show: compare with the baselines above, which need no training, "
    "before you trust a number.",
]


@dataclass(frozen=True)
class Run:
    """What a card says of a run.

    Attributes:
        name: of the recipe.
        simulated: whether all cells are simulated.
        contexts: context -> numbers of perturbations, of perturbed cells, and of control cells.
        genes: on the axis.
        held_out: how groups were held out, in a sentence.
        scores: its table; None where it was not scored.
        cost: what -> how much, in words.
        versions: package -> version.
        warnings: what a reader of the scores should know.
    """

    name: str
    simulated: bool
    contexts: Mapping[str, tuple[int, int, int]]
    genes: int
    held_out: str
    scores: ScoreTable | None
    cost: Mapping[str, str]
    versions: Mapping[str, str]
    warnings: Sequence[str]


def model_card(
    repo: str,
    run: Run,
    ancestors: Sequence[Ancestor],
    licence: str | None,
    base: str,
    with_data: bool,
    context: str,
    asked: Sequence[str],
) -> str:
    """The README of a model's repository.

    Args:
        repo: ``ORG/NAME``.
        run: what to say.
        ancestors: what the model was made from.
        licence: of the model, as the Hub names it.
        base: Hub id of the base; empty where there is none.
        with_data: whether the dataset of that name holds its stores.
        context: one whose control cells are shared, for the example; empty where none are.
        asked: perturbations of the example.
    """
    lines = [
        f"# {plain(run.name)}",
        "",
        "Predicts the single cells, as integer counts, that follow a genetic perturbation: from control cells of a "
        f"context and the names of target genes, on {run.genes:,} genes.",
        *(["", SIMULATED] if run.simulated else []),
        "",
        *_use(run, repo, context, asked),
        "## Scores",
        "",
        *_scores(run),
        "",
        "## Trained on",
        "",
        *_cells(run, "training perturbations", "training cells"),
        "",
        run.held_out,
        *(f"- {plain(warning)}" for warning in run.warnings),
        "",
        *LIMITS,
        "",
        *_cost(run),
        *_terms(ancestors),
    ]
    data = ModelCardData(
        **_licence(licence, ancestors),
        library_name="vcc_fm",
        tags=[*TAGS, *(["simulated-data"] if run.simulated else [])],
        base_model=base or None,
        datasets=[repo] if with_data else None,
        pipeline_tag="other",
        model_name=run.name,
        eval_results=_results(run) or None,
    )
    return _card(data.to_yaml(), lines)


def _use(run: Run, repo: str, context: str, asked: Sequence[str]) -> list[str]:
    return [
        "## Use",
        "",
        *_example(repo, context, asked),
        "",
        f"This needs the package `vcc_fm` (made with {run.versions.get('vcc-fm', 'a version that is not known')}). No "
        "code of this repository is run, and nothing in it is pickled.",
        "",
    ]


def _example(repo: str, context: str, asked: Sequence[str]) -> list[str]:
    """Code that predicts; names stand in it as Python writes strings."""
    ours = f"controls = pipeline.control_cells({context!r})  # or your own AnnData of control cells"
    yours = 'controls = anndata.read_h5ad("controls.h5ad")  # your control cells: counts, gene symbols in var_names'
    return [
        "```python",
        *([] if context else ["import anndata"]),
        "from vcc_fm import PerturbationPipeline",
        "",
        f'pipeline = PerturbationPipeline.from_pretrained("{repo}")',
        ours if context else yours,
        f"predicted = pipeline(controls, {list(asked)!r}, cells=100)",
        "print(predicted)",
        "```",
    ]


def dataset_card(
    repo: str, run: Run, ancestors: Sequence[Ancestor], licence: str | None, configs: Mapping[str, str]
) -> str:
    """The README of a dataset's repository.

    Args:
        repo: ``ORG/NAME``.
        run: what to say.
        ancestors: what the stores were made from.
        licence: as the Hub names it.
        configs: name -> pattern of the data files, the first one being what is loaded without a name.
    """
    listed = [
        {"config_name": name, "data_files": pattern, **({"default": True} if place == 0 else {})}
        for place, (name, pattern) in enumerate(configs.items())
    ]
    data = DatasetCardData(
        **_licence(licence, ancestors),
        pretty_name=run.name,
        tags=[*TAGS, *(["simulated-data"] if run.simulated else [])],
        configs=listed or None,
    )
    first = next(iter(configs), None)
    lines = [
        f"# {plain(run.name)}",
        "",
        f"Cells, embeddings and predictions of a run of `vcc_fm`, on {run.genes:,} genes.",
        *(["", "**All cells are simulated.**"] if run.simulated else []),
        "",
        "## Use",
        "",
        *(
            [
                "```python",
                "from datasets import load_dataset",
                "",
                f'data = load_dataset("{repo}", "{first}", split="train")',
                "print(data)",
                "```",
                "",
                "| part | what a row is |",
                "|---|---|",
                *(f"| `{name}` | {ROWS[name]} |" for name in configs),
                "",
            ]
            if first
            else []
        ),
        f"`vcc-fm pull {repo} --dataset` fetches everything, for `vcc-fm verify` and for recipes.",
        "",
        "## Cells",
        "",
        *_cells(run, "perturbations", "perturbed cells"),
        "",
        *_terms(ancestors),
    ]
    return _card(data.to_yaml(), lines)


ROWS = {
    "cells": "a cell: positions on the gene axis and counts, depth, context, batch, perturbation, barcode; the axis "
    "is `genes` of `cells/store.json`",
    "cell-embeddings": "a cell's barcode and vector",
    "proteins": "a gene's symbol and the vector of its protein",
}
"""Config of a dataset -> what a row is."""


def plain(text: str) -> str:
    """Text of others as Markdown shows it letter by letter."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split())).replace("\\<", "&lt;").replace("\\>", "&gt;")


def _card(metadata: str, lines: Iterable[str]) -> str:
    return f"---\n{metadata}\n---\n\n" + "\n".join(lines).rstrip() + "\n"


def _licence(licence: str | None, ancestors: Sequence[Ancestor]) -> dict[str, Any]:
    """Metadata: the terms of others go before those that the owner names."""
    limiting = sorted({one.name for one in ancestors if one.limits})
    if limiting:
        return {"license": "other", "license_name": f"terms-of-{'-and-'.join(limiting)}", "license_link": "LICENSES"}
    return {"license": licence} if licence else {"license": "other", "license_name": "see-licenses"}


def _results(run: Run) -> list[EvalResult]:
    """The model's scaled mean, and its raw metrics as means over contexts."""
    table = run.scores
    if table is None:
        return []
    about: dict[str, Any] = {
        "task_type": "other",
        "task_name": "perturbation prediction",
        "dataset_type": run.name,
        "dataset_name": f"{run.name}, held-out groups",
        "metric_config": f"{table.scorer} {table.version}, preset {table.preset}",
    }
    raw = table.rows[table.rows["entry"] == "model"].groupby("metric")["raw"].mean().dropna().to_dict()
    results = [EvalResult(metric_type=str(name), metric_value=value, **about) for name, value in raw.items()]
    mean = table.mean("model")
    if math.isfinite(mean):
        results.append(EvalResult(metric_type="scaled_mean", metric_value=mean, **about))
    return results


def _scores(run: Run) -> list[str]:
    table = run.scores
    if table is None:
        return ["Not scored."]
    scaled = table.rows.groupby(["entry", "metric"])["scaled"].mean()
    entries = table.means[table.means["context"] == ALL]
    order = ["baseline", "model", "oracle", "ceiling"]
    names = sorted(zip(entries["entry"], entries["kind"], strict=True), key=lambda one: order.index(one[1]))
    texts = table.mean_texts()
    rows = [
        [plain(name), kind, texts[name], *(number(scaled.get((name, metric), math.nan)) for metric in table.labels)]
        for name, kind in names
    ]
    return [
        f"Held-out groups, {table.scorer} {table.version}, preset {table.preset}; scaled so that 0 is "
        f"{plain(table.low)} and 1 is {plain(table.high)}, mean over contexts.",
        "",
        *_table(["entry", "kind", "mean", *map(plain, table.labels.values())], rows),
        *(f"- {plain(line)}" for line in [*table.missing(), *table.notes]),
    ]


def _cells(run: Run, *what: str) -> list[str]:
    rows = [[plain(name), *(f"{value:,}" for value in counts)] for name, counts in run.contexts.items()]
    return _table(["context", *what, "control cells"], rows)


def _cost(run: Run) -> list[str]:
    return [
        "## Cost and environment",
        "",
        *(f"- {plain(what)}: {plain(how)}" for what, how in run.cost.items()),
        f"- versions: {', '.join(f'{name} {version}' for name, version in run.versions.items())}",
        "",
    ]


def _terms(ancestors: Sequence[Ancestor]) -> list[str]:
    citations = sorted({one.citation for one in ancestors if one.citation})
    return [
        "## Terms",
        "",
        "What this was made from; the terms are in `LICENSES/` too, and go along with what you make from it.",
        "",
        *_table(
            ["ancestor", "used as", "licence"], [[plain(one.name), one.role, plain(one.licence)] for one in ancestors]
        ),
        *(["", "Please cite:", "", *(f"- {plain(citation)}" for citation in citations)] if citations else []),
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]
