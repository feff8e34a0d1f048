import hashlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from input_pipeline.text import corpus, standard_library


def read(config, split="train"):
  documents = corpus.open_corpus(config).documents(split)
  return [document.text for document in documents]


def test_globs_and_lists_of_files(config, tmp_path):
  for name in ("b.txt", "a.txt", "deep/er/c.txt", "d.md"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    # Line ends and marks stay as they are.
    (tmp_path / name).write_bytes(f"\ufeffI am {name}\r\n".encode())
  config.files = f"{tmp_path}/d.md, {tmp_path}/**/*.txt,{tmp_path}/a.txt"
  config.eval_files = f"{tmp_path}/[bc].txt"
  names = ["d.md", "a.txt", "b.txt", "deep/er/c.txt"]
  assert read(config) == [f"\ufeffI am {name}\r\n" for name in names]
  assert read(config, "eval") == ["\ufeffI am b.txt\r\n"]


def test_last_share_of_the_characters_is_for_evaluation(config, tmp_path):
  whole = "ä0123456789" * 13
  (tmp_path / "1").write_text(whole[:50])
  (tmp_path / "2").write_text(whole[50:135])
  (tmp_path / "3").write_text(whole[135:])
  config.files = f"{tmp_path}/*"
  assert read(config) == [whole[:50], whole[50 : int(0.9 * len(whole))]]
  assert read(config, "eval") == [whole[128:135], whole[135:]]
  assert "".join(read(config) + read(config, "eval")) == whole


def test_changed_files_are_read_again(config, tmp_path):
  path = tmp_path / "text"
  path.write_text("a" * 20)
  config.files = str(path)
  assert read(config) == ["a" * 18]
  path.write_text("b" * 10)
  assert read(config) == ["b" * 9]


def test_json_lines(config, tmp_path):
  path = tmp_path / "lines"
  path.write_text('{"story": "a\\u00e9\\n", "x": 1}\n\n{"story": ""}\n')
  config.update(files=str(path), eval_files=str(path), format="jsonl")
  config.field = "story"
  assert read(config) == ["aé\n"]


@pytest.mark.parametrize(
  ("lines", "message"),
  [
    (b'{"text": "a"}\n{"txt": 1}', r"line 2 has no text in field='text'.*txt"),
    (b'{"text": 3}', "line 1 has no text in field='text'"),
    (b"[1]", "line 1 has no text .* no object"),
    (b'{"text": "a"}\n{', "line 2 is not JSON"),
    (b'{"text": "a"}\n\n\xff', "line 3 is not UTF-8: byte 0xff at offset 0"),
    (b'{"text": "a\\ud800"}', "line 1 has half a surrogate pair"),
    (b'{"text": ""}', "every document is empty"),
  ],
)
def test_faulty_json_lines(config, tmp_path, lines, message):
  path = tmp_path / "lines"
  path.write_bytes(lines)
  config.update(files=str(path), eval_files=str(path), format="jsonl")
  with pytest.raises(ValueError, match=message):
    read(config)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(files="{}/empty"), "empty is empty"),
    (dict(files="{}/latin1"), "latin1 is not UTF-8: byte 0xe4 at offset 2"),
    (dict(files="{}/*.txt"), r"\*.txt, which matches no file in"),
    (dict(files="{}/no/*.txt"), "matches no file"),
    (dict(files="{}/absent"), "absent, which does not exist"),
    (dict(files="{}"), r"has the folder .*/\*\*/\*.txt"),
    (dict(files=","), "names no file"),
    (dict(files="{}/short", eval_files="{}/absent"), "eval_files has"),
    (dict(files="{}/short"), "the 1 characters of .*one part empty"),
    (dict(eval_share=1.0), "eval_share is 1.0"),
    (dict(length=0), "length is 0"),
    (dict(eval_stride=17), "eval_stride is 17, but a window of length=16"),
    (dict(eval_stride=-1), "eval_stride is -1"),
    (dict(packing="rows"), "packing is 'rows', but.* documents, stream"),
    (dict(format="csv"), "format is 'csv'"),
    (dict(random_offsets=True), "random_offsets=True .* packing='stream'"),
    (dict(format="tfds"), "takes the name of a data set in files"),
    (dict(num_threads=-1), "num_threads is -1"),
  ],
)
def test_faults(config, tmp_path, fields, message):
  (tmp_path / "empty").touch()
  (tmp_path / "short").write_text("a")
  (tmp_path / "latin1").write_bytes("so äh".encode("latin1")[1:])
  for name, value in fields.items():
    is_path = isinstance(value, str)
    config[name] = value.replace("{}", str(tmp_path)) if is_path else value
  with pytest.raises(ValueError, match=message):
    [read(config, split) for split in ("train", "eval")]


class Stories(tfds.core.GeneratorBasedBuilder):
  """Texts, as TFDS has them."""

  name = "stories"
  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {"text": tfds.features.Text(), "id": tfds.features.Scalar(np.int64)}
      ),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i, story in enumerate(("one é", "two", "", "four")):
      yield i, {"text": story, "id": i}


def test_data_sets_of_tfds(config, tmp_path):
  tfds.disable_progress_bar()
  builder = Stories(data_dir=tmp_path, file_format="array_record")
  builder.download_and_prepare(download_dir=tmp_path / "downloads")
  config.update(files="stories", format="tfds", data_dir=str(tmp_path))
  config.update(train_split="train[:2]", eval_split="train[2:]")
  assert read(config) == ["one é", "two"]
  assert read(config, "eval") == ["four"]
  config.field = "id"
  with pytest.raises(ValueError, match=r"no Text called field='id'.*id, text"):
    read(config)
  config.field, config.train_split = "text", "test"
  with pytest.raises(ValueError, match=r"split 'test' .* train \(4\)"):
    read(config)


def test_embedded_text_is_english_split_by_module(config):
  splits = {
    split: standard_library.documents(split) for split in ("train", "eval")
  }
  names = {split: [d.name for d in splits[split]] for split in splits}
  assert not set(names["train"]) & set(names["eval"])
  assert {"argparse", "asyncio.tasks", "pydoc_data.topics"} <= {
    *names["train"],
    *names["eval"],
  }
  text = {s: "\n".join(d.text for d in splits[s]) for s in splits}
  assert 1.5e6 < len(text["train"]) < 5e6
  assert 0.03 < len(text["eval"]) / len(text["train"]) < 0.2
  assert text["train"].count(" the ") > 10_000
  source = corpus.open_corpus(config).describe()
  assert source["documents"] == sum(map(len, splits.values()))
  assert source["bytes"] == sum(
    len(d.text.encode()) for documents in splits.values() for d in documents
  )
  assert len(source["sha256"]) == len(hashlib.sha256().hexdigest())


def test_extracts_strings_and_comments():
  source = '''#!/usr/bin/python
"""The # module.

    Indented.
"""
x = "# none"  # one
y = """no # text"""
# two
# three

# four
def f():
  r\'\'\'A \\' raw string.\'\'\'
  return '#'
'''
  assert standard_library.extract(source) == (
    "#!/usr/bin/python\n\nThe # module.\n\nIndented.\n\n# one\n\n"
    "# two\n# three\n\n# four\n\nA \\' raw string.\n"
  )
  assert standard_library.extract("x = 1") == ""
