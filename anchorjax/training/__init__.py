"""The training job: state, loss, step, optimizer, checkpoints, logging and the loop that joins them."""
