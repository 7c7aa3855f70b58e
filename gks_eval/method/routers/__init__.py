"""Routers: each token's mixing coefficients over the experts, one router per file."""
