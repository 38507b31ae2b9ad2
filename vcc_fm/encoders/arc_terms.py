"""The terms under which Arc Institute gives its weights, and what to cite for them."""

SE = (
    "SE weights: Arc Research Institute State Model Non-Commercial License (2025-06-23). Non-commercial use only; "
    "what is made from them (vectors, models trained on these) is shared with that licence, its notice and citation"
)
ST = (
    "ST weights that Arc published: Arc Research Institute State Model Non-Commercial License (2025-06-23), "
    "non-commercial use only; what is made from them (models trained from these) is shared with that licence, its "
    "notice and citation. ST weights of others: their terms; arc-state, which trains them, is CC BY-NC-SA 4.0"
)
CITATION = "Adduri et al., bioRxiv 2025.06.26.661135 (2025), doi:10.1101/2025.06.26.661135"
