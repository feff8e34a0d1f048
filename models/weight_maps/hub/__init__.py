"""How language models on the Hugging Face hub name and lay out their weights.

A module has the `NAMING` of the architectures that share their names.
"""
