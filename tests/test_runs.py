"""What every run needs: progress where there is no terminal."""

import re
import sys

import runs


def test_progress_without_a_terminal_is_lines(monkeypatch, capsys):
    """None at once, and then one each time that the seconds between them are over."""
    for _ in runs.progress(range(3), desc="fast"):
        pass
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(runs, "PROGRESS_SECONDS", 1e-9)
    with runs.progress(total=4, desc="L-BFGS-B", unit=" simulations") as bar:
        for _ in range(4):
            bar.set_postfix(best_loss="1.2", refresh=False)
            bar.update()
    output, errors = capsys.readouterr()
    assert errors == ""
    lines = output.splitlines()
    assert len(lines) >= 3
    assert all(line.startswith("L-BFGS-B:") and "best_loss=1.2" in line for line in lines[1:])
    assert re.search(r"4/4 \[", lines[-1])


def test_progress_on_a_terminal_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for _ in runs.progress(range(3), desc="fast"):
        pass
    output, errors = capsys.readouterr()
    assert output == ""
    assert "fast:" in errors
