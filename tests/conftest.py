"""Every test starts from the same seed and leaves the global defaults as they were."""

from collections.abc import Iterator

import pytest
import torch

collect_ignore = ["optim/make_reference.py"]  # runs in an environment of its own, with jax


torch.set_num_threads(1)  # the tensors are tiny; idle threads spin, and starve whoever works beside


@pytest.fixture(autouse=True)
def _reproducible() -> Iterator[None]:
    torch.manual_seed(0)
    dtype = torch.get_default_dtype()
    yield
    assert torch.get_default_dtype() == dtype, "a test changed the default dtype"
