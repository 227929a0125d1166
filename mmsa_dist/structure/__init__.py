"""Structure awareness: neighbours among all molecules, the hypergraph that they form, the memory of anchors."""
