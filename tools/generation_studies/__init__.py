"""Studies of diffusion models, one file a system; see `tools.generation_study`.

A study has

- TITLE and TEXT: what is measured, what the paper leads one to expect, and what
  could explain it away;
- SUBJECT: the trained model that it changes, a key of
  `tools.generation_subject.SUBJECTS`, or None if it trains its own;
- COLUMNS: pairs of a figure's name and its format, as ("accuracy", ".1%");
- rows(variant): pairs of a name and options, the baseline and a naive control
  of the same density among them;
- measure(subject, name, options, seed, variant): the figures of a row, by name.

`variant` is "full", or "test" for as little as goes through all of the code, of
which the last row is the system's own: tests try that one.
"""
