"""`Sonar.from_pretrained("sonar")` from the first request to the first sentence, with small files of the real layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from file_server import FileServer, file_server  # type: ignore[import-not-found]

from sonarkit.codec.config import codec_config
from sonarkit.codec.pipeline import Sonar
from sonarkit.codec.published import LICENCE, LicenceError
from sonarkit.text.languages import SONAR_LANGUAGES
from sonarkit.text.tokenizer import Tokenizer


def test_metas_weights_are_fetched_loaded_and_speak_202_languages(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everyone = Tokenizer(tokenizer.model, SONAR_LANGUAGES)
    torch.manual_seed(0)
    theirs = Sonar(codec_config(SONAR_LANGUAGES, everyone.size, 64, 2, 2, heads=16, ffn=32), everyone).eval()
    finetuned = Sonar(theirs.config, everyone).eval()
    theirs.save_meta(tmp_path / "sonar")
    finetuned.save_meta(tmp_path / "finetuned")
    monkeypatch.setenv("SONARKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SONARKIT_ACCEPT_LICENCE", raising=False)
    for proxy in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with file_server() as server:
        monkeypatch.setenv("SONARKIT_MIRROR", f"{server.url}/SONAR")
        put(server, "sonar_text_encoder.pt", tmp_path / "sonar" / "sonar_text_encoder.pt")
        put(server, "sonar_text_decoder.pt", tmp_path / "sonar" / "sonar_text_decoder.pt")
        put(server, "finetuned_decoder.pt", tmp_path / "finetuned" / "sonar_text_decoder.pt")
        put(server, "sentencepiece.source.256000.model", tmp_path / "sonar" / "sentencepiece.source.model")
        with pytest.raises(LicenceError, match="accept_licence=True"):
            Sonar.from_pretrained("sonar", accept_licence=False)
        assert not server.requests
        sonar = Sonar.from_pretrained("sonar", accept_licence=True)
        asked = len(server.asked())
        other = Sonar.from_pretrained("sonar-finetuned")
        assert len(server.asked()) == asked + 1, "encoder and tokenizer are there; the licence is accepted"
    assert (sonar.name, sonar.languages, sonar.config.encoder.heads) == ("sonar", SONAR_LANGUAGES, 16)
    texts, langs = ["Le petit renard.", "The fox ran."], ["French", "en"]
    z = sonar.encode(texts, langs)
    torch.testing.assert_close(z, theirs.encode(texts, ["fra_Latn", "eng_Latn"]), rtol=0, atol=0)
    assert torch.equal(other.decoder.embedding.weight, finetuned.decoder.embedding.weight)
    assert torch.equal(other.encoder.embedding.weight, sonar.encoder.embedding.weight)
    assert LICENCE in "".join(path.name for path in (tmp_path / "cache").rglob("*"))


def put(server: FileServer, name: str, file: Path) -> None:
    server.files[f"/SONAR/{name}"] = file.read_bytes()
