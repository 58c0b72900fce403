"""The cards of the pretrained models are written from the stored results."""

import re

import pytest
from benchmarks import pretrained
from benchmarks.tables import read_table


@pytest.mark.parametrize("name", pretrained.PRETRAINED)
def test_the_card_says_what_the_results_say(name):
    figures, labels = read_table(pretrained.FIGURES), read_table(pretrained.LABELS)
    written = (pretrained.FOLDER / name / "README.md").read_text(encoding="utf-8")
    assert written == pretrained.card(name, figures, labels), "Run `python -m benchmarks.pretrained --steps card`."


def test_labels_that_were_not_learned_are_named():
    """One training cell was too few for stimulated erythrocytes."""
    card = (pretrained.FOLDER / "kang_ifnb" / "README.md").read_text(encoding="utf-8")
    assert re.search(r"\| Eryth, stimulated \| 1 \| [\d,]+ \| [\d,]+ \| \w+: [\d.]+, [\d.]+ \|", card)
