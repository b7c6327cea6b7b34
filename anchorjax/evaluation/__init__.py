"""What a long-context model is asked, and how its answers are scored; generating them is somebody else's work."""
