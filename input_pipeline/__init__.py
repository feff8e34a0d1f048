"""Batches for a training loop: a room for each kind of data.

`input_pipeline.images` has images with labels, `input_pipeline.text` rows of
tokens, `input_pipeline.latents` what generators of images learn from: pixels or
latents, with labels or texts, `input_pipeline.sequences` sequences with labels
that are made up, `input_pipeline.restoration` pairs of a degraded image and the
clean one, `input_pipeline.scenes` shapes with boxes. Every room offers the same
functions of its `config.data`: `default_config`, `dataset_info`,
`num_train_examples`, `train_iterator` and `eval_batches`; beside the rooms is
what they share.
"""
