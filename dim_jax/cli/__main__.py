"""`python -m dim_jax.cli` is `dim`."""

from dim_jax.cli.main import main

if __name__ == "__main__":
    main()
