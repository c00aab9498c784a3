"""The node end to end, on real models and real texts: `make demo`."""
