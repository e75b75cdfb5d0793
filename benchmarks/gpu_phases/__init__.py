"""The phases of benchmarks/gpu.py: each takes a device and a size, and prints what it measured as one line of JSON."""
