"""The help pages."""

import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from autoliver.cli.help import help_hint
from autoliver.cli.main import app
from autoliver.evaluation.results import ALL_METRICS

COMMANDS = [command.name for command in app.registered_commands if not command.hidden]


def shown(*words: str) -> str:
    result = CliRunner().invoke(app, [*words], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_a_page_fits_80_columns_and_has_no_names_of_types(command: list[str]) -> None:
    page = shown(*command, "--help")
    assert max(map(len, page.splitlines())) <= 80
    assert re.findall(r"<[a-z]|[<>]=|\brange\b|\blist\[|\{[A-Z]", page) == []
    assert "..." not in page.partition("Commands:")[2]  # no summary is cut
    if command:
        example = page.partition("Example:")[2].strip()
        assert example.startswith(f"autoliver {command[0]}")


def test_options_are_in_groups() -> None:
    page = shown("train", "--help")
    groups = re.findall(r"^(\S.*):$", page, re.M)
    assert groups == [
        *("Arguments", "Run", "Transfer", "Length", "Learning", "Patches", "Machine", "General"),
        "Example",
    ]
    assert "-v, --verbose" in page
    words = " ".join(shown("predict", "--help").split())
    assert "[default: 0.5; from 0.1 to 1.0]" in words


def test_metrics_are_listed() -> None:
    words = " ".join(shown("evaluate", "--help").split())
    assert all(metric in words for metric in ALL_METRICS)


def test_help_is_a_command_too() -> None:
    assert shown("help", "train").splitlines()[2:] == shown("train", "--help").splitlines()[2:]
    assert "Commands:" in shown("help")
    for inner in (["synthesize"], ["synthesize", "fit"]):
        assert shown("help", *inner).splitlines()[2:] == shown(*inner, "--help").splitlines()[2:]
    for wrong in (["synthesize", "fitt"], ["train", "fit"]):
        refused = CliRunner().invoke(app, ["help", *wrong])
        assert refused.exit_code == 2
        assert f"there is no command '{' '.join(wrong)}'" in refused.output
    wrong = CliRunner().invoke(app, ["synthesize", "fit", "--nothing"], standalone_mode=False)
    assert help_hint(wrong.exception) == "Its options: autoliver help synthesize fit"
    refused = CliRunner().invoke(app, ["help", "trian"])
    assert refused.exit_code == 2
    assert "Did you mean train?" in refused.stderr


def test_shells_can_complete() -> None:
    script = (
        "import sys; sys.argv = ['autoliver', '--show-completion', 'bash'];"
        "from autoliver.cli.main import run; run()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "--install-completion" in shown("--help")
    assert done.returncode == 0 or "shell" in done.stderr.lower()


def test_no_summary_is_cut_on_a_terminal_of_80_columns() -> None:
    """The runner of the other tests gives pages another width than a terminal."""
    words = ["env", "COLUMNS=80", sys.executable, "-m", "autoliver", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "..." not in done.stdout.partition("Commands:")[2]
    assert "  plan  " in done.stdout
