"""Make splits: which perturbations or contexts are held out, by each way that a recipe may ask for.

The labels chosen depend on the set of labels and on the seed alone, not on their order or on how many cells they have.
"""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.paths import expand
from vcc_fm.ground.words import many
from vcc_fm.recipe.split import SplitConfig
from vcc_fm.sources.controls import contexts_with, require_controls
from vcc_fm.splits.additive import additive_warnings
from vcc_fm.splits.cell_load_table import CellLoadTable, Share, read_cell_load_table
from vcc_fm.splits.split import Group, Role, Roles, Split

_ROLE_OF_SHARE: dict[Share, Role] = {"train": "train", "val": "validation", "test": "test"}


def make_splits(
    config: SplitConfig,
    cells: dict[Group, int],
    control: str,
    separator: str,
    seed: int,
    sources: Mapping[str, Mapping[str, str]] | None = None,
    same: Mapping[str, str] | None = None,
) -> list[Split]:
    """Give every measured group a role.

    Numbers that come from a fraction are rounded, and a fraction above zero takes at least one label. With folds, a
    seeded permutation of the perturbations (or the listed contexts, in their order) is cut into near-equal parts, each
    the test set once, and `test` is not used; labels listed for validation train no fold but are tested in theirs.

    Args:
        config: the recipe's `split` section.
        cells: (context, perturbation) -> number of measured cells, the control's entries among them.
        control: label of control cells.
        separator: what joins the target genes of a combination.
        seed: seed of every choice, not negative.
        sources: context -> the sources that have it, name -> path; only a cell-load table asks for it.
        same: target gene -> one name for all symbols of that gene, where several are in use.

    Returns:
        One split a fold, `config.folds` in all.

    Raises:
        UserError: there is no perturbation; a listed label or context does not exist (the nearest is named) or is the
            control; a label is listed both for test and validation; two labels mean the same target genes; nothing is
            left to test or to train on; a context that is trained on or held out has no control cells; or the
            cell-load table is refused.
    """
    measured = {group: number for group, number in cells.items() if group[1] != control}
    if not measured:
        raise UserError(
            "no perturbation is left to train on or to test: all cells are controls; check perturbation_column and "
            "control, or loosen data.minimum_cells, keep or quality"
        )
    config = among_combinations(config, {label for _, label in measured}, separator, seed)
    labels_of = _labels_of(measured)
    targets = _targets({label for _, label in measured}, control, separator, same or {})
    notes: list[str] = []

    if config.hold_out in _KINDS:
        divisions = _KINDS[config.hold_out](config, labels_of, control, seed)
    else:
        assert config.table is not None
        path = expand(config.table)
        table = read_cell_load_table(path, {context: (sources or {}).get(context, {}) for context in labels_of})
        divisions, notes = [_hold_out_table(path, table, labels_of, control)], table.warnings

    splits = []
    for fold, roles in enumerate(divisions):
        _check(config, roles, cells, control)
        split = Split(config.hold_out, fold, config.folds, seed, roles, measured, [])
        splits.append(replace(split, warnings=notes + _warnings(config, split, targets)))
    return splits


def among_combinations(config: SplitConfig, labels: Iterable[str], separator: str, seed: int) -> SplitConfig:
    """The section with its test perturbations by label, where they are chosen among combinations; else as it is.

    Args:
        config: the recipe's ``split`` section.
        labels: of all measured perturbations.
        separator: what joins the target genes of a combination.
        seed: of the choice.

    Raises:
        UserError: there are fewer such combinations than are asked for.
    """
    if config.test_among == "all" or isinstance(config.test, list):
        return config
    measured = set(labels)
    targets = {label: label.split(separator) for label in sorted(measured)}
    found = [label for label, genes in targets.items() if len(genes) > 1 and measured.issuperset(genes)]
    wanted = config.test if isinstance(config.test, int) else round(config.test * len(found))
    if not 0 < wanted <= len(found):
        raise UserError(
            f"split.test={config.test} with split.test_among=combinations: {many(len(found), 'combination')} with all "
            "single perturbations measured; ask for one at least, and not more than there are"
        )
    chosen = np.random.default_rng(seed).permutation(found)[:wanted].tolist()
    return config.model_copy(update={"test": sorted(chosen), "test_among": "all"})


