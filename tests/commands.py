"""Commands as a user types them, run in this process."""

import json

from typer.testing import CliRunner

from autoliver.cli.main import app
from autoliver.system import in_words


def run(*arguments: object) -> dict[str, object]:
    """A command's JSON result; errors are raised, not printed."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        with in_words():  # as the program shows them
            raise result.exception
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def told(*arguments: object) -> str:
    """What a command tells on stderr."""
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stderr
