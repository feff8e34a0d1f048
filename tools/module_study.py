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

from collections.abc import Sequence
from typing import Any

from etils import epath

from tools import measured_studies, module_studies, study_command


def names() -> list[str]:
  """The studies there are."""
  return measured_studies.names(module_studies)


def find(name: str) -> Any:
  """The module of a study.

  Raises:
    ValueError: if there is no such study.
  """
  return measured_studies.find(module_studies, name)


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
    report: the folder of the groups' pages, with marks for each study.

  Returns:
    A sentence on each row that failed.

  Raises:
    ValueError: if there is no such study, or a page has no marks.
  """
  return measured_studies.run(
    measured_studies.SharingStudy(out, variant, "module_study"),
    {name: find(name) for name in chosen},
    seeds,
    lambda module: report and report / f"{module.GROUP}.md",
  )


def main(argv: Sequence[str] | None = None) -> None:
  """Reads the command line, does what is left to do and tabulates."""
  study_command.main(__doc__, names(), run, argv)


if __name__ == "__main__":
  study_command.quiet()
  main()
