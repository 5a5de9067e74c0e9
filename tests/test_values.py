"""The values that timed networks hold: of a size that stays near one, never constant, never denormal."""

from __future__ import annotations

import numpy as np
import pytest

from latmorph.opspec import TensorSpec
from latmorph.values import BIAS, INPUT_MEAN, MAP_NOISE, PERIOD, ParameterValues, input_values


def weight(*shape: int, name: str = "weight", dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, shape, dtype, parameter=True)


@pytest.mark.parametrize(
    ("shape", "fan_in"), [((400, 300), 300), ((64, 32, 3, 3), 288), ((96, 1, 7, 7), 49), ((3, 40, 50), 2000)]
)
def test_matrices_and_kernels_have_the_variance_of_he(shape: tuple[int, ...], fan_in: int) -> None:
    values = ParameterValues()(weight(*shape))
    assert (values.shape, values.dtype) == (shape, np.float32)
    assert values.std() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
    assert abs(values.mean()) < 0.05 * values.std()


def test_activations_stay_near_one_through_many_layers() -> None:
    x = input_values(TensorSpec("input", (16, 256)))
    for width in (256, 300, 64, 512, 129) * 6:
        x = np.maximum(x @ ParameterValues()(weight(width, x.shape[1])).T, 0.0)
        assert 0.05 < np.sqrt(np.mean(x**2)) < 20
    assert np.isfinite(x).all()


def test_no_two_rows_of_a_weight_are_alike() -> None:
    # More numbers than are drawn: rows of a power of two would repeat, had the period one for a factor.
    values = ParameterValues()(weight(512, 512))
    assert values.size > 3 * PERIOD
    assert len(np.unique(values, axis=0)) == 512


@pytest.mark.parametrize("shape", [(7,), (3, 5), (64, 64, 3, 3), (1000, 1000)])
def test_no_value_is_denormal_or_infinite(shape: tuple[int, ...]) -> None:
    for values in (ParameterValues()(weight(*shape)), input_values(TensorSpec("input", shape))):
        size = np.abs(values[values != 0])
        assert np.isfinite(values).all()
        assert (size >= np.finfo(np.float32).tiny).all()


def test_vectors_are_those_of_a_fresh_norm() -> None:
    for name in ("weight", "running_var"):
        assert ParameterValues()(weight(9, name=name)).tolist() == [1.0] * 9
    assert ParameterValues()(weight(9, name="running_mean")).tolist() == [0.0] * 9


def test_what_is_added_is_small_and_different_everywhere() -> None:
    values = ParameterValues()(weight(4000, name="bias"))
    assert values.std() == pytest.approx(BIAS, rel=0.05)
    assert len(np.unique(values)) == 4000


def test_gates_do_not_make_activations_vanish() -> None:
    # Two hundred layers that halve what they read, and more: 1e-60 and less, where nothing is added.
    values = ParameterValues()
    x = input_values(TensorSpec("input", (16, 64)))
    for _ in range(200):
        x = x @ values(weight(64, 64)).T + values(weight(64, name="bias"))
        x = x / (1 + np.exp(-x)) / 2
    assert 1e-3 < np.abs(x).mean() < 10


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_number_alone_can_neither_be_left_out_of_a_product_nor_of_a_sum(
    name: str, shape: tuple[int, ...]
) -> None:
    values = ParameterValues()(weight(*shape, name=name))
    assert values.shape == shape
    assert values.item() not in (0.0, 1.0)


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "bool"])
def test_integers_are_zero_and_of_their_own_dtype(dtype: str) -> None:
    for values in (
        ParameterValues()(weight(4, 5, dtype=dtype)),
        input_values(TensorSpec("input", (4, 5), dtype)),
    ):
        assert (values.shape, values.dtype) == ((4, 5), np.dtype(dtype))
        assert not values.any()


def test_inputs_are_normal_about_their_mean_and_the_same_each_time() -> None:
    spec = TensorSpec("input", (3, 224, 224))
    values = input_values(spec)
    assert values.mean() == pytest.approx(INPUT_MEAN, abs=0.02)
    assert values.std() == pytest.approx(1, rel=0.02)
    assert np.mean(values > INPUT_MEAN) == pytest.approx(0.5, abs=0.02)
    assert np.array_equal(values, input_values(spec))
    assert input_values(TensorSpec("input", (2, 3), "bfloat16")).dtype == np.float32  # numpy has none


def test_maps_differ_by_channel_and_are_alike_from_place_to_place() -> None:
    values = input_values(TensorSpec("input", (1, 200, 28, 28)))
    assert values.mean((2, 3)).std() == pytest.approx(1, rel=0.15)
    within = values - values.mean((2, 3), keepdims=True)
    assert within.std() == pytest.approx(MAP_NOISE, rel=0.05)
    for a, b in ((within[..., 1:], within[..., :-1]), (within[:, :, 1:], within[:, :, :-1])):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] == pytest.approx(0.5, abs=0.05)
    picture = input_values(TensorSpec("input", (8, 3, 28, 28)))  # noise everywhere
    assert abs(np.corrcoef(picture[..., 1:].ravel(), picture[..., :-1].ravel())[0, 1]) < 0.1


def test_no_two_parameters_of_a_network_are_alike() -> None:
    # Equal weights would be stored once, and be warm where those of a network are cold.
    values = ParameterValues()
    spec = weight(300, 400)  # more numbers than are drawn
    drawn = [values(spec) for _ in range(50)]
    assert len({one.tobytes() for one in drawn}) == 50
    again = ParameterValues()
    assert all(np.array_equal(one, again(spec)) for one in drawn)


def test_values_can_be_written_over_without_harm_to_the_next() -> None:
    spec = weight(30, 40)
    before = ParameterValues()(spec).copy()
    ParameterValues()(spec)[:] = 7.0
    assert np.array_equal(ParameterValues()(spec), before)
