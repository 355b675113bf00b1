"""What the benchmarks share: cells, tasks, methods, statistics and reports."""
