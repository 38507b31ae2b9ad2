"""Encoders of proteins: from sequences to one vector a gene."""
