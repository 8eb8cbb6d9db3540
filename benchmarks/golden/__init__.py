"""Whether golden vectors stop a broken engine and let every healthy one through: `scripts/bench golden`."""
