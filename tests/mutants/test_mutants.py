"""Mutants do not rot: each applies in one place, names tests that exist, and no two have a name in common."""

import shlex
import subprocess
import time

import pytest
import run as runner
from mutants import MUTANTS
from run import ROOT, including


def test_there_are_many_with_names_of_their_own():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 60


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_it_applies_in_one_place(mutant):
    if not (ROOT / mutant.file).exists():
        pytest.skip("the sources are not here")
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
    assert mutant.new != mutant.old


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_its_tests_exist(mutant):
    files = [part.partition("::")[0] for part in shlex.split(mutant.tests) if part.startswith("tests/")]
    assert files
    assert all((ROOT / file).exists() for file in files)
    for part in shlex.split(mutant.tests):
        file, _, name = part.partition("::")
        if name:
            assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text(), part


def test_the_sources_of_a_header_are_those_that_include_it():
    assert including("csrc/cpu/max_pool_row.h") == ["csrc/cpu/conv.cpp", "csrc/cpu/max_pool.cpp"]
    assert including("csrc/cpu/linear.cpp") == ["csrc/cpu/linear.cpp"]


def test_what_hangs_is_ended_with_all_that_it_started(monkeypatch, tmp_path):
    """A mutant's test may leave a process behind that holds the pipe on which its words are read."""
    monkeypatch.setattr(runner, "LONGEST", 1)
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        runner.run(["sh", "-c", "sleep 30 & wait"], tmp_path)
    assert time.monotonic() - began < 10
