"""The terms of the objective, one file each."""
