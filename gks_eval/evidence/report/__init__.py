"""One self-contained HTML page on a set of runs."""
