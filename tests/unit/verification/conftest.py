"""One thread for PyTorch: the tests run in several processes, which would fight for the same cores."""

import torch

torch.set_num_threads(1)
