"""What a run says while it runs, on a terminal, elsewhere, and where nobody reads it."""

import io

from tfdecouple.training.progress import Progress


def test_plain_lines_where_there_is_no_terminal():
    file = io.StringIO()
    progress = Progress(100, file)
    for step in range(1, 101):
        progress.update(step, 3.14159, 1000.4)
    progress.say("all said")
    progress.close()
    lines = file.getvalue().splitlines()
    # Not a line a step: the first, at most one each 15 seconds, and the last.
    assert [line.split(":")[0] for line in lines] == ["step 1/100", "step 100/100", "all said"]
    assert lines[1].startswith("step 100/100: 3.142 bits/dim, 1000 images/s, 0 s left")
    assert "\r" not in file.getvalue() and "\x1b" not in file.getvalue()


def test_one_line_that_moves_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    file = Terminal()
    progress = Progress(4, file)
    progress.begin(0)
    for step in (1, 2, 3, 4):
        progress.update(step, 3.14159, 1000.4)
    progress.close()
    assert "4/4" in file.getvalue().split("\r")[-1]
    assert file.getvalue().count("\n") <= 1


def test_progress_goes_on_in_silence_where_its_output_is_gone(capsys):
    class Gone:
        def isatty(self):
            return False

        def write(self, text):
            raise OSError(5, "Input/output error")

        def flush(self):
            raise OSError(5, "Input/output error")

    progress = Progress(2, Gone())
    progress.update(1, 3.0, 10.0)
    progress.say("more")
    progress.update(2, 3.0, 10.0)
    progress.close()
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "cannot write to standard output (Input/output error); training goes on" in err
