"""Jobs that the training loop can do, one file a task."""
