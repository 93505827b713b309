"""Meta's weights as published, from a server on this machine: fetched once, and only after their licence was accepted."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from file_server import FileServer, cut_after, file_server

from sonarkit.codec import published
from sonarkit.codec.published import LicenceError, cache_folder, files
from sonarkit.core.download import OFFLINE, verify
from sonarkit.core.errors import user_errors

ENCODER, DECODER, FINETUNED = "sonar_text_encoder.pt", "sonar_text_decoder.pt", "finetuned_decoder.pt"
TOKENIZER = "sentencepiece.source.256000.model"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A mirror of what Meta publishes, in small, and an empty cache. No licence is accepted, no terminal is there."""
    unset = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", *OFFLINE, "SONARKIT_ACCEPT_LICENCE", "WORLD_SIZE")
    for name in unset:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with file_server() as state:
        for i, name in enumerate((ENCODER, DECODER, FINETUNED)):
            buffer = io.BytesIO()
            torch.save({"model": {"weight": torch.full((1000,), float(i))}}, buffer)
            state.files[f"/SONAR/{name}"] = buffer.getvalue()
        state.files[f"/SONAR/{TOKENIZER}"] = b"a SentencePiece model"
        monkeypatch.setenv("SONARKIT_MIRROR", f"{state.url}/SONAR/")
        monkeypatch.setenv("SONARKIT_CACHE", str(tmp_path / "cache"))
        yield state


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def answer(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(line))


def fetched(server: FileServer) -> list[str]:
    return [path.removeprefix("/SONAR/") for path, _ in server.asked()]


def test_the_addresses_are_metas() -> None:
    assert published.BASE == "https://dl.fbaipublicfiles.com/SONAR"
    assert set(published.PUBLISHED) == {"sonar", "sonar-finetuned"}


def test_all_files_come_once_and_are_whole(server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.faults = [cut_after(1000)]
    found = files("sonar", accept_licence=True)
    assert (found.encoder.name, found.decoder.name, found.tokenizer.name) == (ENCODER, DECODER, TOKENIZER)
    assert found.encoder.parent == tmp_path / "cache" / "SONAR"
    for path in (found.encoder, found.decoder, found.tokenizer):
        assert path.read_bytes() == server.files[f"/SONAR/{path.name}"]
        verify(path)
    told = capsys.readouterr().err
    assert "in all" in told
    assert "are free" in told
    assert f"to {found.encoder.parent}" in told
    server.requests.clear()
    assert files("sonar") == found
    assert server.requests == []
    assert capsys.readouterr().err == ""
    finetuned = files("sonar-finetuned", progress=False)  # the licence is remembered, and the encoder is the same
    assert fetched(server) == [FINETUNED]
    assert torch.load(finetuned.decoder, weights_only=True)["model"]["weight"][0] == 2
    assert finetuned.encoder == found.encoder
    assert capsys.readouterr().err == ""


def test_an_unknown_name_is_answered_with_those_there_are(server: FileServer) -> None:
    with pytest.raises(ValueError, match="no published codec is called 'sonar2'; there are sonar, sonar-finetuned"):
        files("sonar2", accept_licence=True)


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SONARKIT_CACHE", "~/weights")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert cache_folder() == Path.home() / "weights"
    monkeypatch.setenv("SONARKIT_CACHE", "")
    assert cache_folder() == Path("/var/cache/me/sonarkit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "sonarkit"


# ---------------------------------------------------------------------- the licence


@pytest.mark.parametrize("accept", [None, False])
def test_without_a_licence_nothing_is_asked_for(server: FileServer, tmp_path: Path, accept: bool | None) -> None:
    ways = "accept_licence=True, set SONARKIT_ACCEPT_LICENCE=CC-BY-NC-4.0, or answer y"
    with pytest.raises(LicenceError, match=f"CC-BY-NC 4.0 .*not for commercial use.*{ways}"):
        files("sonar", accept)
    assert server.requests == []
    assert not (tmp_path / "cache").exists()


def test_the_environment_accepts(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SONARKIT_ACCEPT_LICENCE", "yes")
    with pytest.raises(LicenceError, match=r"set SONARKIT_ACCEPT_LICENCE=CC-BY-NC-4.0 \(it is set to 'yes'\)"):
        files("sonar", progress=False)
    monkeypatch.setenv("SONARKIT_ACCEPT_LICENCE", "CC-BY-NC-4.0")
    files("sonar", progress=False)
    monkeypatch.delenv("SONARKIT_ACCEPT_LICENCE")
    files("sonar-finetuned", progress=False)
    assert fetched(server) == [ENCODER, DECODER, TOKENIZER, FINETUNED]


@pytest.mark.parametrize("line", ["y\n", "Yes\n"])
def test_a_yes_in_a_terminal_accepts_for_good(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    answer(monkeypatch, line)
    found = files("sonar", progress=False)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.endswith(f"Accept the licence and fetch them to {found.encoder.parent}? [y/N] ")
    assert "Meta's, under CC-BY-NC 4.0 (https://creativecommons.org/licenses/by-nc/4.0/)" in told.err
    note = found.encoder.parent / "accepted-CC-BY-NC-4.0.txt"
    assert "licence CC-BY-NC-4.0 (https://creativecommons.org/licenses/by-nc/4.0/) accepted on 2" in note.read_text()
    answer(monkeypatch, "n\n")
    files("sonar-finetuned", progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("line", ["n\n", "\n", "", "CC-BY-NC-4.0\n"])
def test_anything_else_in_a_terminal_refuses(server: FileServer, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    answer(monkeypatch, line)
    with pytest.raises(LicenceError, match="To accept that"):
        files("sonar")
    assert server.requests == []


def test_nobody_is_asked_by_many_ranks_or_against_the_callers_will(
    server: FileServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(monkeypatch, "y\n")
    with pytest.raises(LicenceError):
        files("sonar", accept_licence=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LicenceError):
        files("sonar")
    assert capsys.readouterr().err == ""


def test_a_refusal_ends_a_command_with_one_line(server: FileServer, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, user_errors():
        files("sonar")
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("sonarkit: the weights of 'sonar' are Meta's, under CC-BY-NC 4.0")
    assert told.count("\n") == 1


# ---------------------------------------------------------------------- without a network, without room


def test_offline_the_places_are_named_before_the_licence(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SONARKIT_OFFLINE", "1")
    answer(monkeypatch, "y\n")
    folder = tmp_path / "cache" / "SONAR"
    with pytest.raises(FileNotFoundError, match=f"SONARKIT_OFFLINE is set.*{server.url}/SONAR/{DECODER} to {folder}/{DECODER}"):
        files("sonar")
    folder.mkdir(parents=True)
    for name in (ENCODER, DECODER, TOKENIZER):  # as the error says
        (folder / name).write_bytes(server.files[f"/SONAR/{name}"])
    assert files("sonar").decoder == folder / DECODER
    assert server.requests == []


def test_room_is_for_all_files_together(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [len(server.files[f"/SONAR/{name}"]) for name in (ENCODER, DECODER, TOKENIZER)]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=sum(sizes) - 1))
    with pytest.raises(OSError, match="no room in"):
        files("sonar", accept_licence=True, progress=False)
    assert server.asked() == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=sum(sizes)))
    files("sonar", progress=False)
