"""The trainer that trainwatch watches: a real training loop, its faults and their cures. Start with `train.py`."""
