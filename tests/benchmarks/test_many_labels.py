"""The study of many labels: which combinations its world has, and what its tables say."""

import pandas as pd
import pytest

many_labels = pytest.importorskip("benchmarks.studies.many_labels")


@pytest.fixture
def small_world(monkeypatch):
    for name, value in {"N_DONORS": 10, "N_TYPES": 4, "LARGEST": 30, "N_JUDGED": 20, "N_GENES": 100}.items():
        monkeypatch.setattr(many_labels, name, value)


def test_every_donor_has_two_types_and_every_type_five_donors():
    sizes = pd.Series(many_labels.draw_sizes(0))
    present = sizes[sizes > 0]
    assert (len(sizes), len(present)) == (1000, 100)
    assert (present.groupby(level=1).size() == 2).all()
    assert (present.groupby(level=0).size() == 5).all()
    assert present.between(5, 250).all()


@pytest.mark.usefixtures("small_world")
def test_a_baseline_is_judged_where_it_has_training_cells(tmp_path, monkeypatch):
    monkeypatch.setattr(many_labels, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["many_labels", "--models", "independent-NB"])
    many_labels.main()
    table = pd.read_csv(tmp_path / "many_labels.csv").set_index(["cells", "n_train"])
    assert list(table.loc["real cells"].index) == ["no", "5 to 19", "20 to 49"]
    assert list(table.loc["generated"].index) == ["5 to 19", "20 to 49"]
    assert table["confirmed"].min() > 0.8
    assert "| independent-NB, generated |  | **0." in (tmp_path / "many_labels.md").read_text()


@pytest.mark.usefixtures("small_world")
def test_a_model_is_judged_with_guidance_and_its_autoencoder_alone():
    variant = {"class": "SCLDM", "train": {"max_epochs": 1, "enable_progress_bar": False}}
    table = many_labels.study("quick", variant, 0)
    kinds = table.groupby("cells")["n_train"].apply(set)
    assert kinds["generated"] == kinds["guidance 1.5"] == kinds["real cells"] == {"no", "5 to 19", "20 to 49"}
    assert kinds["encoded and decoded"] == {"5 to 19", "20 to 49"}
    assert table["confirmed"].between(0, 1).all()
