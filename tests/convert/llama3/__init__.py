"""Llama 3 converted: its weights, whole folders, and what they compute."""
