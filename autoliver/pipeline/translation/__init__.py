"""The command synthesize: images of another modality, with the labels of their sources."""
