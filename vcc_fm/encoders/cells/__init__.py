"""Encoders of cells: from counts to one vector a cell."""
