"""The Trainer beside the source's way, a raw PyTorch loop and other trainers.

Run it with ``python -m benchmarks.trainers``; README.md in the folder above says how to read it.
"""
