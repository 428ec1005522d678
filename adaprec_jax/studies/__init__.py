"""Many runs that belong together: what they are, and how they are trained.

`study` is the list of them, which names every cell whether or not it has been trained;
`sweep` has the functions that such a list is declared with; `states` says what became
of the cells, and `price` what they cost; `packs` which of them can train together;
`local` trains them with processes that each run `worker`; `following` reads how far
they are, `live` tells a page of it, which `serve` serves. `difference` sets two runs
side by side, `bundle` checks a published study, `publish` makes one and `reproduce`
repeats one; `ray_engine` and `slurm_engine` train on a cluster; `search` looks for the
front of accuracy and cost. All are without JAX, as bad input is answered at once; a
worker imports it.
"""
