"""What a training minimises and counts."""
