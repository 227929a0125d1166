"""What each idea is worth: pre-trains one model per arm, and judges them side by side."""

from mmsa_dist.cli import main

if __name__ == "__main__":
    main("ablate")
