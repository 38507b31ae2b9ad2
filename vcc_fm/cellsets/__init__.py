"""Which cells are trained on and which are held out, and how they come together as sets."""
