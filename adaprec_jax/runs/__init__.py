"""What a run is: its config, its identity, its directory, its numbers.

Nothing here imports JAX before a run starts, so bad input is answered at once. The
modules: `config` (typed settings with their defaults), `load` (a config from a file or
a name), `overrides` (`--set`), `identity` (run ids), `store` (the run directory),
`metrics` and `environment`.
"""
