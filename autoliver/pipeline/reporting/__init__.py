"""The command `report`: artefacts and images of a dataset or of predictions -> one page."""
