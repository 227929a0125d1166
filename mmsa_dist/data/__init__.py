"""From shards to batches of tensors, in an order that is a pure function of seed, epoch and step."""
