"""Tokenizers that several tests share."""

import pytest
from tokenizer_corpus import corpus

from freedive.runs import UserError
from freedive.tokenizer import Tokenizer, get, train_tokenizer


@pytest.fixture(scope="session")
def tok() -> Tokenizer:
    return train_tokenizer([corpus()], 600)


@pytest.fixture(scope="session")
def published():
    """`get`, but skipping where a rank file isn't on this machine."""

    def find(name: str) -> Tokenizer:
        try:
            return get(name)
        except UserError as error:
            pytest.skip(f"{error.message}; {error.hint}")

    return find
