"""What a training perturbation tells about a held-out one by sharing a target gene: said, never hidden."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable


def additive_warnings(
    trained: Iterable[tuple[str, str]], held_out: Iterable[tuple[str, str]], targets: dict[str, frozenset[str]]
) -> list[str]:
    """Count the held-out perturbations about which training combinations or single perturbations tell something.

    A training perturbation tells something about a held-out one if it shares a target gene with it and trains in a
    context where the other is held out, or anywhere when the other trains nowhere (else the other is learned anyway).

    Args:
        trained: (context, perturbation) groups that train.
        held_out: (context, perturbation) groups of validation and test.
        targets: perturbation -> its target genes.

    Returns:
        At most two sentences: one on training combinations, one on the single perturbations of held-out combinations.
    """
    trained_in, held_in = _contexts_of(trained), _contexts_of(held_out)
    training_with: dict[str, list[str]] = defaultdict(list)
    for label in sorted(trained_in):
        for gene in targets[label]:
            training_with[gene].append(label)

    combinations: dict[str, list[str]] = {}
    singles: dict[str, list[str]] = {}
    for label in sorted(held_in):
        near = sorted({other for gene in targets[label] for other in training_with[gene]} - {label})
        telling = [other for other in near if label not in trained_in or trained_in[other] & held_in[label]]
        combinations[label] = [other for other in telling if len(targets[other]) > 1]
        singles[label] = [other for other in telling if len(targets[other]) == 1]

    warnings = []
    touched = [label for label in combinations if combinations[label]]
    if touched:
        warnings.append(
            f"{len(touched)} of {len(held_in)} held-out perturbations share a target gene with a training combination "
            f"(for example {touched[0]} with {combinations[touched[0]][0]}): the split is not blind to that gene"
        )
    pairs = [label for label in singles if len(targets[label]) > 1]
    known = [label for label in pairs if singles[label]]
    if known:
        complete = sum(len(singles[label]) == len(targets[label]) for label in known)
        warnings.append(
            f"{len(known)} of {len(pairs)} held-out combinations have single perturbations in training, {complete} of "
            f"them all of theirs (for example {known[0]} with {', '.join(singles[known[0]])}): their scores show how "
            "effects add, not unseen genes"
        )
    return warnings


def _contexts_of(groups: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    contexts: dict[str, set[str]] = defaultdict(set)
    for context, label in groups:
        contexts[label].add(context)
    return contexts
