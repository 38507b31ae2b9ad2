"""vcc_fm: foundation-model embeddings in, perturbed single-cell counts out."""

__version__ = "0.1.0"
