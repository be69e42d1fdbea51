"""The command `doctor`."""


def doctor() -> None:
    """Doc."""
