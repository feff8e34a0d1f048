"""Judges what a model generates: how often it is right, and by what evidence.

Data, checkers and verifiers are the user's, as functions.
"""
