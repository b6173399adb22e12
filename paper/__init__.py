"""The paper: its text, and the commands that make its numbers and figures. Not part of the package."""
