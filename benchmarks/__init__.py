"""What this machine measures: `scripts/bench NAME [--json]`."""
