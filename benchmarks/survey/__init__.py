"""Every operation of mlpconv.surgery on many networks of other libraries, each result judged anew: see coverage.py."""
