"""The owner's arithmetic uses one thread a worker, and leaves everybody else's number alone."""

import threading

import torch

from awfulowl.owner.math_threads import single_threaded


def threads_of_a_new_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def test_workers_have_one_thread_and_nobody_else_notices() -> None:
    here, elsewhere = torch.get_num_threads(), threads_of_a_new_thread()
    pool = single_threaded(2)
    try:
        assert {pool.submit(torch.get_num_threads).result() for _ in range(8)} == {1}
        assert torch.get_num_threads() == here
        assert threads_of_a_new_thread() == elsewhere
    finally:
        pool.shutdown()
