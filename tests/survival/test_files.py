"""Ctrl-C at any write of a file: it ends in KeyboardInterrupt, and the file is as it was before."""

import os

import torch

from zfkernels import files


def test_a_write_that_is_stopped_says_so_and_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    """At each of torch's writes in turn, before it and inside it."""
    path, content = tmp_path / "a.pt", {f"{i}": torch.full((1000,), float(i)) for i in range(5)}
    files.save_tensors(path, {"before": torch.ones(1)})
    before, write, ends = path.read_bytes(), files._Sink.write, []
    for inside in (False, True):
        for place in range(1000):
            left = place

            def stopped(sink, data, inside=inside):
                nonlocal left
                left -= 1
                if left != -1:
                    return write(sink, data)
                if inside:
                    sink.file = Stops()
                    return write(sink, data)
                raise KeyboardInterrupt

            monkeypatch.setattr(files._Sink, "write", stopped)
            try:
                files.save_tensors(path, content)
            except KeyboardInterrupt:
                assert path.read_bytes() == before
                assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]
            else:
                break
        ends.append(place)
        path.write_bytes(before)
    assert min(ends) > 5


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Or a machine that loses its power may keep the name of a file without its bytes."""
    done = []
    for name in ("fsync", "replace"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, call=call: done.append(name) or call(*args))
    files.write_text(tmp_path / "a.txt", "text")
    assert done == ["fsync", "replace"]


def test_json_has_no_numbers_that_are_none():
    found = files.as_json({"a": [1.5, float("nan")], "b": torch.tensor([float("inf"), -float("inf"), 2.0])})
    assert found == {"a": [1.5, None], "b": [None, None, 2.0]}


class Stops:
    """A file in whose write Ctrl-C comes."""

    def write(self, data: bytes) -> int:
        raise KeyboardInterrupt
