"""Studies of looking inside, a file each; see `tools.interpret_study`.

A study has

- TITLE, TEXT, COLUMNS, rows(variant) and maybe SEEDS: as those of diffusion
  models, see `tools.generation_studies`;
- measure(folder, name, options, seed, variant): the figures of a row, by name.
  `folder` is where it may keep what other rows, seeds and studies need too, as
  a trained model: a name of its own there, and made if it is not there.
"""
