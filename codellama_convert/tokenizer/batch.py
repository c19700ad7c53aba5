"""Own the shape of encoded texts: padding, masks, arrays."""

from __future__ import annotations

from typing import Any, Literal

from codellama_convert.errors import TokenizerError

PaddingSide = Literal["left", "right"]


class TokenBatch(dict[str, Any]):
    """What a model takes as keywords: `input_ids` and `attention_mask`, as items and attributes."""

    @property
    def input_ids(self) -> Any:
        """The ids."""
        return self["input_ids"]

    @property
    def attention_mask(self) -> Any:
        """1 for a token of the text, 0 for padding."""
        return self["attention_mask"]

    def to(self, device: Any) -> TokenBatch:
        """Copy tensors to a torch device."""
        return TokenBatch((name, tensor.to(device)) for name, tensor in self.items())


def token_batch(
    rows: list[list[int]],
    *,
    padding: bool | Literal["longest", "max_length"],
    max_length: int | None,
    padding_side: PaddingSide,
    pad_id: int,
    return_tensors: Literal["np", "pt"] | None,
) -> TokenBatch:
    """Pad rows of ids, mask the padding, and stack them if asked to.

    Args:
        rows: One list of ids a text.
        padding: False, True or "longest", or "max_length".
        max_length: Tokens, for "max_length".
        padding_side: Where the padding goes.
        pad_id: What it consists of; the mask distinguishes it from text.
        return_tensors: None for lists, "np" or "pt" for int64 of shape (n_rows, n_tokens).

    Returns:
        `input_ids` and `attention_mask`, of the same shape.

    Raises:
        TokenizerError: If the options contradict each other, or rows of unequal length are to be
            stacked.
    """
    length = 0
    if padding == "max_length":
        if max_length is None:
            raise TokenizerError("padding='max_length' without a length", hint="pass max_length")
        length = max_length
    elif padding:
        length = max(map(len, rows), default=0)
    ids, masks = [], []
    for row in rows:
        missing = max(0, length - len(row))
        before, after = (missing, 0) if padding_side == "left" else (0, missing)
        ids.append([pad_id] * before + row + [pad_id] * after)
        masks.append([0] * before + [1] * len(row) + [0] * after)
    lengths = sorted({len(row) for row in ids})
    if return_tensors is not None and len(lengths) > 1:
        raise TokenizerError(
            f"texts of {lengths[0]} to {lengths[-1]} tokens do not fit one tensor",
            hint="pass padding=True",
        )
    return TokenBatch(
        input_ids=_stack(ids, return_tensors), attention_mask=_stack(masks, return_tensors)
    )


def _stack(rows: list[list[int]], kind: Literal["np", "pt"] | None) -> Any:
    # Imported here: who wants lists needs neither library.
    if kind == "np":
        import numpy as np  # noqa: PLC0415

        return np.array(rows, dtype=np.int64)
    if kind == "pt":
        import torch  # noqa: PLC0415

        return torch.tensor(rows, dtype=torch.int64)
    if kind is None:
        return rows
    raise TokenizerError(f"unknown return_tensors {kind!r}", hint="pass 'np', 'pt' or nothing")
