"""`bench matcher` on small images. Compiling takes a minute and is not what is tested: the compiler is taken away."""

import json

import pytest
import torch
from torch import nn

from imatching_ros.__main__ import main

SMALL = ["--rounds", "1", "--queries", "16", "--targets", "1"]


class Broken(nn.Module):
    def forward(self, image):
        raise RuntimeError("no compiler on this machine")


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module: Broken())


@pytest.mark.slow
def test_every_way_is_timed_and_scored(no_compiler, capsys):
    pytest.importorskip("skimage")
    assert main(["bench", "matcher", "--size", "128x96", "--json", *SMALL]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert "torch.compile float32 does not work here: no compiler on this machine" in err
    ways = {row["way"]: row for row in result["results"]}
    assert {"eager float32, one batch", "channels-last float32"} <= set(ways) and not any("compile" in w for w in ways)
    assert all(row["total_ms"] > 0 and 0 <= row["mma_1px"] <= row["mma_3px"] <= 1 for row in ways.values())
    assert ways["eager float32, one batch"]["ratio"] == 1


@pytest.mark.parametrize("size", ("96", "32x32", "axb"))
def test_wrong_sizes_are_one_line(size, capsys):
    assert main(["bench", "matcher", "--size", size]) == 1
    assert capsys.readouterr().err.startswith(f"error: --size {size}: expected WIDTHxHEIGHT")
