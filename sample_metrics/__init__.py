"""How good samples are, by what a network sees in them: FID and its kin."""

from sample_metrics.copies import nearness
from sample_metrics.features import Features
from sample_metrics.frechet import frechet_distance
from sample_metrics.inception_score import inception_score
from sample_metrics.measurement import Measurement, measure
from sample_metrics.moments import Moments
from sample_metrics.precision_recall import precision_recall
from sample_metrics.reference import of_split
from sample_metrics.statistics import Statistics

__all__ = [
  "Features",
  "Measurement",
  "Moments",
  "Statistics",
  "frechet_distance",
  "inception_score",
  "measure",
  "nearness",
  "of_split",
  "precision_recall",
]
