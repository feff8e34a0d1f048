"""The grammar source against its rules, replayed from a table by hand."""

import numpy as np
import pytest

from input_pipeline.sequences import grammar, grammar_oracle, sources

SMALL = {
  "vocabulary_size": 9,
  "ambiguities": 8,
  "depth": 4,
  "elements": 40,
  "gaps": (1, 10),
}


def source(**options):
  return sources.create("grammar", {**SMALL, **options})


def examples(made, number, seed=0):
  return [
    made.example(np.random.default_rng((seed, i)), "train")
    for i in range(number)
  ]


def firsts(example):
  """Where each element begins."""
  return np.flatnonzero(np.diff(example["elements"], prepend=-1) == 1)


def test_sizes():
  paper = sources.create("grammar", {})
  assert (paper.classes, paper.vocabulary_size) == (1601, 41)
  assert source().classes == 33
  assert source(ambiguities=3).classes == 1 + 3 * 4 + 5
  # One blank for each of 200 symbols.
  assert paper.example(np.random.default_rng(1), "eval")["inputs"].shape == (
    400,
    41,
  )
  assert source(length=7).example(np.random.default_rng(1), "eval")[
    "targets"
  ].shape == (7,)


def test_a_grammar_obeys_its_rules():
  split, end, unsplit, chosen = [], [], [], np.zeros(4)
  for seed in range(60):
    g = grammar.make(9, 5, 4, 0.4, 4, seed)
    # '#', five symbols of four states, three of one.
    np.testing.assert_array_equal(
      g.symbols, [0, *np.repeat([1, 2, 3, 4, 5], 4), 6, 7, 8]
    )
    table = g.successors
    assert (table[0] == -1).all()
    state, symbol = np.nonzero(table >= 0)
    np.testing.assert_array_equal(g.symbols[table[state, symbol]], symbol)
    follows = table[1:] >= 0
    split.append(follows[:, 1:6].mean())
    end.append(follows[:, 0].mean())
    unsplit.append(follows[:, 6:].mean())
    to_split = table[1:, 1:6][follows[:, 1:6]]
    chosen += np.bincount((to_split - 1) % 4, minlength=4)
    assert len(set(g.starts)) == 4
    assert 0 not in g.starts
    # Paths of any length, by powers of the graph.
    graph = np.eye(len(table), dtype=int)
    graph[state, table[state, symbol]] = 1
    for _ in range(5):
      graph = np.minimum(graph @ graph, 1)
    assert graph[:, 0].all()
  # 60 grammars of 23 states: the mean has a deviation of 0.008 or less. Those
  # with a state that leads nowhere are drawn again, which makes it a bit more.
  assert abs(np.mean(split) - 0.4) < 0.03
  assert abs(np.mean(end) - 0.1) < 0.05
  assert abs(np.mean(unsplit) - 0.1) < 0.03
  np.testing.assert_allclose(chosen / chosen.sum(), 0.25, atol=0.03)


def test_the_density_of_the_paper():
  g = sources.create("grammar", {}).grammar
  follows = g.successors[1:] >= 0
  assert abs(follows[:, 1:].mean() - 0.4) < 4 * (0.24 / 1600 / 40) ** 0.5
  assert abs(follows[:, 0].mean() - 0.01) < 0.01


def test_strings_are_walks_of_equal_chances():
  g = grammar.make(9, 8, 4, 0.4, 4, 3)
  rng, walks = np.random.default_rng(0), []
  counts = np.zeros((33, 33))
  begun = np.zeros(33)
  while len(walks) < 1500:
    # So long that none is drawn again, which would favour short ones.
    walk = g.string(rng, 2000)
    walks.append(walk)
    assert walk[-1] == 0
    assert 0 not in walk[:-1]
    begun[walk[0]] += 1
    np.add.at(counts, (walk[:-1], walk[1:]), 1)
  np.testing.assert_array_equal(np.flatnonzero(begun), np.sort(g.starts))
  np.testing.assert_allclose(begun[g.starts] / len(walks), 0.25, atol=0.05)
  # The others may be reached by few walks, or none.
  for state in np.flatnonzero(counts.sum(axis=1) > 200):
    following = g.successors[state][g.successors[state] >= 0]
    np.testing.assert_array_equal(
      np.flatnonzero(counts[state]), np.sort(following)
    )
  state = counts[1:].sum(axis=1).argmax() + 1
  following = g.successors[state][g.successors[state] >= 0]
  share = counts[state, following] / counts[state, following].sum()
  np.testing.assert_allclose(share, 1 / len(following), atol=0.02)
  lengths = [len(g.string(rng, 12)) for _ in range(100)]
  assert max(lengths) == 12


def test_sequences_are_strings_cut_at_the_end():
  g = source(grammar_seed=5).grammar
  for seed in range(20):
    states = g.sequence(np.random.default_rng(seed), 40)
    assert states.shape == (40,)
    before = 0
    for state in states:
      if before == 0:
        assert state in g.starts
      else:
        assert g.successors[before, g.symbols[state]] == state
      before = state


