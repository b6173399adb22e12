"""File formats of dictionaries: mechstudy's own (SAELens'), and those of other tools."""
