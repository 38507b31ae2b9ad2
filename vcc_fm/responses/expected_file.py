"""Expected responses as a file: all that they are made from, so that a shared model needs no training cells."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from pydantic import BaseModel
from safetensors import safe_open
from safetensors.numpy import save_file

from vcc_fm.ground.errors import reading
from vcc_fm.responses.evidence import Evidence
from vcc_fm.responses.expected import ExpectedResponses
from vcc_fm.responses.responses import Responses, own_genes


class _About(BaseModel):
    """Names of what the arrays hold: groups (context, perturbation), contexts, and genes of each table of vectors."""

    groups: list[tuple[str, str]]
    contexts: list[str]
    tables: list[list[str]]


def save_expected(path: Path, expected: ExpectedResponses) -> None:
    """Write expected responses as safetensors, for :func:`load_expected`."""
    evidence, responses = expected.evidence, expected.responses
    contexts, tables = sorted(evidence.unit), expected.tables
    arrays = {
        "ratio": responses.ratio,
        "precision": responses.precision,
        "depth": evidence.depth,
        "control_depth": np.array([evidence.control_depth[context] for context in contexts]),
        "unit": np.stack([evidence.unit[context] for context in contexts]),
    }
    arrays |= {f"table {i}": np.stack(list(table.values())) for i, table in enumerate(tables)}
    about = _About(groups=list(evidence.groups), contexts=contexts, tables=[list(table) for table in tables])
    save_file(arrays, path, {"about": about.model_dump_json()})


def load_expected(path: Path, genes: list[str], separator: str) -> ExpectedResponses:
    """Read what :func:`save_expected` wrote.

    Args:
        path: of the file.
        genes: gene axis, [G].
        separator: what joins the target genes of a combination.

    Raises:
        UserError: the file is no such one, is of another gene axis, or holds what cannot be.
    """
    with reading(path, "responses"), safe_open(path, "np") as file:
        about = _About.model_validate(json.loads(file.metadata()["about"]))
        groups, contexts = about.groups, about.contexts
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("ratio", "precision"), (len(groups), len(genes)))
        shapes |= {"depth": (len(groups),), "control_depth": (len(contexts),), "unit": (len(contexts), len(genes))}
        for name, shape in shapes.items():  # by its header alone
            if (found := tuple(file.get_slice(name).get_shape())) != shape:
                raise ValueError(f"{name} is {found} where {len(groups)} groups on {len(genes)} genes are expected")
        arrays = {name: file.get_tensor(name) for name in shapes}
        tables = [dict(zip(names, file.get_tensor(f"table {i}"), strict=True)) for i, names in enumerate(about.tables)]
        for name, array in [*arrays.items(), *((f"table {i}", np.stack([*t.values()])) for i, t in enumerate(tables))]:
            if not np.isfinite(array).all():
                raise ValueError(f"{name} is not finite")
            if name not in ("ratio", "precision") and not name.startswith("table") and not (array > 0).all():
                raise ValueError(f"{name} is not above zero")
        if (arrays["precision"] < 0).any():
            raise ValueError("a precision is below zero")
        if unknown := {context for context, _ in groups} - set(contexts):
            raise ValueError(f"nothing is known of the control cells of {min(unknown)}")
    responses = Responses(
        groups, arrays["ratio"], arrays["precision"], own_genes({label for _, label in groups}, separator, genes)
    )
    control_depth = dict(zip(contexts, arrays["control_depth"].tolist(), strict=True))
    unit = dict(zip(contexts, arrays["unit"], strict=True))
    evidence = Evidence.from_responses(responses, arrays["depth"], control_depth, unit)
    axis = {gene: place for place, gene in enumerate(genes)}
    return ExpectedResponses(responses, evidence, lambda label: label.split(separator), tables, axis)
