"""What a model knows: benchmarks in either direction, and what only a reverse model can do."""

import os

os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported; ledom shows its progress
