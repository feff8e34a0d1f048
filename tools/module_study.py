r"""Studies of modules and small models: restoration, probes, forecasting, ...

  python -m tools.module_study --out=runs/module_study --report=docs/results

A study is a module of `tools/module_studies/`, found by listing them, and is on
the page of its group, `docs/results/<group>.md`. Each measurement, of a row of
a study with a seed, is a line of `<out>/results.jsonl`, and what is there is
not measured again; what rows share, as a trained trunk, is in `<out>/shared`.
Tables are printed, and put in place of those of the pages in the folder
`--report`, beside which the lines are copied. A row that fails is told at the
end, and its study has no table. `--variant=test` goes through all of it with
very small models.
"""

import functools

from tools import measured_studies, module_studies, study_command

COMMAND = study_command.Command(
  __doc__,
  module_studies,
  functools.partial(measured_studies.SharingStudy, tool="module_study"),
  page=lambda report, module: report / f"{module.GROUP}.md",
)

if __name__ == "__main__":
  study_command.quiet()
  COMMAND.main()
