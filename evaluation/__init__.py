"""Judges what models generate."""
