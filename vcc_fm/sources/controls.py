"""Control cells: labels that look like one (a guide that targets nothing, or none), and what is said where none is."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.words import listed

# Of words in lower case without digits, so that `Non-Targeting Control #1` is `non targeting control`.
_KIND = (
    r"(?:no|non) ?target(?:ing|ed|s)?|neg(?:ative)? ?(?:ctrls?|controls?|ctl)|neg|ntc?g?|ctrls?|controls?|ctl"
    r"|scram(?:bled?)?|safe ?(?:target(?:ing|s)?|harbou?r|sites?|cutters?)|intergenic|dummy"
    r"|dmso|vehicle|untreated|unperturbed|untransduced|unmodified|unstim(?:ulated)?|mock|wild ?type|wt"
    r"|pbs|saline|placebo|sham|media|none|no ?(?:stim(?:ulation|ulus|uli)?|treatment|drugs?|compounds?|cytokines?)"
    r"|e?gfp|rfp|lac ?z|luc(?:iferase)?|aavs|rosa|empty(?: ?vector)?|no ?(?:site|gene)|(?:one )?non ?gen(?:e|ic) site"
)
_BESIDE = r"sg|si|sh|g|sgrna|sirna|shrna|grna|guides?|oligo|cells?|vector|plasmid|pool|random"
_CONTROL = re.compile(
    rf"(?:(?:{_BESIDE}) )*(?:sg|si|sh)?(?:{_KIND})(?: (?:sg|si|sh)?(?:{_KIND})| (?:{_BESIDE}|[ab]))*"
)
# Each is a gene but for the number: WT1, NT5E, CTLA4.
_NUMBERED = re.compile(r"(wt|nt|ctl)\d", re.IGNORECASE)


def looks_like_control(label: str) -> bool:
    """Whether all words of a label are words for a control; capitals, digits and marks between do not matter.

    A gene of that name is for the caller to tell.
    """
    if _NUMBERED.match(label):
        return False
    return _CONTROL.fullmatch(" ".join(re.findall("[a-z]+", label.lower()))) is not None


def doubted_labels(labels: Iterable[str], control: str, genes: Collection[str]) -> str | None:
    """What to know of perturbations that are called like controls, and are no genes; None where there are none."""
    alike = sorted(label for label in set(labels) - {control, *genes} if looks_like_control(label))
    if not alike:
        return None
    return f"perturbations called {listed(alike)}: if they are controls, set also_control"


def require_controls(
    contexts: Iterable[str],
    having: Collection[str],
    control: str,
    where: str,
    do: str = "name the right control label",
) -> None:
    """Every context has control cells: a prediction starts from them, and nothing is measured without.

    Args:
        contexts: that need them.
        having: contexts that have them.
        control: label of the control cells.
        where: what holds the cells, for the message.
        do: the first remedy.

    Raises:
        UserError: a context has none.
    """
    bare = sorted(set(contexts).difference(having))
    if bare:
        raise UserError(
            f"{where}: no control cells ({control!r}) in context {', '.join(bare)}: a prediction starts from them; "
            f"{do}, or leave the context out with keep"
        )


def contexts_with(label: str, groups: Iterable[tuple[str, str]]) -> set[str]:
    """The contexts of the (context, perturbation) ``groups`` of one label."""
    return {context for context, other in groups if other == label}
