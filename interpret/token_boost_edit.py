"""Boosted image tokens as an edit of a model's attention scores.

    edit = {"layer_*/mixer/attention_scores": token_boost_edit.Boost()}
    given = {"token_gains": gains, "first_position": last_of_prompt}
    interpret.run(model, variables, inputs, edit=edit, given=given)

See `token_boost` for what is done to scores, and what is wrong with it.
"""

import dataclasses

import jax
import jax.numpy as jnp

from interpret import token_boost
from models import image_places, taps

SCORES = "layer_*/mixer/attention_scores"


@dataclasses.dataclass(frozen=True)
class Boost:
  """An edit of "attention_scores" that raises those of chosen image tokens.

  It finds in `site.given`:
  - "token_gains" [batch or 1, image tokens], by `token_boost.token_gains` or
    `pai_gains`. Where a row's image is, the model says: `image_places.SPAN`;
  - "first_position" int32 [], or [batch or 1], if it is there: rows at this
    position and later are boosted. With that of a prompt's last token a pass
    over a whole text equals decoding with a cache. Without it the last query of
    each call is boosted, as published: that of a prompt in the call that brings
    it. Where prompts end before the call does, or are put into a cache without
    their last token as by `models.decoding`, it is needed.
  - "head_gains" [heads] or [batch, heads], if it is there.

  Attributes:
    first_layer: those before are left as they are; the paper skips two of 32.
    uniform: whether the image gets the mass that the boost would give it by one
      number that all image tokens share: a control of ours.
  """

  first_layer: int = 2
  uniform: bool = False

  def __post_init__(self):
    """Checks the fields.

    Raises:
      ValueError: if there is no such layer.
    """
    if self.first_layer < 0:
      raise ValueError(
        f"first_layer is {self.first_layer}; it must be 0 or more"
      )

  def __call__(self, scores: jax.Array, site: taps.Site) -> jax.Array:
    """Edits scores [batch, heads, queries, keys].

    Raises:
      ValueError: if there are no gains, or the value is no scores of a language
        model.
    """
    given, facts = site.given or {}, site.facts
    if "token_gains" not in given:
      raise ValueError(
        f"given has {sorted(given)}; Boost needs 'token_gains' [batch, image "
        "tokens], by token_boost.token_gains"
      )
    if "key_positions" not in facts:
      raise ValueError(
        f"{site.name} has no positions of keys; Boost edits the "
        "attention_scores of a language model"
      )
    if isinstance(site.layer, int) and site.layer < self.first_layer:
      return scores
    gains, image = _of_keys(
      given["token_gains"],
      facts["key_positions"],
      site.value(image_places.SPAN),
    )
    raised = token_boost.boost_logits(scores, gains, given.get("head_gains"))
    # Hidden keys may have scores that are finite.
    raised = jnp.where(facts["visible"], raised, scores)
    if self.uniform:
      raised = _uniform(scores, raised, image, facts["visible"])
    rows = None
    if "first_position" in given:
      first = jnp.atleast_1d(given["first_position"])[:, None]
      rows = facts["query_positions"] >= first
    raised = token_boost.boost_rows(scores, raised, rows)
    if site.layer is None or isinstance(site.layer, int):
      return raised
    return jnp.where(site.layer >= self.first_layer, raised, scores)


def _of_keys(gains, positions, span) -> tuple[jax.Array, jax.Array]:
  """Gains of keys and whether they are image tokens, [batch, keys]."""
  tokens = gains.shape[1]
  image = image_places.within(positions, span)
  gains = jnp.broadcast_to(gains, (len(positions), tokens))
  places = jnp.clip(positions - span[:, :1], 0, tokens - 1)
  return jnp.where(image, jnp.take_along_axis(gains, places, 1), 0.0), image


def _uniform(scores, raised, image, visible) -> jax.Array:
  hide = lambda z: jnp.where(visible, z.astype(jnp.float32), -jnp.inf)
  weights = jax.nn.softmax(hide(raised), axis=-1)
  # Of rows that see nothing, as padding, there is no mass.
  weights = jnp.where(visible, weights, 0.0)
  mass = token_boost.image_mass(weights, image)
  level = token_boost.with_image_mass(hide(scores), image, mass)
  return jnp.where(visible, level, scores)
