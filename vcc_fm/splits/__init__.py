"""What is held out: a split of the groups of a context and a perturbation."""
