"""Pieces of a package of its own, one of each kind."""
