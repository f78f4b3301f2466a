"""One thread: the workers of the tests share the cores, and these products are tiny."""

import torch

torch.set_num_threads(1)
