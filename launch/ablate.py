"""`mmsa ablate` as a script, for launchers that need one: see `mmsa ablate --help`."""

from mmsa_dist.cli import main

if __name__ == "__main__":
    main("ablate")
