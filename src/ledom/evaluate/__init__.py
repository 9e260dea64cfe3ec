"""Evaluates models: benchmarks in either direction, and tasks that only a reverse model can do."""

import os

# tqdm reads this when it is imported. Its bars are off, because ledom shows the progress.
os.environ.setdefault("TQDM_DISABLE", "1")
