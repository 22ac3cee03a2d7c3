"""One file a run, each with `get_config()`: only its differences from common.py."""
