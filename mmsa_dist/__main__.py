"""``python -m mmsa_dist`` is ``mmsa``."""

from mmsa_dist.cli import main

main()
