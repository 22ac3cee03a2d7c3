"""`dim` begins here, also as `python -m dim_jax.cli`."""

import sys


def run() -> None:
    """Run the command. Ctrl-C is one line from the start, also while the command line itself is imported."""
    try:
        from dim_jax.cli.main import main
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
    main()


if __name__ == "__main__":
    run()
