"""How groups of cells respond: log ratios with their noise, and the mixed model of all of them."""