def _labels_of(groups: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """Context -> its perturbations."""
    labels_of: dict[str, set[str]] = defaultdict(set)
    for context, label in groups:
        labels_of[context].add(label)
    return labels_of


def _warnings(config: SplitConfig, split: Split, targets: dict[str, frozenset[str]]) -> list[str]:
    """What a reader of the scores should know of a split."""
    warnings = additive_warnings(split.groups("train"), split.groups("validation") + split.groups("test"), targets)
    if config.hold_out == "table" and "validation" in config.model_fields_set:
        warnings.append(
            f"split.validation={config.validation} changes nothing: with hold_out=table the table says which "
            f"groups validate, here {len(split.groups('validation')) or 'none'}"
        )
    return warnings


# ------------------------------------------------------------------------------------------------------ kinds of split
def _hold_out_perturbations(
    config: SplitConfig, labels_of: dict[str, set[str]], control: str, seed: int
) -> list[Roles]:
    labels = set[str]().union(*labels_of.values())
    if config.folds > len(labels):
        raise UserError(f"split.folds={config.folds} is more than the {len(labels)} perturbations there are")
    if config.folds == 1:
        tests = [_choose(config.test, labels, seed, "test", "split.test", control)]
        _refuse_overlap(config)
    else:
        tests = [set(part.tolist()) for part in np.array_split(_permuted(labels, seed, "folds"), config.folds)]
    divisions = []
    for fold, test in enumerate(tests):
        validation = _choose_validation(config, labels, test, seed, f"validation {fold}", control)
        divisions.append(
            {(context, label): _role(label, test, validation) for context in labels_of for label in labels_of[context]}
        )
    return divisions


def _hold_out_contexts(config: SplitConfig, labels_of: dict[str, set[str]], control: str, seed: int) -> list[Roles]:
    _known_contexts(config.contexts, labels_of)
    groups = {(context, label) for context, labels in labels_of.items() for label in labels}
    divisions = []
    for fold, held in enumerate(np.array_split(np.array(config.contexts, dtype=object), config.folds)):
        rest = {group for group in groups if group[0] not in held}
        purpose = "validation" if config.folds == 1 else f"validation {fold}"
        roles: Roles = dict.fromkeys(groups, "test")
        divisions.append({**roles, **_train_on(config, rest, control, seed, purpose)})
    return divisions


def _hold_out_nothing(config: SplitConfig, labels_of: dict[str, set[str]], control: str, seed: int) -> list[Roles]:
    groups = {(context, label) for context, labels in labels_of.items() for label in labels}
    return [_train_on(config, groups, control, seed, "validation")]


def _train_on(config: SplitConfig, groups: set[Group], control: str, seed: int, purpose: str) -> Roles:
    """Groups train, but for the validation share of them."""
    if isinstance(config.validation, list):
        _refuse_unknown(config.validation, {label for _, label in groups}, "split.validation", control)
        validation = {group for group in groups if group[1] in config.validation}
    else:
        validation = _choose_groups(config.validation, groups, seed, purpose)
    return {**dict.fromkeys(groups, "train"), **dict.fromkeys(validation, "validation")}


def _hold_out_few_shot(config: SplitConfig, labels_of: dict[str, set[str]], control: str, seed: int) -> list[Roles]:
    # One choice for all target contexts: what is test in one of them is not learned from another.
    held = _known_contexts(config.contexts, labels_of)
    labels = set[str]().union(*(labels_of[context] for context in held))
    test = _choose(config.test, labels, seed, "test", "split.test", control)
    _refuse_overlap(config)
    validation = _choose_validation(config, labels, test, seed, "validation", control)
    unseen = _choose(config.unseen, test, seed, "unseen", "split.unseen", control)
    roles: Roles = {}
    for context in labels_of:
        for label in labels_of[context]:
            if context in held:
                roles[context, label] = _role(label, test, validation)
            else:
                roles[context, label] = "unused" if label in unseen else "train"
    return [roles]


_KINDS = {
    "perturbations": _hold_out_perturbations,
    "contexts": _hold_out_contexts,
    "few-shot": _hold_out_few_shot,
    "none": _hold_out_nothing,
}


def _hold_out_table(path: Path, table: CellLoadTable, labels_of: dict[str, set[str]], control: str) -> Roles:
    roles: Roles = {}
    for context, share in table.zeroshot.items():
        roles.update({(context, label): _ROLE_OF_SHARE[share] for label in labels_of[context]})
    for context, listed in table.fewshot.items():
        for share, labels in listed.items():
            _refuse_unknown(labels, labels_of[context], f"{path}: [fewshot] {context} {share}", control)
        test, validation = set(listed.get("test", [])), set(listed.get("val", []))
        roles.update({(context, label): _role(label, test, validation) for label in labels_of[context]})
    for context, trains in table.unlisted.items():
        roles.update({(context, label): "train" if trains else "unused" for label in labels_of[context]})
    return roles


# ------------------------------------------------------------------------------------------------------------- choices
def _role(label: str, test: set[str], validation: set[str]) -> Role:
    return "test" if label in test else "validation" if label in validation else "train"


def _permuted(labels: Iterable[str], seed: int, purpose: str) -> np.ndarray:
    """The labels in an order that depends on their set, the seed and the purpose only."""
    ordered = np.array(sorted(labels), dtype=object)
    return ordered[_permuted_places(len(ordered), seed, purpose)]


def _permuted_places(number: int, seed: int, purpose: str) -> np.ndarray:
    return np.random.default_rng([seed, *purpose.encode()]).permutation(number)


def _choose(
    wanted: float | int | list[str], labels: set[str], seed: int, purpose: str, field: str, control: str
) -> set[str]:
    if isinstance(wanted, list):
        _refuse_unknown(wanted, labels, field, control)
        return set(wanted)
    if isinstance(wanted, int):
        if wanted > len(labels):
            raise UserError(f"{field}={wanted} is more than the {len(labels)} perturbations there are to choose from")
        number = wanted
    else:
        number = max(1, round(wanted * len(labels))) if wanted > 0 else 0
    return set(_permuted(labels, seed, purpose)[:number].tolist())


def _choose_validation(
    config: SplitConfig, labels: set[str], test: set[str], seed: int, purpose: str, control: str
) -> set[str]:
    if isinstance(config.validation, list):
        return _choose(config.validation, labels, seed, purpose, "split.validation", control)
    return _choose(config.validation, labels - test, seed, purpose, "split.validation", control)


def _choose_groups(fraction: float, groups: set[Group], seed: int, purpose: str) -> set[Group]:
    """A share of groups to validate on, all but one at most.

    A perturbation that validates in one context trains in another, as it does where it is tested, for as long as there
    are such; only then is the last group of a perturbation taken. A perturbation that validated everywhere would ask
    another question than the test does, and leave nothing to train on where it is the only one.
    """
    wanted = min(max(1, round(fraction * len(groups))) if fraction > 0 else 0, len(groups) - 1)
    left = Counter(label for _, label in groups)
    chosen, lasting = list[Group](), list[Group]()
    pairs = sorted(groups)
    for i in _permuted_places(len(pairs), seed, purpose):
        trains_elsewhere = left[pairs[i][1]] > 1
        left[pairs[i][1]] -= trains_elsewhere
        (chosen if trains_elsewhere else lasting).append(pairs[i])
    return set((chosen + lasting)[:wanted])


# ------------------------------------------------------------------------------------------------------------ refusals
def _refuse_unknown(wanted: list[str], labels: Collection[str], field: str, control: str) -> None:
    for label in wanted:
        if label == control:
            raise UserError(f"{field}: {label!r} is the control, which is never held out; remove it")
        if label not in labels:
            raise UserError(f"{field}: there is no perturbation {label!r}{_nearest(label, labels)}")


def _known_contexts(wanted: list[str], labels_of: dict[str, set[str]]) -> set[str]:
    for context in wanted:
        if context not in labels_of:
            there = ", ".join(sorted(labels_of)) or "none"
            raise UserError(f"split.contexts: there is no context {context!r} with perturbations; there are {there}")
    return set(wanted)


def _nearest(label: str, labels: Collection[str]) -> str:
    by_folded = {known.casefold(): known for known in sorted(labels)}
    near = difflib.get_close_matches(label.casefold(), by_folded, n=3, cutoff=0.5)
    return (
        f"; nearest: {', '.join(by_folded[name] for name in near)}" if near else f" among the {len(labels)} there are"
    )


def _refuse_overlap(config: SplitConfig) -> None:
    if isinstance(config.test, list) and isinstance(config.validation, list):
        both = sorted(set(config.test) & set(config.validation))
        if both:
            raise UserError(f"split: {both[0]!r} is listed in both split.test and split.validation; keep it in one")


def _targets(labels: set[str], control: str, separator: str, same: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """Label -> target genes; two labels for the same genes would train on what is tested, so they are refused."""
    targets = {
        label: frozenset(same.get(gene, gene) for gene in label.split(separator)) - {control}
        for label in sorted(labels)
    }
    first: dict[frozenset[str], str] = {}
    for label, genes in targets.items():
        if first.setdefault(genes, label) != label:
            raise UserError(
                f"perturbations {first[genes]!r} and {label!r} mean the same target genes, so that one could train "
                "while the other is tested; give them one label in the data, or set data.names.approved=true"
            )
    return targets


def _check(config: SplitConfig, roles: Roles, cells: dict[Group, int], control: str) -> None:
    found = set(roles.values())
    if "test" not in found and config.hold_out != "none":
        raise UserError(f"split.hold_out={config.hold_out} leaves nothing to test; hold out at least one perturbation")
    if "train" not in found:
        raise UserError(f"split.hold_out={config.hold_out} leaves nothing to train on; hold out less")
    needed = {context for (context, _), role in roles.items() if role != "unused"}
    require_controls(needed, contexts_with(control, cells), control, "split")
