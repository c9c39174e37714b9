"""The hot loops, compiled by numba; imported only where they are to run, since importing numba takes a third of a second."""
