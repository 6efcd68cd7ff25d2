"""`python -m benchmarks.speed` runs `benchmarks/speed/run.py`."""

from benchmarks.speed.run import main

main()
