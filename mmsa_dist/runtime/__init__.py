"""Processes, seeds and the run folder: what a run stands on."""
