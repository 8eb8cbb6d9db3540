"""The demo behind `scripts/demo`: one model's life, from training to a rollout that stops itself."""
