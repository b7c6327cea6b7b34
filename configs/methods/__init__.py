"""Recipes of the training methods, one file each: `method(config)` sets the method's own keys on any configuration."""
