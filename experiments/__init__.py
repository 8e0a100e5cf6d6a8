"""The studies: each is a package that runs as ``python -m experiments.STUDY`` from the root of the repository."""
