"""Draw-In-Mind (arXiv 2509.01986) in JAX: a designer writes a blueprint, a painter paints it."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("dim_jax")
except PackageNotFoundError:  # used from a source tree that is not installed
    __version__ = "0+source"
