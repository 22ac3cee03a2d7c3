"""What `dim_jax/train.py` and `dim_jax/caching.py` are made of: start, step, states on disk, logs, the end of a run."""
