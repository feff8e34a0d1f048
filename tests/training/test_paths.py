import pytest

from training import paths

NAMES = (
  "stem/norm_0/scale",
  "scale_block_0/qkv/kernel",
  "scale_block_0/qkv/bias",
  "scale_block_10/norm/scale",
  "head/relative_bias_table",
)


@pytest.mark.parametrize(
  ("pattern", "taken"),
  [
    ("scale", (0, 3)),
    ("bias", (2,)),
    ("norm/(scale|bias)", (3,)),
    (r"norm(_\d+)?/scale", (0, 3)),
    ("scale_block_0", (1, 2)),
    (r"scale_block_\d+/qkv", (1, 2)),
    (".*bias.*", (2, 4)),
    ("stem/scale", ()),
    ("scale_block_0/qkv/kernel/more", ()),
    # Alternatives end with their component.
    ("stem|head/relative_bias_table", (4,)),
  ],
)
def test_patterns_take_whole_components(pattern, taken):
  found = [
    i for i, n in enumerate(NAMES) if paths.first_match([pattern], n) == 0
  ]
  assert tuple(found) == taken


def test_the_first_rule_that_matches_counts():
  groups = paths.group_by_rule("rules", ("qkv/bias", "qkv"), NAMES)
  assert groups == {
    "qkv/bias": [NAMES[2]],
    "qkv": [NAMES[1]],
    "": [NAMES[0], *NAMES[3:]],
  }


@pytest.mark.parametrize(
  ("patterns", "message"),
  [
    (("scal",), "rules has 'scal', which matches no .* Near it are scale"),
    (("zzz",), "zzz.*components are bias, head, kernel"),
    (("qkv/krenel",), "Near it are kernel"),
    (("qkv", "qkv/bias"), "'qkv/bias', but rules before it take all"),
    (("(",), r"'\('.*not a regular expression"),
    (("(stem/norm)",), "component between slashes"),
    (("stem/",), "'stem/'.* not one or more components"),
    (("",), "'', which is not one or more"),
    ("bias", r"must be a tuple of patterns, such as \('bias',\)"),
    ((3,), "has 3"),
  ],
)
def test_faults_name_the_rule(patterns, message):
  with pytest.raises(ValueError, match=message):
    paths.group_by_rule("rules", patterns, NAMES)


def test_a_default_may_take_nothing():
  groups = paths.group_by_rule("rules", ("zzz", "qkv"), NAMES, optional=["zzz"])
  assert groups["zzz"] == []


@pytest.mark.parametrize("rules", [("stem",), (("stem",),), (("stem", 1, 2),)])
def test_rules_that_are_no_pairs(rules):
  with pytest.raises(ValueError, match=r"rules has .* not a pair"):
    paths.check_pairs("rules", rules)
