from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmsa_dist.data.hashing import STEP, mix, mix_tensor, signed


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_torch_and_numpy_give_the_same_bits(words: list[int]) -> None:
    state = np.array(words, dtype=np.int64)
    with np.errstate(over="ignore"):
        expected = mix(state.view(np.uint64)).view(np.int64)
    assert mix_tensor(torch.from_numpy(state)).tolist() == expected.tolist()


def test_the_published_generator() -> None:
    """The first number of SplitMix64 from seed 0."""
    assert mix_tensor(torch.tensor([signed(STEP)])).tolist() == [signed(0xE220A8397B1DCDAF)]
