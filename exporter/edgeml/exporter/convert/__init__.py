"""fp32 models in each format. A module has one job per family: `from_<family>(source, out) -> notes`, run in its worker."""
