"""Process groups, operators, seeds and files that all other parts build on."""
