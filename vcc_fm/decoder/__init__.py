"""The decoder: control cells and perturbation tokens in, a distribution of counts out."""
