"""Molecules to shards: reading, standardizing, featurizing and packing, without torch."""
