"""Evidence layer by layer: what each operator computes in two models, where they part, and the smallest piece that shows it."""
