"""What a model knows: benchmarks in either direction, and what only a reverse model can do."""
