"""Training under DeepSpeed: engine, step, loop, checkpoints, metrics."""
