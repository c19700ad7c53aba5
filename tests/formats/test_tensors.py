"""The names of element types, and what a shape says."""

from __future__ import annotations

import pytest

from codellama_convert.choices import DTYPE_NAMES
from codellama_convert.tensors import (
    BFLOAT16,
    DTYPES,
    FLOAT16,
    FLOAT32,
    Dtype,
    TensorSpec,
    dtype_named,
)


@pytest.mark.parametrize(
    ("dtype", "names"),
    [
        (BFLOAT16, ["bfloat16", "BF16", "bf16", "torch.bfloat16"]),
        (FLOAT16, ["float16", "F16", "fp16", "half", "torch.half", "torch.float16"]),
        (FLOAT32, ["float32", "F32", "fp32", "float", "torch.float", "Float32"]),
    ],
)
def test_a_dtype_is_found_by_every_name_it_has(dtype: Dtype, names: list[str]) -> None:
    for name in names:
        assert dtype_named(name) is dtype


def test_the_names_for_a_command_line_are_all_found() -> None:
    assert DTYPE_NAMES == (
        "bfloat16", "float16", "float32", "bf16", "fp16", "fp32", "half", "float",
    )  # fmt: skip
    assert {name for dtype in DTYPES for name in (dtype.name, dtype.short)} < set(DTYPE_NAMES)
    found = [dtype_named(name) for name in DTYPE_NAMES]
    assert found == [BFLOAT16, FLOAT16, FLOAT32, BFLOAT16, FLOAT16, FLOAT32, FLOAT16, FLOAT32]


@pytest.mark.parametrize("name", ["", "auto", "float64", "torch.", "bfloat", "int8"])
def test_an_unknown_name_is_told_beside_those_that_are_known(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}'; known dtypes: bfloat16, float16, float32$"):
        dtype_named(name)


@pytest.mark.parametrize(
    ("shape", "n_rows", "n_columns"), [((3, 5), 3, 5), ((5, 3), 5, 3), ((7,), 7, 1), ((), 1, 1)]
)
def test_a_vector_has_one_column_and_a_scalar_one_row_too(shape, n_rows, n_columns) -> None:
    spec = TensorSpec("t", BFLOAT16, shape)
    assert (spec.n_rows, spec.n_columns) == (n_rows, n_columns)
    assert spec.n_bytes == 2 * n_rows * n_columns
