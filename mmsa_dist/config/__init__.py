"""Configuration: one typed, frozen tree; `default.yaml` holds every key."""
