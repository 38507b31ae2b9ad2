"""Frozen encoders of image patches: slides, patches of nuclei cut out of them, and their vectors."""
