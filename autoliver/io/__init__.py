"""Files <-> volumes: the only place that knows file formats."""
