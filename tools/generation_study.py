r"""Studies of diffusion models: what each system of attention does to samples.

  python -m tools.generation_study --out=runs/generation_study \
    --report=docs/results/generation.md

A study is a module of `tools/generation_studies/`, found by listing them. The
models that studies change are trained first, each once, in `<out>/subjects`;
`--subjects` names another folder of them. Each measurement, of a row of a study
with a seed, is a line of `<out>/results.jsonl`, and what is there is not
measured again. Tables are printed, and put in place of those of `--report`,
beside which the lines are copied. A row that fails is told at the end, and its
study has no table. `--variant=test` goes through all of it with very small
models.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from tools import (
  generation_studies,
  generation_subject,
  measured_studies,
  study,
  study_command,
)


def names() -> list[str]:
  """The studies there are."""
  return measured_studies.names(generation_studies)


def find(name: str) -> Any:
  """The module of a study.

  Raises:
    ValueError: if there is no such study.
  """
  return measured_studies.find(generation_studies, name)


class Study(measured_studies.Study):
  """Does what is not done of studies, in one folder, of trained subjects."""

  def __init__(
    self, out: epath.Path, variant: str, subjects: epath.Path | None = None
  ):
    """Reads what is done.

    Args:
      out: the folder of results.
      variant: of `study_command.VARIANTS`.
      subjects: the folder of trained models; within `out` if None.
    """
    results = study.Results(out / "results.jsonl", "generation_study")
    super().__init__(results, variant)
    self._folder = subjects or out / "subjects"
    self._subjects: dict[str, generation_subject.Subject] = {}

  def key(self, module: Any) -> Mapping[str, Any]:
    """Which trained model it is."""
    if not module.SUBJECT:
      return {"subject": None}
    config = generation_subject.config(module.SUBJECT, self._variant)
    return {"subject": f"{module.SUBJECT}_{study.digest(config)}"}

  def given(self, module: Any) -> generation_subject.Subject | None:
    """The trained model, if the study has one."""
    return self._subject(module.SUBJECT) if module.SUBJECT else None

  def _subject(self, name: str) -> generation_subject.Subject:
    if name not in self._subjects:
      key = {"what": "subject", "subject": name, "variant": self._variant}
      config = generation_subject.config(name, self._variant)
      key["config"] = study.digest(config)
      found: list[generation_subject.Subject] = []

      def make() -> dict[str, Any]:
        found.append(
          generation_subject.trained(name, self._variant, self._folder)
        )
        return {}

      self._results.find_or_make(key, make)
      if not found:
        make()
      self._subjects[name] = found[0]
    return self._subjects[name]


def run(
  out: epath.Path,
  chosen: Sequence[str],
  *,
  variant: str = "full",
  seeds: Sequence[int] | None = None,
  subjects: epath.Path | None = None,
  report: epath.Path | None = None,
) -> list[str]:
  """Does studies and tabulates them.

  Args:
    out: the folder of results.
    chosen: names of studies.
    variant: of `study_command.VARIANTS`.
    seeds: of each row: of samples, or of training where a row trains; three
      if None.
    subjects: the folder of trained models; within `out` if None.
    report: Markdown with marks for each study. Lines of studies that are not
      chosen stay in the file of lines beside it.

  Returns:
    A sentence on each row that failed.

  Raises:
    ValueError: if there is no such study, or the report has no marks.
  """
  return measured_studies.run(
    Study(out, variant, subjects),
    {name: find(name) for name in chosen},
    seeds,
    lambda module: report,
  )


def main(argv: Sequence[str] | None = None) -> None:
  """Reads the command line, does what is left to do and tabulates."""
  study_command.main(
    __doc__,
    names(),
    run,
    argv,
    folders={"subjects": "folder of trained models"},
  )


if __name__ == "__main__":
  study_command.quiet()
  main()
