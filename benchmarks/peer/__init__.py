"""What nnU-Net's own Python runs; imports nothing of autoliver."""
