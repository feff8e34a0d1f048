"""Studies of language models: each one tried, and what is done once."""

import json
import pathlib
import types

import jax
import numpy as np
import pytest
from etils import epath

from configs import language
from tools import language_study, study, study_command

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "results" / "language.md"


def small(**fields):
  config = study.shrunk(language.get_config("study"))
  config.model.update({"depth": 1, **fields})
  return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Of the runs that studies have in common."""
  return epath.Path(tmp_path_factory.mktemp("studies"))


@pytest.mark.slow  # A study trains several models, if for one step.
@pytest.mark.parametrize("name", language_study.COMMAND.names())
def test_every_study_goes_through(name, folder, tmp_path):
  report = epath.Path(tmp_path / "language.md")
  report.write_text(PAGE.read_text())
  failures = language_study.COMMAND.run(
    folder, [name], variant="test", seeds=[0], report=report
  )
  assert failures == []
  lines = study.read_lines(report.with_suffix(".jsonl"))
  rows = language_study.COMMAND.find(name).rows("full")
  assert [line["row"] for line in lines] == [row.name for row in rows]
  assert report.read_text() != PAGE.read_text()


@pytest.fixture
def trained(monkeypatch):
  """The folders of all trainings, which are done."""
  calls = []
  train_and_evaluate = study.train_and_evaluate

  def train(config, workdir, *, show):
    calls.append(pathlib.Path(workdir).name)
    return train_and_evaluate(config, workdir, show=show)

  monkeypatch.setattr(study, "train_and_evaluate", train)
  return calls


@pytest.fixture
def put(monkeypatch):
  """A function that puts studies in place of those there are."""

  def put(**modules):
    command = study_command.Command
    monkeypatch.setattr(command, "names", lambda command: sorted(modules))
    monkeypatch.setattr(command, "find", lambda command, name: modules[name])

  return put


def make_study(rows, **functions):
  return types.SimpleNamespace(
    rows=lambda variant: rows,
    tables=lambda lines: {
      "losses": study.markdown(
        ("row", "loss"),
        [[line["row"], f"{line.get('loss', 0):.3f}"] for line in lines],
      )
    },
    **functions,
  )


def measure(run):
  if run.config is None:
    return {"nothing": run.seed}
  sizes = [x.size for x in jax.tree.leaves(run.variables["params"])]
  return {"sizes": sum(sizes), "causal": int(run.task.model.causal)}


def test_what_is_done_is_not_done_again(tmp_path, trained, put):
  first, second = small(), small(mlp="gelu")
  rows = [study.Row("plain", first), study.Row("gelu", second)]
  put(
    one=make_study(rows, measure=measure),
    other=make_study([study.Row("none", None), study.Row("same", small())]),
  )
  report = tmp_path / "language.md"
  marks = [
    f"<!-- begin: {n} -->\n<!-- end: {n} -->\n" for n in ("losses", "cost")
  ]
  report.write_text("".join(marks))
  arguments = [f"--out={tmp_path}", f"--report={report}", "--seeds"]
  language_study.COMMAND.main([*arguments, "0"])
  assert len(trained) == len(set(trained)) == 2
  lines = epath.Path(report).with_suffix(".jsonl")
  plain, gelu, none, same = kept = study.read_lines(lines)
  assert [x["row"] for x in kept] == ["plain", "gelu", "none", "same"]
  assert plain["parameters"] == plain["sizes"] > gelu["sizes"]
  assert plain["train_steps"] == plain["causal"] == 1
  assert none["config"] is None
  assert (same["loss"], same["config"]) == (plain["loss"], plain["config"])
  text = report.read_text()
  assert f"| same | {same['loss']:.3f} |" in text
  assert "| one | 2 |" in text
  language_study.COMMAND.main([*arguments, "0"])
  assert len(trained) == 2
  assert report.read_text() == text
  # Lines of a study that is not chosen stay.
  language_study.COMMAND.main([*arguments, "1", "--studies", "other"])
  assert len(trained) == 3
  *kept_ones, _, same = study.read_lines(lines)
  assert kept_ones == [plain, gelu]
  assert same["seed"] == 1
  assert same["loss"] != plain["loss"]


def test_a_run_begins_with_another_and_measures_alone(tmp_path, trained, put):
  first = small()
  second = small()
  second.train_for = "0 steps"
  found = {}

  def look(run):
    if run.config is None:
      return {"nothing": 7}
    found[run.row.name, run.seed] = jax.device_get(run.variables["params"])
    return {}

  rows = [
    study.Row("later", second, begins_with=first),
    study.Row("first", first),
    study.Row("alone", second),
    study.Row("none", None),
  ]
  put(one=make_study(rows, measure=look))
  out = epath.Path(tmp_path)
  assert language_study.COMMAND.run(out, ["one"], seeds=[3]) == []
  assert len(trained) == 3
  assert trained[0] == study.digest(language_study._with_seed(first, 3))
  equal = lambda a, b: all(
    jax.tree.leaves(jax.tree.map(np.array_equal, found[a, 3], found[b, 3]))
  )
  assert equal("later", "first")
  assert not equal("alone", "first")
  lines = study.read_lines(out / "results.jsonl")
  (none,) = (line for line in lines if line.get("row") == "none")
  assert none["nothing"] == 7
  assert none["config"] is None


def test_a_run_that_fails_is_told_and_the_others_are_done(
  tmp_path, trained, put
):
  wrong = small()
  wrong.data.files = str(tmp_path / "none.txt")
  rows = [study.Row("wrong", wrong), study.Row("plain", small())]
  put(one=make_study(rows), other=make_study([study.Row("plain", small())]))
  arguments = [f"--out={tmp_path}", "--seeds", "0"]
  with pytest.raises(SystemExit, match=r"one, wrong, seed 0: .*none\.txt"):
    language_study.COMMAND.main([*arguments, "--studies", "one", "other"])
  assert len(trained) == 2
  pathlib.Path(wrong.data.files).write_text("to be or not to be " * 20)
  language_study.COMMAND.main([*arguments, "--studies", "one", "other"])
  assert len(trained) == 3
  lines = (tmp_path / "results.jsonl").read_text().splitlines()
  assert len({json.loads(line)["config"] for line in lines}) == 2


def test_nothing_begins_after_a_run_that_was_stopped(
  tmp_path, put, monkeypatch
):
  state = types.SimpleNamespace(step=0, params={})
  calls = []
  monkeypatch.setattr(
    study,
    "train_and_evaluate",
    lambda config, workdir, show: calls.append(workdir) or state,
  )
  put(one=make_study([study.Row("a", small()), study.Row("b", small(depth=2))]))
  with pytest.raises(SystemExit, match=r"stopped at step 0 of 1 steps"):
    language_study.COMMAND.main([f"--out={tmp_path}", "--studies", "one"])
  assert len(calls) == 1
  assert not (tmp_path / "results.jsonl").exists()


def test_names_that_do_not_fit(tmp_path, put):
  with pytest.raises(SystemExit, match="study 'tailor'"):
    language_study.COMMAND.main([f"--out={tmp_path}", "--studies", "tailor"])
  put(one=make_study([study.Row("a", None), study.Row("a", None)]))
  with pytest.raises(SystemExit, match="two have one name"):
    language_study.COMMAND.main([f"--out={tmp_path}", "--studies", "one"])
