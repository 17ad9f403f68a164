import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from resnet_repro.counter_hash import _mix, hash32

COUNTER = st.integers(0, 2**32 - 1)


def fmix32(h: int) -> int:
    """The finaliser as MurmurHash3.cpp defines it, in Python's unbounded integers."""
    h ^= h >> 16
    h = h * 0x85EBCA6B % 2**32
    h ^= h >> 13
    h = h * 0xC2B2AE35 % 2**32
    return h ^ h >> 16


@pytest.mark.parametrize(("seed", "digest"), [(0, 0), (1, 0x514E28B7), (0xFFFF_FFFF, 0x81F16F39)])
def test_the_published_vectors_of_murmurhash3(seed, digest):
    """MurmurHash3_x86_32 of the empty string is the finaliser of its seed."""
    assert fmix32(seed) == digest
    assert int(_mix(torch.tensor(seed))) == digest


@given(st.lists(COUNTER, min_size=1, max_size=5))
def test_nothing_overflows(counters):
    state = 0x9E3779B9
    for counter in counters:
        state = fmix32((state * 31 + counter + 0x7F4A7C15) % 2**32)
    assert int(hash32(*counters)) == state
    assert int(hash32(*map(torch.tensor, counters))) == state


@given(COUNTER, COUNTER)
def test_the_order_of_the_counters_matters(a, b):
    assert (int(hash32(a, b)) == int(hash32(b, a))) == (a == b)


def test_counters_broadcast():
    rows, columns = torch.arange(3)[:, None], torch.arange(5)
    table = hash32(1, rows, columns)
    assert table.shape == (3, 5)
    assert table.dtype == torch.int64
    assert int(table[2, 4]) == int(hash32(1, 2, 4))


@pytest.mark.parametrize("prefix", [(0,), (1, 2), (7, 0, 3)])
def test_one_counter_alone_never_collides(prefix):
    """Each step is a bijection of 32 bits."""
    values = hash32(*prefix, torch.arange(2**18))
    assert len(values.unique()) == 2**18
    assert 0 <= int(values.min()) <= int(values.max()) < 2**32


@pytest.mark.parametrize("which", [0, 1, 2])
def test_every_byte_is_uniform_along_every_counter(which):
    counters: list[int | torch.Tensor] = [3, 1, 5]
    counters[which] = torch.arange(100_000)
    values = hash32(*counters)
    for shift in (0, 8, 16, 24):
        assert stats.chisquare(torch.bincount((values >> shift) & 255, minlength=256)).pvalue > 1e-4
    pairs = (values[:-1] >> 28 << 4) | values[1:] >> 28  # neighbours do not depend on each other
    assert stats.chisquare(torch.bincount(pairs, minlength=256)).pvalue > 1e-4


@pytest.mark.parametrize("bit", range(0, 32, 5))
def test_every_input_bit_flips_half_of_the_output_bits(bit):
    counters = torch.arange(20_000)
    changed = hash32(1, counters) ^ hash32(1, counters ^ (1 << bit))
    for output in range(32):
        share = ((changed >> output) & 1).double().mean()
        assert abs(share - 0.5) < 0.03
