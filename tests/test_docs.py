"""What the documents say is what the code does."""

import re
from pathlib import Path

import pytest

from dialback import Outcome, Settings
from dialback.transport.response_stream import REQUESTER_TABLE, WORKER_TABLE

ROOT = Path(__file__).parent.parent
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()


def _rows(text: str) -> set[tuple[str, ...]]:
    """The cells of all table rows."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return {tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines}


def test_the_documented_tables_of_states_are_the_code() -> None:
    section = ARCHITECTURE.split("## The states of a response stream")[1].split("\n## ")[0]
    worker, requester = section.split("Requester's end of one connection:")
    header = {("state", "event", "next"), ("---", "---", "---")}
    assert _rows(worker) - header == {
        (s.value, e.value, n.value) for (s, e), n in WORKER_TABLE.items()
    }
    assert _rows(requester) - header == {
        (s.value, e.value, n.value) for (s, e), n in REQUESTER_TABLE.items()
    }


def test_every_outcome_is_documented_once() -> None:
    section = ARCHITECTURE.split("## How a request ends")[1].split("\n## ")[0]
    documented = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted(documented) == sorted(Outcome)


def test_every_setting_is_documented_with_its_variable() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    for name in Settings.model_fields:
        assert f"`DIALBACK_{name.upper()}`" in text


@pytest.mark.parametrize(
    "page",
    ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/reliability.md"],
)
def test_links_to_files_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text()):
        assert (ROOT / target).exists(), target
