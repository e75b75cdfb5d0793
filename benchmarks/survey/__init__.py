"""Run every operation of mlpconv.surgery on networks of other libraries and check each result: see coverage.py."""
