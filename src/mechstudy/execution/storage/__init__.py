"""What a run keeps, packs, brings back and lets go (docs/storage.md)."""
