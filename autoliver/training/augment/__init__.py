"""Changes that training patches go through."""
