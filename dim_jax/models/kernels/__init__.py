"""Kernels in Pallas, for NVIDIA GPUs and for TPUs. `models/fused.py` chooses between them and the same formulae in plain JAX."""
