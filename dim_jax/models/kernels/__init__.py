"""Kernels for NVIDIA GPUs, in Pallas for Triton. `models/fused.py` chooses between them and the same formulae in plain JAX."""
