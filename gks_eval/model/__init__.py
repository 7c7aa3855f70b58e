"""Models in memory: loaded, with a library attached, as lm-eval's model class."""
