"""The published class lists of FSS-1000 have the hashes that the command knows."""

from __future__ import annotations

from data_prep import fss1000


def test_published_fss_lists_are_known(realdata, tmp_path, capsys):
    lists = realdata / "splits" / "fss"
    assert (
        fss1000.main(["--root", str(tmp_path), "--lists", str(lists)]) == 1
    )  # no images
    said = capsys.readouterr().out
    for count in (520, 240):
        assert f"{count} classes, the published list" in said
    assert fss1000.WHERE in said
