"""DICOM series as cases: found, named and chosen, and staged as plain image files."""
