"""Settings that every test runs under: no network, one thread a process, a home of its own, the same random numbers."""

import atexit
import os
import shutil
import tempfile


# Set before transformers is imported, which reads them then; workers of pytest-xdist and processes that tests start
# inherit them. One thread each: there is one worker a core, and tiny models only get slower with more.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
if "HF_HOME" not in os.environ:
    os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf-home-")
    atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402


torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def fixed_seed():
    """Each test starts from the same random numbers."""
    np.random.seed(0)
    torch.manual_seed(0)
