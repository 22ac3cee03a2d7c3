"""The benchmarks, one file each; adding one is one more file here."""
