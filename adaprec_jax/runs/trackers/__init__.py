"""Sinks for what people track experiments with; each needs an extra of its name.

`option` reads `--sink`; `tracker` hands rows to one in the background; `tensorboard`,
`wandb` and `mlflow` are one each. The run's own store of metrics stays the truth: rows
of earlier sessions are read from it, so a tracker that is chosen late, or was killed
with the run, has all of them, and each once.
"""
