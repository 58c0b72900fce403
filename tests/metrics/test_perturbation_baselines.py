"""Baselines: their predictions are known when the truth is."""

import numpy as np
import pytest

from scgen_diffusion.metrics import mean_changes, predict_additive, predict_mean_shift, predict_no_change
from scgen_diffusion.metrics._perturbation import parts_of

CONTROL = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
CHANGES = {"A": np.array([1.0, 0.0, 0.0]), "B": np.array([0.0, -2.0, 0.0])}


def test_mean_changes_are_differences_of_means():
    values = np.array([[3.0, 2.0, 2.0], [5.0, 2.0, 2.0], [2.0, 0.0, 2.0]])
    changes = mean_changes(values, ["A", "A", "B"], CONTROL)
    np.testing.assert_allclose(changes["A"], [2, 0, 0])
    np.testing.assert_allclose(changes["B"], [0, -2, 0])


def test_no_change_is_the_control_cells():
    np.testing.assert_array_equal(predict_no_change(CONTROL), CONTROL)


def test_the_mean_shift_moves_every_control_cell_by_the_mean_change():
    np.testing.assert_allclose(predict_mean_shift(CONTROL, CHANGES), CONTROL + [0.5, -1, 0])


def test_the_additive_baseline_is_exact_where_effects_add_up():
    np.testing.assert_allclose(predict_additive(CONTROL, CHANGES, "B+A"), CONTROL + [1, -2, 0])


def test_the_additive_baseline_of_a_single_perturbation_is_its_own_change():
    np.testing.assert_allclose(predict_additive(CONTROL, CHANGES, "A"), CONTROL + CHANGES["A"])


def test_another_separator_can_stand_between_parts():
    np.testing.assert_allclose(predict_additive(CONTROL, CHANGES, "A_B", separator="_"), CONTROL + [1, -2, 0])


def test_an_unknown_part_is_named():
    with pytest.raises(KeyError, match=r"\['C'\]"):
        predict_additive(CONTROL, CHANGES, "A+C")


def test_a_mean_shift_needs_a_training_perturbation():
    with pytest.raises(ValueError, match="`changes` is empty"):
        predict_mean_shift(CONTROL, {})


def test_every_cell_needs_a_perturbation():
    with pytest.raises(ValueError, match="2 cells and `perturbations` 1"):
        mean_changes(CONTROL, ["A"], CONTROL)


def test_parts_have_no_order_and_leave_the_control_out():
    assert parts_of("B+A") == parts_of("A+B") == ("A", "B")
    assert parts_of("B+ctrl", ignored={"ctrl"}) == ("B",)
