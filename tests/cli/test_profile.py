"""`vidi profile`: the table, the JSON, a run's network, one's own, and what it refuses."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

import vidi
from vidi.cli.profile import ROWS

Ask = Callable[..., tuple[int, str, str]]

OWN = """
import torch
from torch import nn


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return gradient  # should be 2 * gradient


class Layer(nn.Module):
    def forward(self, x):
        return Doubled.apply(x)


def tiny(num_classes=5, wrong=False):
    middle = Layer() if wrong else nn.Tanh()
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), middle, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, num_classes),
    )
    net.image_size = 32
    return net


def wrong(num_classes=5):
    return tiny(num_classes, True)


def loose(**kwargs):
    return tiny(**kwargs)


def frozen():
    return tiny().requires_grad_(False)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"nets_{abs(hash(tmp_path))}"  # modules of one name would be imported once
    (tmp_path / f"{name}.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_the_table_is_aligned_and_adds_up(ask: Ask) -> None:
    code, out, err = ask("profile", "resnet18", "--image-size", 64, "--batch-size", 2)
    assert code == 0
    assert err == ""
    table, _, told = out.partition("\n\n")
    head, *rows, total = table.splitlines()
    assert head.split() == [
        *("layer", "kind", "output", "parameters", "MACs", "sees", "keeps", "forward"),
        *("backward", "share"),
    ]
    column = head.index("parameters") + len("parameters")
    for line in (*rows, total):
        assert line[column] == " "
        assert line[column - 1] != " "
    assert total.split()[:3] == ["total", "11.7", "M"]
    shares = [float(row.rpartition(" ")[2].removesuffix("%")) for row in rows]
    assert sum(shares) == pytest.approx(100, abs=3)
    assert "11,689,512 parameters, 148,557,824 multiply-adds" in told
    assert "Training on 2 images keeps" in told
    assert re.search(r"forward takes [\d.,]+ ms and backward [\d.,]+ ms, \d\.\d\d times", told)


def test_no_more_rows_than_can_be_read_unless_asked(ask: Ask) -> None:
    def rows(*more: object) -> list[str]:
        code, out, _ = ask("profile", "googlenet", "--no-time", *more)
        assert code == 0
        return [line.split()[0] for line in out.partition("\n\n")[0].splitlines()[1:-1]]

    assert 20 < len(rows()) <= ROWS
    assert "inception3a" in rows()
    assert len(rows("--depth", "all")) > 150
    assert all("." not in row for row in rows("--depth", 1))
    _, out, _ = ask("profile", "googlenet", "--no-time")
    assert "forward" not in out.partition("\n\n")[0]
    assert "6,624,904 parameters, 1,498,376,192 multiply-adds" in out


def test_json_holds_every_layer(ask: Ask) -> None:
    code, out, _ = ask("profile", "fast_rcnn_small", "--regions", 3, "--image-size", 64, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["regions"] == 3
    assert found["ratio"] == pytest.approx(found["backward"] / found["forward"])
    for name in ("parameters", "macs", "memory"):
        assert sum(row[name] for row in found["layers"]) == found[name], name
    code, out, _ = ask("profile", "resnet20", "--no-time", "--json")
    rows = {row["name"]: row for row in json.loads(out)["layers"]}
    assert rows["conv1"]["field"] == 3
    assert rows["avgpool"]["field"] == "whole"
    assert rows["fc"]["field"] is None
    assert rows["conv1"]["forward"] is None


def test_a_run_s_network(ask: Ask, tmp_path: Path) -> None:
    run = tmp_path / "run"
    vidi.train(
        "digits",
        run=run,
        model="mlp",
        epochs=0.05,
        device="cpu",
        precision="fp32",
        data={"threads": 0},
        logging={"pictures": False},
    )
    code, out, _ = ask("profile", run, "--gradcheck", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["image_size"] == vidi.load(run).recipe.image_size
    assert found["parameters"] == sum(p.numel() for p in vidi.load(run).network.parameters())
    assert found["gradcheck"]["passed"]
    assert found["gradcheck"]["tensors"] == 6
    code, _, err = ask("profile", run, "--classes", 3)
    assert code == 2
    assert "Leave --classes out" in err


def test_one_s_own_network_and_its_gradient(ask: Ask, own: str) -> None:
    code, out, _ = ask("profile", f"{own}:tiny", "--classes", 3, "--no-time", "--gradcheck")
    assert code == 0
    assert "127 parameters" in out
    assert "The gradient is right." in out
    code, out, _ = ask("profile", f"{own}:wrong", "--no-time", "--gradcheck")
    assert code == 1
    assert "The gradient is wrong for 2 of 4 tensors." in out
    assert "0.weight" in out


def test_a_builder_of_any_arguments(ask: Ask, own: str) -> None:
    code, out, _ = ask("profile", f"{own}:loose", "--classes", 3, "--no-time")
    assert code == 0 and "127 parameters" in out


def test_a_network_of_which_nothing_learns(ask: Ask, own: str) -> None:
    code, out, _ = ask("profile", f"{own}:frozen")
    assert code == 0 and "forward" not in out.partition("\n\n")[0]
    assert "Not timed: no output hangs on a parameter that learns" in out
    assert "Not timed" not in ask("profile", f"{own}:frozen", "--no-time")[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["resnet19"], "There is no network called 'resnet19'"),
        (["resnet20", "--image-size", "0"], "--image-size is 0; at least 1 is needed."),
        (["resnet20", "--depth", "0"], "--depth is 0"),
        (["resnet20", "--regions", "5"], "--regions is for detection"),
        (["alexnet", "--image-size", "20"], "cannot take images of 20 × 20 pixels"),
        (["hed_small", "--classes", "3"], "takes no number of classes"),
        (["resnet20", "--device", "abacus"], "The device 'abacus' is not to be had here"),
    ],
)
def test_what_it_refuses(ask: Ask, words: list[str], said: str) -> None:
    code, out, err = ask("profile", *words)
    assert code == 2
    assert out == ""
    assert said in err


def test_the_page_s_commands_work(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parent.parent.parent / "docs/profile.md").read_text(encoding="utf-8")
    for file, code in re.findall(r"^```python title=(\S+)\n(.*?)^```", page, re.M | re.S):
        (tmp_path / file).write_text(code, encoding="utf-8")
    commands = re.findall(r"^\$ (.*)$", page, re.M)
    assert len(commands) >= 5
    monkeypatch.chdir(tmp_path)
    for command in commands:
        verb, *words = shlex.split(command)
        assert verb == "vidi"
        code, out, err = ask(*words)
        assert code == ("wrong" in command), f"{command}\n{out}{err}"
    for code in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S):
        exec(compile(code, "docs/profile.md", "exec"), {})
