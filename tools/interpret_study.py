r"""Studies of trained models: what is seen in them, and what edits of them do.

  python -m tools.interpret_study --out=runs/interpret_study \
    --report=docs/results/interpret.md

A study is a module of `tools/interpret_studies/`, found by listing them. Each
measurement, of a row of a study with a seed, is a line of
`<out>/results.jsonl`, and what is there is not measured again; what rows and
studies share, as a trained model, is in `<out>/shared`. Tables are printed, and
put in place of those of `--report`, beside which the lines are copied. A row
that fails is told at the end, and its study has no table. `--variant=test` goes
through all of it with very small models.
"""

import functools

from tools import interpret_studies, measured_studies, study_command

COMMAND = study_command.Command(
  __doc__,
  interpret_studies,
  functools.partial(measured_studies.SharingStudy, tool="interpret_study"),
)

if __name__ == "__main__":
  study_command.quiet()
  COMMAND.main()
