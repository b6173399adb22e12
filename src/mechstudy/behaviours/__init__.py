"""Prompt families: contrastive pairs with named positions, and the schema for a user's own."""
