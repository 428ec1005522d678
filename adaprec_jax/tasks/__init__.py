"""What is trained: real data, plain Flax models, and the loss between them.

Nothing here knows about precision. A data module has `load(...) -> Data` and
`task(data, model) -> Task`; its neighbours are `models` (one family per file),
`network` (a linen or nnx model as two functions), `objectives`, `order` (which examples
step t reads) and `files` (where data files come from).
"""
