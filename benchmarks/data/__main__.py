"""`python -m benchmarks.data` runs `benchmarks/data/run.py`."""

from benchmarks.data.run import main

if __name__ == "__main__":
    main()
