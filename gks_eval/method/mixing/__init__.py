"""Plans to compute a routed update: all give the same result, with different costs."""
