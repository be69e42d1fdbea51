"""All stages in one process: runs what is missing, keeps what is there, refuses misfits."""
