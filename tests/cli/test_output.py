"""Lines for a person, or one JSON object for a script."""

import json

import numpy as np
import pytest

from jaxlm.cli.output import Output, Part


def test_without_json_lines_and_pieces_go_to_standard_output_and_no_object(capsys):
    out = Output(as_json=False)
    out.line("a")
    out.piece("b")
    out.piece("c")
    out.warn("w")
    out.result({"x": 1})
    assert capsys.readouterr() == ("a\nbc", "w\n")


def test_with_json_standard_output_holds_one_object_and_nothing_else(capsys):
    out = Output(as_json=True)
    out.line("a")
    out.piece("b")
    out.result({"x": np.float32(0.5), "y": (1, 2), "text": "ü\n"})
    out.result({"z": 1})
    said = capsys.readouterr()
    assert json.loads(said.out) == {"x": 0.5, "y": [1, 2], "text": "ü\n"}
    assert said.out.count("\n") == 1
    assert said.err == "a\n"


def test_numbers_that_json_lacks_are_not_printed():
    with pytest.raises(ValueError, match="JSON"):
        Output(as_json=True).result({"x": float("nan")})


@pytest.mark.parametrize("as_json", [False, True])
def test_a_part_keeps_its_result_and_prints_lines_where_the_whole_does(capsys, as_json):
    part = Part(Output(as_json=as_json))
    part.line("a")
    part.result({"x": 1})
    assert part.kept == {"x": 1}
    assert capsys.readouterr() == (("", "a\n") if as_json else ("a\n", ""))
