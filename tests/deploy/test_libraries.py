"""What other libraries say, as vidi passes it on."""

import pytest

from vidi.deploy import libraries


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("", "RuntimeError"),
        ("\n\n  no kernel for Foo \n  at line 3\n", "no kernel for Foo"),
        ("\x1b[96m[torch.onnx]\x1b[0m \x1b[1;31mfailed\x1b[0m", "[torch.onnx] failed"),
        ("\x1b[31m\n\x1b[0mafter a line of colour alone", "after a line of colour alone"),
        ("x" * 500, "x" * 160 + " …"),
    ],
)
def test_an_error_is_told_by_its_first_line_without_colours(said: str, told: str) -> None:
    assert libraries.short(RuntimeError(said)) == told
