"""Convert Meta's Code Llama and Llama checkpoints to Hugging Face folders."""

from __future__ import annotations

__version__ = "0.1.0"
