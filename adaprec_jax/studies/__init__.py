"""Many runs that belong together: what they are, and how they are trained.

`study` is the list of them, which names every cell whether or not it has been trained;
`sweep` has the functions that such a list is declared with. Both are without JAX, as
bad input is answered at once.
"""
