"""Threads for the owner's arithmetic, beside whatever the user's threads do."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch


def single_threaded(workers: int) -> ThreadPoolExecutor:
    """Return a pool in which PyTorch uses one thread for each worker; other threads keep the number that they have.

    Parts of a batch are worked on side by side, so a worker needs no helpers; and those of OpenMP spin for a while
    when they are done, on the cores that the fabric, and on one machine the devices, are waiting for.
    """
    others = torch.get_num_threads()
    started = threading.Barrier(workers + 1)

    def settle() -> None:
        # Asked first: PyTorch would otherwise set a new thread to the number of all others at its first operation.
        torch.get_num_threads()
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(workers, thread_name_prefix="awfulowl-math", initializer=settle)
    for _ in range(workers):
        pool.submit(lambda: None)
    started.wait()
    torch.set_num_threads(others)
    return pool
