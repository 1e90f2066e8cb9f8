"""What the pipeline costs, each figure beside what it is compared with."""
