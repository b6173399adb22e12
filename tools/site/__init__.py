"""The documentation site: its hooks for MkDocs, and the reference pages that are generated from the code."""
