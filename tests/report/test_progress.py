"""The displays, as a log file and a terminal see them."""

from __future__ import annotations

import io
import re

import pytest

from vidi.report import progress
from vidi.report.progress import Plain, Silent, Terminal, duration


class TTY(io.StringIO):
    def isatty(self) -> bool:
        return True


def train(display: Silent, epochs: int = 2, steps: int = 5) -> None:
    """What the engine tells a display in the course of a run."""
    with display:
        display.note("3 classes, 640 images: a folder per class with train and val folders.")
        display.start(
            total_steps=epochs * steps, steps_per_epoch=steps, epochs=float(epochs), start_step=0
        )
        for epoch in range(epochs):
            for step in range(steps):
                display.step(epoch * steps + step + 1, 1.5, 1234.5)
            display.evaluated(
                epoch=float(epoch + 1),
                train_loss=0.4321,
                metrics={"accuracy": 0.9 + 0.01 * epoch, "cross_entropy": 0.3},
                headline="accuracy",
                best=epoch == 0,
                images_per_second=1234.5,
                seconds_left=75.0,
            )
        display.finish([("val accuracy", "0.9100"), ("run", "runs/x")])


def test_a_log_has_a_plain_line_per_event() -> None:
    stream = io.StringIO()
    train(Plain(stream))
    text = stream.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    first, second = (line for line in text.splitlines() if line.startswith("epoch"))
    for part in ("1/2", "loss 0.4321", "accuracy 0.9000 *", "1,234 images/s", "1 min 15 s left"):
        assert part in first
    assert "accuracy 0.9100" in second
    assert "*" not in second
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"val accuracy +0\.9100", text)


def test_a_log_hears_of_a_long_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    stream = io.StringIO()
    display = Plain(stream)
    display.start(total_steps=None, steps_per_epoch=1000, epochs=3.0, start_step=0)
    for step in range(1, 101):
        now += 1.0
        display.step(step, 2.0, 32.0)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3, "one line every 30 seconds of 100"
    assert lines[0] == "epoch 0.03/3  step 30  loss 2.0000  32 images/s"
    now += 31.0
    display.step(101, 2.0, 0.0)
    assert stream.getvalue().endswith("loss 2.0000  – images/s\n"), "not measured yet"


def test_a_resumed_run_says_where_it_goes_on() -> None:
    stream = io.StringIO()
    Plain(stream).start(total_steps=40, steps_per_epoch=10, epochs=4.0, start_step=25)
    assert stream.getvalue() == "Resumed at step 25, epoch 2.5.\n"


def test_a_terminal_shows_the_same_lines_and_is_left_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    stream = TTY()
    train(Terminal(stream))
    text = stream.getvalue()
    assert "accuracy 0.9000 *" in text
    assert "\x1b[?25h" in text, "the cursor is shown again"
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_a_terminal_is_left_clean_by_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = TTY()

    def fail() -> None:
        with Terminal(stream) as display:
            display.start(total_steps=9, steps_per_epoch=3, epochs=3.0, start_step=0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    text = stream.getvalue()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_a_sentence_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Square brackets are rich's markup, and may stand in a file's name."""
    monkeypatch.setenv("COLUMNS", "80")
    stream = TTY()
    Terminal(stream).note("[red]/photos/[1].jpg cannot be read.")
    assert "[red]/photos/[1].jpg cannot be read." in stream.getvalue()


def test_the_display_suits_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(progress.display(TTY())) is Terminal
    assert type(progress.display(io.StringIO())) is Plain
    monkeypatch.setenv("RANK", "1")
    assert type(progress.display(TTY())) is Silent


def test_silence() -> None:
    train(Silent())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.9, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_length_that_is_measured_is_shown_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    for display in (Plain(io.StringIO()), Terminal(TTY())):
        with display:
            display.start(total_steps=None, steps_per_epoch=5, epochs=60.0, start_step=0)
            display.step(1, 1.5, 10.0)
            display.measured(40)
            display.step(2, 1.5, 10.0)
            if isinstance(display, Terminal):
                assert display.bar is not None and display.bar.tasks[0].total == 40
                assert display.bar.tasks[0].fields["epoch"] == "0.4/8"
            else:
                assert isinstance(display.stream, io.StringIO)
                assert display.stream.getvalue().splitlines()[-1].startswith("epoch 0.4/8 ")
