"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sonarkit.codec.config import codec_config
from sonarkit.codec.pipeline import Sonar
from sonarkit.text.tokenizer import Tokenizer, train_tokenizer

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real text that is not part of the project; tests that need it are skipped without it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real text is not at hand ({SHARED_DATA.parent.name}/data beside the clone)")
    return SHARED_DATA


SENTENCES = [
    "The little fox ran home.",
    "Mia found a red kite in the forest.",
    "Tom gave his friend an old map.",
    "End of sequence.",
    "Le petit renard rentra à la maison.",
    "Mia trouva un cerf-volant rouge.",
    "Der kleine Fuchs lief nach Hause.",
    "El pequeño zorro corrió a casa.",
    "Once upon a time there was a bear.",
    "They all laughed and danced until night.",
]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny tensors are fastest on one thread, and tests may run beside other work."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A tokenizer of a few hundred pieces, most of them bytes."""
    return train_tokenizer(SENTENCES * 5, 330, ("eng_Latn", "fra_Latn", "deu_Latn", "spa_Latn"))


@pytest.fixture
def sonar(tokenizer: Tokenizer) -> Sonar:
    """A codec with random weights, small enough to run in milliseconds."""
    torch.manual_seed(0)
    config = codec_config(
        tokenizer.languages,
        tokenizer.size,
        width=32,
        encoder_layers=2,
        decoder_layers=2,
        heads=4,
        ffn=64,
        dropout=0.0,
        max_tokens=64,
    )
    return Sonar(config, tokenizer).eval()
