"""Sharing: what a shared model holds, the terms it is under, and the card that describes it."""
