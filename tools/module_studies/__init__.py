"""Studies of modules and small models, a file each; see `tools.module_study`.

A study has

- GROUP: the page of `docs/results/` that it is on, as "restoration";
- TITLE, TEXT, COLUMNS and rows(variant): as those of diffusion models, see
  `tools.generation_studies`;
- measure(folder, name, options, seed, variant): the figures of a row, by name.
  `folder` is where it may keep what other rows and seeds need too, as a trained
  trunk: a name of its own there, and made if it is not there.
"""
