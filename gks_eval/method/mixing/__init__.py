"""Ways to compute one routed update: the same function, with costs that grow differently."""
