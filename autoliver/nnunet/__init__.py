"""Models of nnU-Net, in and out."""