def test_symbols_gaps_and_labels():
  made = source(gaps=(1, 10), gap_start=3, gap_probability=0.8)
  gaps, none = [], 0
  for example in examples(made, 100):
    states, element = example["targets"], example["elements"]
    there = element >= 0
    np.testing.assert_array_equal(example["weights"], there)
    assert not example["inputs"][~there].any()
    assert (np.diff(there.astype(int)) <= 0).all()
    np.testing.assert_array_equal(np.unique(element[there]), np.arange(40))
    starts = firsts(example)
    shown = example["inputs"][starts]
    np.testing.assert_array_equal(shown.sum(axis=1), 1)
    np.testing.assert_array_equal(
      shown.argmax(axis=1), made.grammar.symbols[states[starts]]
    )
    blank = np.setdiff1d(np.flatnonzero(there), starts)
    assert not example["inputs"][blank].any()
    np.testing.assert_array_equal(states[there], states[starts][element[there]])
    length = np.bincount(element[there]) - 1
    assert not length[:3].any()
    none += (length[3:] == 0).sum()
    gaps += length[length > 0].tolist()
  assert abs(none / (100 * 37) - 0.2) < 0.03
  share = np.bincount(gaps, minlength=11)[1:] / len(gaps)
  # Numbers from 1 to 10, rounded: the ends are half as likely.
  expected = np.array([1, *[2] * 8, 1]) / 18
  np.testing.assert_allclose(share, expected, atol=0.02)


def test_noise_is_added_everywhere():
  made, quiet = source(noise=0.2), source()
  loud, plain = (examples(x, 3) for x in (made, quiet))
  for a, b in zip(loud, plain, strict=True):
    noise = a["inputs"] - b["inputs"]
    assert -1e-6 < noise.min() < 0.001
    assert 0.199 < noise.max() < 0.2001
    assert abs(noise.mean() - 0.1) < 0.002
    np.testing.assert_array_equal(a["targets"], b["targets"])


def test_wrong_symbols_cannot_follow():
  made = source(
    wrong_symbols=True, gaps=(1, 1), gap_probability=0.3, gap_start=5
  )
  seen, steps = set(), 0
  for example in examples(made, 50):
    there = example["elements"] >= 0
    starts = firsts(example)
    gap = np.setdiff1d(np.flatnonzero(there), starts)
    np.testing.assert_array_equal(example["inputs"][there].sum(axis=1), 1)
    for step in gap:
      assert example["elements"][step] >= 5
      state = example["targets"][step]
      symbol = example["inputs"][step].argmax()
      assert symbol > 0
      if state:
        assert made.grammar.successors[state, symbol] == -1
      else:
        assert symbol not in made.grammar.symbols[made.grammar.starts]
      seen.add(symbol)
      steps += 1
  assert seen == set(range(1, 9))
  assert abs(steps / (50 * 35) - 0.3) < 0.04


def test_an_example_follows_from_its_numbers():
  a, b, other = (examples(source(noise=0.1), 2, seed) for seed in (1, 1, 2))
  for x, y in zip(a, b, strict=True):
    for name in x:
      np.testing.assert_array_equal(x[name], y[name])
  assert not np.array_equal(a[0]["targets"], other[0]["targets"])
  assert not np.array_equal(a[0]["targets"], a[1]["targets"])


@pytest.mark.parametrize(
  ("options", "reached"),
  [
    # Four starts of four symbols: nothing is hidden.
    ({"grammar_seed": 0, "noise": 0.2}, (1.0, 1.0)),
    # Two pairs of starts have the same symbol.
    ({"grammar_seed": 5}, (0.92, 0.985)),
    ({"grammar_seed": 5, "wrong_symbols": True, "gaps": (0, 3)}, (0.9, 0.985)),
  ],
)
def test_the_oracle(options, reached):
  made = source(**options)
  tried = examples(made, 60)
  assert reached[0] <= grammar_oracle.accuracy(made, tried) <= reached[1]
  starts = made.grammar.symbols[made.grammar.starts]
  for example in tried:
    states = example["targets"][firsts(example)]
    symbols = made.grammar.symbols[states]
    said = grammar_oracle.predict(made, example)
    # By sets of states that the symbols so far allow: one state is known.
    possible = {0}
    for element, symbol in enumerate(symbols):
      following = {
        int(made.grammar.successors[s, symbol]) for s in possible if s
      }
      if 0 in possible:
        at = made.grammar.starts[starts == symbol]
        following |= set(at.tolist())
      possible = following - {-1}
      assert states[element] in possible
      if len(possible) == 1 and not made.wrong_symbols:
        assert said[element] == states[element]
      elif not made.wrong_symbols:
        assert said[element] in possible


def test_the_oracle_finds_wrong_symbols_out():
  """Where the start is known, a symbol that cannot follow is of a gap."""
  made = source(wrong_symbols=True, gaps=(0, 3), gap_probability=0.5)
  assert grammar_oracle.accuracy(made, examples(made, 30)) == 1.0


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"depht": 3}, "'depht'; did you mean depth"),
    ({"ambiguities": 9}, "ambiguities is 9, .*vocabulary_size=9"),
    ({"gaps": (3, 1)}, r"gaps is \(3, 1\)"),
    ({"density": 1.5}, "density is 1.5"),
    ({"density": 0.0}, "no grammar of vocabulary_size=9.*higher density"),
    ({"starts": 33}, "starts is 33, .*33 states"),
    ({"density": 1.0, "wrong_symbols": True}, "followed by all symbols"),
    ({"elements": 0}, "elements is 0"),
  ],
)
def test_errors(options, message):
  with pytest.raises(ValueError, match=message):
    source(**options)


def test_no_short_string_is_an_error():
  # Nearly no transitions to the end: strings are hundreds of symbols long.
  g = grammar.make(41, 40, 40, 0.4, 4, 0)
  with pytest.raises(ValueError, match=r"no string .* at most 1 symbols"):
    g.string(np.random.default_rng(0), 1)


def test_noise_hides_symbols_from_the_oracle():
  made = source(noise=1.0)
  with pytest.raises(ValueError, match=r"noise is 1\.0"):
    grammar_oracle.predict(made, examples(made, 1)[0])
