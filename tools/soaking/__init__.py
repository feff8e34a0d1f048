"""Runs that are killed: how they start, what they are, what came of them."""
