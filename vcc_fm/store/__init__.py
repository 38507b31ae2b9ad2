"""Stores: Hugging Face datasets beside a ``store.json`` that says what they hold and where it came from."""
