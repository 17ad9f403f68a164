import sys

import pytest

from resnet_repro.errors import DataError
from resnet_repro.stage import run_stage


def weigh(first: str, second: str) -> None:
    """A stage."""
    if first == "wrong":
        raise DataError("weight is wrong:\n  [red]a/very/long/path[/red]/" + second * 200)
    if first == "stop":
        raise KeyboardInterrupt
    print(first, second)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["pipeline/weigh.py", *arguments])
    run_stage(weigh)


def test_arguments_arrive_as_strings(monkeypatch, capsys):
    call(monkeypatch, "1", "2")
    assert capsys.readouterr() == ("1 2\n", "")


def test_an_error_that_can_be_mended_is_its_message(monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, "wrong", "x")
    assert ended.value.code == 1
    path = "[red]a/very/long/path[/red]/" + "x" * 200
    assert capsys.readouterr() == ("", f"weigh: weight is wrong:\n  {path}\n")


def test_an_interruption_has_no_traceback(monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, "stop", "")
    assert ended.value.code == 130
    assert capsys.readouterr() == ("", "weigh: interrupted\n")


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    def divide(by: str) -> None:
        print(1 / int(by))

    monkeypatch.setattr(sys, "argv", ["pipeline/divide.py", "0"])
    with pytest.raises(ZeroDivisionError):
        run_stage(divide)


def test_wrong_arguments_end_with_status_2(monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, "one")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: python pipeline/weigh.py FIRST SECOND\n")
