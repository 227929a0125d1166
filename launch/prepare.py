"""`mmsa prepare` as a script, for launchers that need one: see `mmsa prepare --help`."""

from mmsa_dist.cli import main

if __name__ == "__main__":
    main("prepare")
