"""How fast the known responses of groups are looked up: those elsewhere, the mean one, and sums of single ones.

    python benchmarks/responses.py [--quick] [--json FILE]

Random responses of 18,080 genes, each perturbation in four contexts. Each group asks what its perturbation did in the
other contexts, what the others did on average, and what it does together with the next one. What a group costs must
not depend on how many there are: as many of the many groups and of the few take turns, the few anew each time.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import numpy as np
from _measure import Claim, compare, finish, new_parser
from rich.console import Console

from vcc_fm.responses.responses import Responses

GENES, CONTEXTS = 18_080, 4
GROUPS, QUICK_GROUPS = (200, 2_000), (8, 24)
MEANS = 20


def main(arguments: list[str]) -> int:
    """Measure, print, write; the exit code."""
    parser = new_parser("known responses of groups: groups per second", "fewer groups")
    options = parser.parse_args(arguments)
    few, many = QUICK_GROUPS if options.quick else GROUPS
    console = Console()
    smaller, larger = random_responses(few), random_responses(many)
    seconds = np.array(
        [
            (look_up(larger, range(start, start + few)), look_up(replace(smaller), range(few)))
            for start in range(0, many, few)
        ]
    )
    console.print(f"{many:,} groups: {seconds[:, 0].sum():.1f} s; {few:,} groups: {np.median(seconds[:, 1]):.1f} s")
    ours, theirs = mean_rates(larger)
    size = f"{many:,} groups x {GENES:,} genes"
    rates = few / seconds.T
    rows = [
        compare(f"known responses ({size})", *rates, f"{few:,} groups", "groups/s"),
        compare(f"mean responses ({size})", ours, theirs, "the mean over copied rows", "groups/s"),
    ]
    # All seconds, not medians: the first of many groups waits for the sums over all.
    ratio = float(seconds[:, 1].sum() / seconds[:, 0].sum())
    claim = f"time is linear in groups: of {many:,} groups one comes at least 0.8 times as fast as of {few:,}"
    return finish("responses", ["vcc-fm", "numpy"], rows, [Claim(claim, 0.8, ratio)], options.json, console)


def random_responses(groups: int) -> Responses:
    """Responses that are mostly noise, a fiftieth of them not measured; every perturbation silences its gene."""
    rng = np.random.default_rng(0)
    labels = [f"p{number}" for number in range(groups // CONTEXTS)]
    ratio = 0.3 * rng.standard_normal((groups, GENES), np.float32)
    precision = 1 + 20 * rng.random((groups, GENES), np.float32)
    ratio[np.arange(groups), np.arange(groups) % len(labels)] -= 1.5
    missing = rng.random((groups, GENES), np.float32) < 0.02
    ratio[missing] = precision[missing] = 0
    names = [(f"c{context}", label) for context in range(CONTEXTS) for label in labels]
    return Responses(names, ratio, precision, {label: np.array([gene]) for gene, label in enumerate(labels)})


def look_up(responses: Responses, rows: range) -> float:
    """Seconds for all that is known of some of the groups."""
    begin = time.perf_counter()
    for row in rows:
        context, label = responses.groups[row]
        _, following = responses.groups[(row + 1) % len(responses.groups)]
        responses.elsewhere(context, label)
        responses.mean_response(context, without=label)
        responses.additive(context, [label, following])
    return time.perf_counter() - begin


def mean_rates(responses: Responses) -> tuple[np.ndarray, np.ndarray]:
    """Mean responses a second of ``MEANS`` groups, ours and those by the definition, [MEANS] each; both are equal."""
    seconds = []
    for row in np.linspace(0, len(responses.groups) - 1, MEANS).astype(int):
        context, label = responses.groups[row]
        begin = time.perf_counter()
        ours = responses.mean_response(context, without=label)
        middle = time.perf_counter()
        rows = [i for i, (where, other) in enumerate(responses.groups) if where == context and other != label]
        known = (responses.precision[rows] > 0).sum(axis=0)
        theirs = responses.ratio[rows].sum(axis=0) / np.maximum(known, 1)
        seconds.append((middle - begin, time.perf_counter() - middle))
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    first, second = 1 / np.array(seconds).T
    return first, second


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
