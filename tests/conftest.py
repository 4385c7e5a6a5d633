"""Settings that every test runs under: no network, one thread a worker, the same random numbers each time."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np  # noqa: E402  (huggingface_hub reads the variable when it is imported)
import pytest  # noqa: E402
import torch  # noqa: E402


# With pytest-xdist there is one worker a core; threads within each would only get in each other's way.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed():
    np.random.seed(0)
    torch.manual_seed(0)
