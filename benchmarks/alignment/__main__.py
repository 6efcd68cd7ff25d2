"""`python -m benchmarks.alignment` runs `benchmarks/alignment/run.py`."""

from benchmarks.alignment.run import main

main()
