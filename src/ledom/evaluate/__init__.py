"""What a model knows: benchmarks in either direction, and what only a reverse model can do."""

import os

# tqdm reads this when it is imported. Its bars are off, because ledom shows the progress.
os.environ.setdefault("TQDM_DISABLE", "1")
