"""How many threads multiply in this process."""

import os


def limit_threads(count: int) -> None:
    """Let PyTorch, and the libraries that it multiplies with, use so many threads. Call it before PyTorch is loaded.

    `torch.set_num_threads` is not enough: it does not reach convolutions in threads that are started later, and two
    threads that wait for each other on busy cores take twenty times as long as one.
    """
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(count)
