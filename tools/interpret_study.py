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

from collections.abc import Sequence
from typing import Any

from etils import epath

from tools import interpret_studies, measured_studies, study_command


def names() -> list[str]:
  """The studies there are."""
  return measured_studies.names(interpret_studies)


def find(name: str) -> Any:
  """The module of a study.

  Raises:
    ValueError: if there is no such study.
  """
  return measured_studies.find(interpret_studies, name)


def run(
  out: epath.Path,
  chosen: Sequence[str],
  *,
  variant: str = "full",
  seeds: Sequence[int] | None = None,
  report: epath.Path | None = None,
) -> list[str]:
  """Does studies and tabulates them.

  Args:
    out: the folder of results.
    chosen: names of studies.
    variant: of `study_command.VARIANTS`.
    seeds: of each row; those of the study if None.
    report: Markdown with marks for each study. Lines of studies that are not
      chosen stay in the file of lines beside it.

  Returns:
    A sentence on each row that failed.

  Raises:
    ValueError: if there is no such study, or the report has no marks.
  """
  return measured_studies.run(
    measured_studies.SharingStudy(out, variant, "interpret_study"),
    {name: find(name) for name in chosen},
    seeds,
    lambda module: report,
  )


def main(argv: Sequence[str] | None = None) -> None:
  """Reads the command line, does what is left to do and tabulates."""
  study_command.main(__doc__, names(), run, argv)


if __name__ == "__main__":
  study_command.quiet()
  main()
