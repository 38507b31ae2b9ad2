"""Predictions: what can predict, counts drawn from it, the size of effects, and the files."""
