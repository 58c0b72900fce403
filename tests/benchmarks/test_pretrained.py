"""The cards of the pretrained models are written from the stored results."""

import pytest
from benchmarks import pretrained
from benchmarks.tables import read_table


@pytest.mark.parametrize("name", pretrained.PRETRAINED)
def test_the_card_says_what_the_results_say(name):
    figures, labels = read_table(pretrained.FIGURES), read_table(pretrained.LABELS)
    written = (pretrained.FOLDER / name / "README.md").read_text(encoding="utf-8")
    assert written == pretrained.card(name, figures, labels), "Run `python -m benchmarks.pretrained --steps card`."


def test_labels_that_were_not_learned_are_named():
    """Eleven training cells were too few for platelets."""
    card = (pretrained.FOLDER / "pbmc3k" / "README.md").read_text(encoding="utf-8")
    assert "| Platelet | 11 |" in card
    assert "PPBP: " in card
