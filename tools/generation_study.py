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

from collections.abc import Mapping
from typing import Any

from etils import epath

from tools import (
  generation_studies,
  generation_subject,
  measured_studies,
  study,
  study_command,
)


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


COMMAND = study_command.Command(
  __doc__,
  generation_studies,
  Study,
  folders={"subjects": "folder of trained models"},
)

if __name__ == "__main__":
  study_command.quiet()
  COMMAND.main()
