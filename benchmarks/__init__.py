"""Speeds, and judges of samples; run one as `python -m benchmarks.<name>`."""
