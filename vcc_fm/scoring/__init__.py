"""Scoring: reads predictions and truth, nothing else, and lets the official scorer judge them."""
