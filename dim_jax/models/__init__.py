"""The networks, one file each; `dim.py` composes them."""
