"""Structure awareness: neighbours among all molecules, the hypergraph that they make, the memory of anchors."""
