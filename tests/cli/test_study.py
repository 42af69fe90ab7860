"""``vidi study``: one, all on a page, exit codes; and what docs/studies.md shows."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidi import studies

Ask = Callable[..., tuple[int, str, str]]
FEW = ["polynomials", "symmetry", "gradient-descent"]
PAGE = Path(__file__).parent.parent.parent / "docs/studies.md"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """All there is are three that take no time."""
    monkeypatch.setattr(studies, "names", lambda: FEW)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    from vidi.studies import polynomials

    wrong = studies.Measured("a < b & c", float("nan"), "at most 1", False)
    monkeypatch.setattr(polynomials, "run", lambda **_: studies.Study((wrong,)))


def test_one_is_said_and_drawn_and_nothing_is_written_over(ask: Ask) -> None:
    code, said, errors = ask("study", "gradient-descent", "--small")
    assert code == 0, errors
    assert "Claim 1 of the lecture: Gradient descent finds" in said
    assert "holds         convex: the farthest" in said
    assert "expected: at most 1e-6" in said
    assert "The claim holds: 7 of 7" in said
    assert "wrote studies/gradient-descent.png" in said
    before = Path("studies/gradient-descent.png").read_bytes()
    assert "wrote studies/gradient-descent-2.png" in ask("study", "gradient_descent", "--small")[1]
    assert Path("studies/gradient-descent.png").read_bytes() == before


def test_json_is_one_object(ask: Ask) -> None:
    code, said, _ = ask("study", "polynomials", "--small", "--json", "--out", "there")
    assert code == 0
    found = json.loads(said)
    assert (found["study"], found["claim"], found["holds"]) == ("polynomials", 9, True)
    assert {"what", "value", "expected", "holds"} == set(found["measured"][0])
    assert found["pictures"] == ["there/polynomials.png"] and Path(found["pictures"][0]).is_file()


@pytest.mark.usefixtures("broken")
def test_what_does_not_hold_is_code_1(ask: Ask) -> None:
    code, said, _ = ask("study", "polynomials", "--small")
    assert code == 1
    assert "DOES NOT HOLD a < b & c: nan" in said and "The claim DOES NOT HOLD: 0 of 1" in said
    code, said, _ = ask("study", "polynomials", "--small", "--json")
    assert code == 1 and json.loads(said)["measured"][0]["value"] is None


class Outline(HTMLParser):
    """Which tags are open, what was linked to and what has a name."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.names: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
        for name, value in attrs:
            found = {"href": self.links, "id": self.names, "src": self.sources}.get(name)
            if found is not None:
                found.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.usefixtures("few")
def test_all_on_one_page(ask: Ask) -> None:
    code, said, errors = ask("study", "--all", "--small", "--out", "lecture")
    assert code == 0, errors
    assert "3 of 3 hold" in said and "wrote lecture/studies.html" in said
    assert [path.name for path in Path("lecture").iterdir()] == ["studies.html"]
    text = Path("lecture/studies.html").read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    in_order = ["gradient-descent", "polynomials", "symmetry"]
    assert outline.names == in_order, "by the claim's number"
    assert [link for link in outline.links if link != "data:,"] == [f"#{n}" for n in in_order]
    assert len(outline.sources) == 3
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in outline.sources)
    assert "://" not in text, "nothing is fetched"
    assert text.count("vidi study ") == 3 and "does not hold" not in text


@pytest.mark.usefixtures("few", "broken")
def test_a_page_with_one_that_does_not_hold(ask: Ask) -> None:
    code, said, _ = ask("study", "--all", "--small", "--json")
    assert code == 1
    found = json.loads(said)
    assert [one["holds"] for one in found["studies"]] == [True, False, True]
    text = Path(found["page"]).read_text(encoding="utf-8")
    assert "2 of 3 hold" in text and "a &lt; b &amp; c" in text
    assert text.count(">does not hold<") == 3, "in the contents, at its head, in its table"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "Give the name of one study, or --all"),
        (("momentum", "--all"), "Give the name of one study, or --all"),
        (("momentun",), "Did you mean momentum"),
        (("momentum", "--small", "--full"), "exclude each other"),
        (("polynomials", "--small", "--out", "file"), "cannot be written to"),
    ],
)
def test_wrong_words(words: tuple[Any, ...], says: str, ask: Ask) -> None:
    Path("file").write_text("")
    code, _, errors = ask("study", *words)
    assert code == 2 and says in errors


def test_full_keeps_its_state_where_it_is_found_again(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vidi.studies import polynomials

    told: list[dict[str, Any]] = []

    def run(**how: Any) -> studies.Study:
        told.append(how)
        return studies.Study(())

    monkeypatch.setattr(polynomials, "run", run)
    for words in (("--full",), ("--full",), ()):
        ask("study", "polynomials", *words)
    assert [how["folder"] for how in told] == [Path("studies/polynomials-full")] * 2 + [None]


def test_what_numpy_says_goes_into_the_json(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    from vidi.studies import polynomials

    told = studies.Measured("so many", np.float64(3), "3", np.bool_(True))  # type: ignore[arg-type]
    monkeypatch.setattr(polynomials, "run", lambda **how: studies.Study((told,)))
    code, said, _ = ask("study", "polynomials", "--json")
    assert code == 0
    assert json.loads(said)["measured"][0]["holds"] is True


def test_they_are_listed_by_claim(ask: Ask) -> None:
    code, said, _ = ask("list", "studies")
    assert code == 0
    lines = said.splitlines()
    assert {line.split()[0] for line in lines} == set(studies.names())
    numbers = [int(line.split()[2]) for line in lines]
    assert numbers == sorted(numbers)


def test_the_docs_name_every_study_by_its_claim() -> None:
    rows = re.findall(r"^\| (\d+) \| .+ \| `vidi study ([a-z-]+)` \|$", PAGE.read_text(), re.M)
    assert {name: int(number) for number, name in rows} == {
        name: studies.find(name).CLAIM for name in studies.names()
    }
    assert [int(number) for number, _ in rows] == sorted(int(number) for number, _ in rows)


def test_the_docs_commands_work(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = re.findall(r"^\$ (vidi .+)$", PAGE.read_text(encoding="utf-8"), re.M)
    assert len(commands) >= 4
    for command in commands:
        words = shlex.split(command)[1:]
        with monkeypatch.context() as patch:
            if "--all" in words:  # a quarter of an hour; three of them in their small form here
                patch.setattr(studies, "names", lambda: FEW)
                words.append("--small")
            code, said, errors = ask(*words)
        assert code == 0, f"{command}\n{said}{errors}"
