"""`python -m adaprec_jax` is the command `adaprec`."""

from adaprec_jax.cli import main

if __name__ == "__main__":
    main()
