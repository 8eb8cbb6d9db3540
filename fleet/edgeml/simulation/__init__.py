"""A fleet in one process: the device's own state machines and wire, many times over."""
