"""Own what a checkpoint folder's name says of the model."""

from __future__ import annotations

import re

from codellama_convert.choices import FLAVORS, Flavor
from codellama_convert.model.releases import Family

_FAMILIES_OF_3: dict[str, Family] = {
    "3": "Llama 3", "3-1": "Llama 3.1", "3-2": "Llama 3.2", "3-3": "Llama 3.3",
    "guard-2": "Llama Guard 2", "guard-3": "Llama Guard 3",
}  # fmt: skip
_NAME_OF_3 = re.compile(r"llama-?(guard-[23]|3-[123]|3)(?![a-z0-9])")


def read_folder_name(name: str) -> tuple[Family | None, Flavor | None]:
    """Read the family and the flavour off a folder's name.

    Args:
        name: Such as "CodeLlama-7b-Instruct", "llama-2-13b-chat" or "30B".

    Returns:
        What the name says; None where it says nothing.
    """
    words = re.sub(r"[^a-z0-9]+", "-", name.lower())
    family: Family | None = None
    third = _NAME_OF_3.search(words)
    if re.search(r"code-?llama", words):
        family = "Code Llama"
    elif third:
        family = _FAMILIES_OF_3[third[1]]
    elif re.search(r"llama-?2(-|$)", words):
        family = "Llama 2"
    elif re.search(r"llama-?1(-|$)", words) or re.fullmatch(r"(7|13|30|33|65)b", words):
        family = "Llama 1"  # its download script names a folder by the size alone
    found = re.search(r"(?:^|-)(python|instruct|chat)(?:-|$)", words)
    if family in ("Llama Guard 2", "Llama Guard 3"):
        return family, "guard"
    if found:
        return family, next(flavor for flavor in FLAVORS if flavor == found[1])
    return family, None if family is None else "base"
