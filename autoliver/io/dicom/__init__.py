"""DICOM series as volumes: found in folders, checked, read, and staged as plain image files."""
