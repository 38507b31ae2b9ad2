"""Frozen encoders: what turns a protein sequence or a control cell into a vector.

No encoder here is trained on perturbations. A protein encoder fills the interface in ``protein.py``.
"""
