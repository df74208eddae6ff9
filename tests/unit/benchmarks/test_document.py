from pathlib import Path

import pytest

from benchmarks.document import BEGIN, END, replaced, write
from benchmarks.report import ReportError


def test_only_what_is_between_the_markers_changes() -> None:
    before = f"# By hand\n\n{BEGIN}\nold\n{END}\n\nmore by hand\n"
    after = f"# By hand\n\n{BEGIN}\n\nnew\n\n{END}\n\nmore by hand\n"
    assert replaced(before, "new\n") == after
    assert replaced(after, "new\n") == after


@pytest.mark.parametrize("document", ["", BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_document_without_its_markers_is_left_alone(document: str, tmp_path: Path) -> None:
    file = tmp_path / "a.md"
    file.write_text(document)
    with pytest.raises(ReportError):
        write(file, "new")
    assert file.read_text() == document


def test_a_new_document_holds_what_was_measured(tmp_path: Path) -> None:
    write(tmp_path / "a.md", "new")
    assert (tmp_path / "a.md").read_text() == f"{BEGIN}\n\nnew\n\n{END}\n"
