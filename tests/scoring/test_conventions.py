"""What presets take from the scorers' settings and catalogs is in conventions.json; a release that changes it fails.

    PYTHONPATH=. python tests/scoring/test_conventions.py     # writes the file anew

Where numbers change, raise the version of the preset.
"""

import importlib.util
import inspect
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from vcc_fm.recipe.parts import PRESETS
from vcc_fm.scoring.preset import preset_named
from vcc_fm.scoring.presets.full import TOGETHER, UNDIRECTED, Full

STORED = Path(__file__).with_name("conventions.json")


def defaults(function):
    """Parameter -> its default, of those that have one."""
    parameters = inspect.signature(function).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}


def catalog(names):
    """What cell-eval2 says of its metrics, but for code and texts."""
    from cell_eval2.catalog import CATALOG
    from cell_eval2.catalog_text import metric_text

    by_v1_name = {spec.v1_name: spec for spec in CATALOG.values() if spec.v1_name}
    fields = ("name", "kind", "normalization", "agg", "worst_value", "needs_moments", "version", "tolerance")
    found = {}
    for name in names:
        spec = CATALOG.get(name) or by_v1_name[name]
        found[name] = {field: getattr(spec, field) for field in fields} | {"scoring": asdict(spec.scoring)}
        found[name]["gate"] = asdict(spec.real_gate) if spec.real_gate else None
        found[name]["derived"] = asdict(spec.derived) if spec.derived else None
        found[name]["label"] = metric_text(spec.name).display_name
    return found


def cell_eval():
    """What cell-eval says of the three metrics, and what it hands to pdex where it is told nothing."""
    from cell_eval import MetricsEvaluator, metrics_registry
    from cell_eval._evaluator import _build_pdex_kwargs

    found = {}
    for name in PRESETS["vcc2025-today"].metrics:
        metric = metrics_registry.get_metric(name)
        found[name] = {"type": metric.type.name, "best": metric.best_value.name, "kwargs": metric.kwargs}
    return {
        "metrics": found,
        "pdex": _build_pdex_kwargs("control", "perturbation", 1, allow_discrete=False),
        "evaluator": defaults(MetricsEvaluator.__init__),
    }


def found_of(preset):
    """What the installed scorer says."""
    from cell_eval2.baseline import build_baseline_prediction, generic_response_profile
    from pdex import pdex

    ours = preset_named(preset)
    found = {"parameters": ours.parameters(), "pdex": defaults(pdex)}
    if preset == "vcc2025-today":
        return found | {"cell-eval": cell_eval()}
    if preset in ("myllia", "cz"):
        return {"parameters": found["parameters"]}
    if preset in ("full", "delta"):
        found["mean response"] = defaults(generic_response_profile) | defaults(build_baseline_prediction)
    if preset == "delta":
        # The versions of what it calls are in the table; they are no convention.
        kept = {
            name: text for name, text in found["parameters"].items() if "by" not in name and name != "mean_response"
        }
        return found | {"parameters": kept}
    return found | {"metrics": catalog(ours.metrics)}


def flat(content, path=""):
    """Path -> value of every leaf of a nested dictionary."""
    if not isinstance(content, dict):
        return {path: content}
    return {key: leaf for name, inner in content.items() for key, leaf in flat(inner, f"{path}/{name}").items()}


@pytest.mark.parametrize("preset", PRESETS.names())
def test_a_dependency_measures_what_it_measured(preset):
    if preset == "vcc2025-today" and importlib.util.find_spec("cell_eval") is None:
        pytest.skip("needs cell-eval: pip install -e '.[submit]'")
    if preset == "cz" and importlib.util.find_spec("czbenchmarks") is None:
        pytest.skip("needs cz-benchmarks: pip install -e '.[cz]'")
    stored = flat(json.loads(STORED.read_text())[preset])
    found = flat(json.loads(json.dumps(found_of(preset))))
    changed = [
        f"{preset}{path}: {stored.get(path, 'absent')!r} became {found.get(path, 'absent')!r}"
        for path in sorted(stored.keys() | found.keys())
        if stored.get(path, "absent") != found.get(path, "absent")
    ]
    assert not changed, "\n".join(changed)


def test_the_contests_convention_is_the_preset_of_that_name():
    from cell_eval2 import EvalConfig

    with pytest.warns(FutureWarning, match="preset 'v1' is deprecated"):
        preset = EvalConfig.from_preset("v1")
    assert preset.to_dict() == EvalConfig.v1().to_dict()


def test_full_lists_the_scorers_metrics_with_its_directions_and_labels():
    from cell_eval2.catalog import CATALOG, resolve_metrics
    from cell_eval2.catalog_text import metric_text

    assert list(Full.metrics) == resolve_metrics("full", version="v2")[0]
    for name, metric in Full.metrics.items():
        scoring = CATALOG[name].scoring
        assert metric.label == metric_text(name).display_name
        assert metric.low_is_good == (scoring.direction == "lower"), name
        assert (name in UNDIRECTED) == (not scoring.scored), name
        gate = CATALOG[name].real_gate
        assert (name == TOGETHER) == (gate is not None and gate.kind == "count_corr"), name


def text_of(content):
    """The file: a line for each setting and metric, so that a change is seen as one."""
    presets = []
    for preset, found in content.items():
        rows = {f"{part}/{name}": value for part, inner in found.items() for name, value in inner.items()}
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in rows.items()]
        presets.append(f"{json.dumps(preset)}: {{\n" + ",\n".join(lines) + "\n}")
    return "{" + ",\n".join(presets) + "}\n"


if __name__ == "__main__":
    STORED.write_text(text_of({preset: found_of(preset) for preset in PRESETS.names()}))
