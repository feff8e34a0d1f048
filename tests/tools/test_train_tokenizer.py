import pytest

from input_pipeline.text import tokenizers
from tools import train_tokenizer


def test_trains_on_the_training_part_only(tmp_path, capsys):
  path = tmp_path / "text.txt"
  # The last tenth has pairs that the rest has not.
  path.write_text("the cat \U0001f600 sat; " * 90 + "zqzqzqzqzqzqzqzqzq" * 8)
  output = tmp_path / "tokenizer.json"
  options = [f"--files={path}", f"--output={output}", "--vocabulary_size=266"]
  train_tokenizer.main(options)
  assert f"--config.data.tokenizer={output}" in capsys.readouterr().out
  first = output.read_text()
  tokenizer = tokenizers.create(str(output), ())
  assert tokenizer.vocabulary_size == 266
  assert len(tokenizer.encode(" sat")) < 4
  assert len(tokenizer.encode("zqzq")) == 4
  assert (
    tokenizer.decode(tokenizer.encode("\x00 ñ\U0001f680")) == "\x00 ñ\U0001f680"
  )
  train_tokenizer.main(options)
  assert output.read_text() == first


@pytest.mark.parametrize(
  ("option", "message"),
  [
    ("--vocabulary_size=256", "vocabulary_size is 256, but .* are 257"),
    ("--files=/nowhere/*.txt", "matches no file"),
  ],
)
def test_faults(option, message):
  with pytest.raises(SystemExit, match=message):
    train_tokenizer.main([option])
