"""Labels that look like a control: of cells with a guide that targets nothing, or with none."""

from __future__ import annotations

import re

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
