"""What a run is: its config, its identity, its directory, its numbers.

`api` is all of it from Python: make an experiment, run it, load it.

Without JAX, so that bad input is answered at once: `config` (typed settings with their
defaults), `load` (a config from a file or a name), `overrides` (`--set`), `validation`
and `errors` (what is wrong with them), `format_names`, `expected` (plan and cost of a
schedule that is known in advance), `kinds` (the schedules there are), `imports` (pieces
of one's own), `identity` (run ids), `store` (the run directory), `metrics`,
`metrics_table`, `recorded` (what a run decided), `sinks`, `trackers` (of others),
`environment` and `doctor` (what is wrong). With JAX, imported once a run starts:
`build` (settings turned into functions; `build_task` those of task and model), `run`,
`run_pack` (several as one), `results`, `rows` (what is written about a step), `listing`
(the contractions of a config), `foreseen` (what its schedule will decide) and `demo`.
"""
