"""Self-configuring segmentation of liver and liver tumours in CT and MR, with transfer."""
