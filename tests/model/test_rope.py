"""The rotary reordering, row by row, seen by eye."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from codellama_convert.model.rope import rope_freqs, to_half_split, to_interleaved, whole_heads

# Two heads of six rows and two columns; each row holds its own number and a hundred more.
INTERLEAVED = np.array([[n, 100 + n] for n in range(12)])
# Meta rotates rows 0 and 1, 2 and 3, 4 and 5 of a head together: the first of each pair go in front.
HALF_SPLIT = np.array([[n, 100 + n] for n in (0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11)])


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_the_first_rows_of_all_pairs_come_before_the_second_ones(kind) -> None:
    found = to_half_split(kind(INTERLEAVED), 6)
    assert found.shape == (2, 2, 3, 2)
    assert found.reshape(12, 2).tolist() == HALF_SPLIT.tolist()
    assert HALF_SPLIT.tolist() != INTERLEAVED.tolist()


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_pairs_come_together_again(kind) -> None:
    found = to_interleaved(kind(HALF_SPLIT), 6)
    assert found.shape == (2, 3, 2, 2)
    assert found.reshape(12, 2).tolist() == INTERLEAVED.tolist()
    # The inverse is another reordering: with three pairs a head the two cannot be mixed up.
    assert to_half_split(HALF_SPLIT, 6).reshape(12, 2).tolist() != INTERLEAVED.tolist()


@pytest.mark.parametrize("reorder", [to_half_split, to_interleaved])
def test_nothing_is_copied(reorder) -> None:
    assert np.shares_memory(reorder(INTERLEAVED, 6), INTERLEAVED)


@pytest.mark.parametrize("reorder", [to_half_split, to_interleaved])
@pytest.mark.parametrize(("n_rows", "head_dim"), [(12, 8), (12, 5), (12, 3), (12, 0), (12, -2)])
def test_rows_that_are_no_whole_heads_are_refused(reorder, n_rows, head_dim) -> None:
    """Also 12 rows as four heads of 3: a head needs pairs."""
    told = f"{n_rows} rows are not whole heads of an even head_dim {head_dim}"
    with pytest.raises(ValueError, match=told):
        reorder(np.zeros((n_rows, 2)), head_dim)


@pytest.mark.parametrize(
    ("n_rows", "head_dim", "n_heads"), [(12, 2, 6), (12, 4, 3), (12, 6, 2), (12, 12, 1), (0, 2, 0)]
)
def test_whole_heads_are_counted(n_rows: int, head_dim: int, n_heads: int) -> None:
    assert whole_heads(n_rows, head_dim) == n_heads


def test_frequencies_are_the_nearest_float32_of_each_step() -> None:
    """Of theta 27 the last is not the float32 nearest to 1/9: the exponent 2/3 is rounded first."""
    tenth, hundredth = 0.10000000149011612, 0.009999999776482582
    assert rope_freqs(10000.0, 8) == (1.0, tenth, hundredth, 0.0010000000474974513)
    assert rope_freqs(27.0, 6) == (1.0, 0.3333333432674408, 0.1111110970377922)
    assert float(np.float32(1 / 9)) == 0.1111111119389534
    assert rope_freqs(10000.0, 2) == (1.0,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("theta", [10000.0, 500000.0, 1000000.0])
def test_frequencies_are_those_of_metas_code(theta: float, dtype: torch.dtype) -> None:
    of_meta = 1.0 / (theta ** (torch.arange(0, 128, 2).float() / 128))
    found = torch.tensor(rope_freqs(theta, 128), dtype=torch.float32)
    assert found.to(dtype).view(torch.int16).equal(of_meta.to(dtype).view(torch.int16))
    other = torch.tensor(rope_freqs(theta + 1000, 128), dtype=torch.float32)
    assert not other.to(dtype).view(torch.int16).equal(of_meta.to(dtype).view(torch.int16))
