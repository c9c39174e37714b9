"""The hot loops, compiled by numba once and kept on the disk; imported only where `choosing` finds that they pay."""
