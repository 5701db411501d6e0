import sys

from minidl.cli import layout


def printed(monkeypatch, capsys, text, **options):
    """What `echo` puts on a terminal of 40 columns."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    layout.echo(text, **options)
    return capsys.readouterr().out


def test_columns_are_aligned() -> None:
    rows = [("name", "count"), ("a", "1,000"), ("longer", "")]
    assert layout.table(rows, "<>") == ["name    count", "a       1,000", "longer"]


def test_a_paragraph_fits_the_terminal(monkeypatch, capsys) -> None:
    lines = printed(monkeypatch, capsys, "word " * 20, indent=6, first="pass  ").splitlines()
    assert lines[0].startswith("pass  word")
    assert len(lines) > 1
    assert all(line.startswith("      word") for line in lines[1:])
    assert max(map(len, lines)) <= 40
    assert " ".join(lines).split() == ["pass", *["word"] * 20]


def test_what_must_not_be_broken_is_not(monkeypatch, capsys) -> None:
    path = "/a/path-that/is-much/longer-than/any-line/of-this/terminal"
    assert path in printed(monkeypatch, capsys, f"see {path}")


def test_one_line_where_there_is_no_terminal(capsys) -> None:
    layout.echo("word " * 50, indent=2)
    assert capsys.readouterr().out.count("\n") == 1
