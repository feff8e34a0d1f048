"""Studies of language models, a module each, for `tools.language_study`.

A module has `rows(variant)`, the `tools.study.Row`s of "full" or of "test";
`tables(lines)`, Markdown by the name of its mark in docs/results/language.md;
if the evaluation of the task is not all, `measure(run)`, more of it; and, if it
shows any, `pictures(lines)`, files beside that page by name.
"""
