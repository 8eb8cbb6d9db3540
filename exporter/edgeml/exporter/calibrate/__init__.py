"""One calibration engine for every format: tensors are watched sample by sample, observers turn what was seen into ranges."""
