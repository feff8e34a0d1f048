"""Train state, optimizers, sharding, checkpoints and records of a run.

Nothing here knows a model or a data set: a model is `init` and `apply`, and
what is done with it is a task (`tasks`).
"""
