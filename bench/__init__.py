"""The indexes and the node beside their peers, in one run: `make bench`."""
