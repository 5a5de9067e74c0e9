"""The model side: which operators a network has, and how their sizes depend on channel counts."""
