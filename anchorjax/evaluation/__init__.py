"""What the scripts in eval/ are made of: a loaded model, generation, scoring, tasks and their results."""
