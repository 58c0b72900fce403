"""Every metric of the table is described in words."""

from scgen_diffusion import metrics


def test_all_metrics_are_described():
    assert metrics.DESCRIPTIONS.keys() == metrics.CATALOGUE.keys()


def test_titles_are_unique_and_meanings_are_sentences():
    titles = [words.title for words in metrics.DESCRIPTIONS.values()]
    assert len(set(titles)) == len(titles)
    assert all(words.meaning[0].isupper() and words.meaning.endswith(".") for words in metrics.DESCRIPTIONS.values())


def test_functions_exist():
    named = {words.function for words in metrics.DESCRIPTIONS.values() if words.function}
    assert named <= set(metrics.__all__)
