"""The networks, one file each; `dim.py` puts them together."""
