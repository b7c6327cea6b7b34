"""The training job: set-up, state, objectives, step, optimizer, leakage probe, evaluation, logging, and the loop."""
