"""Images of one modality made to look like another, with their labels kept."""
