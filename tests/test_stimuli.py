"""Which sweeps are repeats of one current, and which are steps of a family: commanded, and measured with noise."""

import numpy as np
import pytest

import reading
import recordings
import stimuli

DT = 0.05  # ms
T = 40000
t = np.arange(T)


def frozen(seed=0, sd=0.1):
    """Noise that is correlated over 3 ms (nA)."""
    white = np.random.default_rng(seed).standard_normal(T + 59)
    return sd * np.convolve(white, np.full(60, 60**-0.5), "valid")


def steps(heights, first=8000, last=28000):
    return [height * ((t >= first) & (t < last)) for height in heights]


def measured(currents, sd=0.005, n_filter=4, offset=0.0, seed=1):
    """With noise (nA) that an amplifier has filtered over some samples, and offsets of the sweeps."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((len(currents), T + n_filter - 1))
    noise = np.stack([np.convolve(row, np.full(n_filter, n_filter**-0.5), "valid") for row in noise])
    return list(np.asarray(currents) + sd * noise + offset * rng.standard_normal((len(currents), 1)))


def repeats(currents, dt=DT):
    return [group for group in stimuli.groups_of(currents, dt) if len(group) > 1]


@pytest.mark.parametrize("others", [dict(sd=0.0), {}, dict(n_filter=16), dict(offset=0.001), dict(sd=0.01)], ids=str)
def test_repeats_of_a_current_that_is_measured_are_found(others):
    """Among sweeps under other currents; with hum of 2 pA, too."""
    hum = [0.002 * np.sin(2 * np.pi * 0.05 * DT * t + phase) for phase in (0, 2, 4)]
    currents = [frozen(), frozen(1), *(frozen() + each for each in hum), frozen()[::-1], *steps([0.3, 0.3])]
    assert repeats(measured(currents, **others)) == [[0, 2, 3, 4], [6, 7]]


def pairs():
    step, period = steps([0.5])[0], np.sin(2 * np.pi * t / 100)
    at = (t >= 8000) & (t < 8040)
    ramp, white = 0.5 * t / T, np.random.default_rng(4).standard_normal((2, T))
    yield from {
        "steps": (step, 0.98 * step),
        "a pulse more": (step, step + 0.02 * ((t > 30000) & (t < 31000))),
        "pulses of 2 ms": (1.0 * at, 1.1 * at),
        "a step that is later": (step, np.roll(step, 40)),
        "sines": (period, 1.1 * period),
        "ramps": (ramp, 1.02 * ramp),
        "frozen noise": (frozen(), frozen(1)),
        "frozen noise on a step": (step * (1 + 0.1 * frozen(2, 1)), step * (1 + 0.1 * frozen(3, 1))),
        "white noise on a step": tuple(step * (1 + 0.1 * frozen_white) for frozen_white in white),
        "an offset": (frozen(), frozen() + 0.01),
        "something slow": (frozen(), frozen() + 0.01 * np.sin(2 * np.pi * t / T)),
    }.items()


@pytest.mark.parametrize("noise", [0.0, 0.005])
@pytest.mark.parametrize("pair", [pair for _, pair in pairs()], ids=[name for name, _ in pairs()])
def test_currents_that_differ_by_more_than_noise_are_others(pair, noise):
    assert not repeats(measured(pair, noise))


@pytest.mark.parametrize("n", [20, 600, 1000, 3000, 10000])
def test_short_sweeps_of_other_heights_are_no_repeats(n):
    inside = (np.arange(n) > n // 5) & (np.arange(n) < 0.7 * n)
    assert not repeats([0.5 * inside, 0.45 * inside])
    assert repeats([0.5 * inside, 0.5 * inside]) == [[0, 1]]


def test_what_noise_hides_is_no_repeat():
    """Noise that is nearly as large as the current, or a sweep of less than 256 ms; nor is what is not known."""
    assert not repeats(measured([frozen(), frozen()], sd=0.02))
    assert not repeats([x[:5000] for x in measured([frozen(), frozen()])])
    assert repeats([x[:6000] for x in measured([frozen(), frozen()])])
    assert not repeats([frozen(), np.full(T, np.nan)])


@pytest.mark.parametrize("noise", [0.0, 0.003, 0.015])
def test_steps_of_a_family_have_their_heights_and_times(noise):
    """Also the small ones, and where they are short; beside noise currents, which are none of them."""
    heights = np.arange(-0.1, 0.51, 0.02)
    for first, last in ((1000, 24000), (4000, 9000)):
        currents = [0.05 + step for step in steps(heights, first, last)]
        found = stimuli.family_among([frozen(), *measured(currents, noise), frozen(5, 0.02)])
        assert list(found) == list(range(1, 1 + len(heights)))
        np.testing.assert_allclose([step.height for step in found.values()], heights, atol=1e-9 + noise / 5)
        assert {(step.first, step.last) for step in found.values()} == {(first, last)}


@pytest.mark.parametrize("height", [0.2, 1.0, 2.0])
def test_brief_pulses_of_the_same_protocol_are_not_of_the_family(height):
    """Three of 3 ms beside eleven steps of a second, as the Allen Institute has them; nor is a longer one."""
    heights = np.arange(-0.1, 0.21, 0.03)
    others = [*3 * steps([height], 8000, 8060), *steps([0.2], 2000, 38000)]
    found = stimuli.family_among(measured([*steps(heights), *others], 0.001))
    assert list(found) == list(range(len(heights)))
    np.testing.assert_allclose([step.height for step in found.values()], heights, atol=1e-3)
    assert {(step.first, step.last) for step in found.values()} == {(8000, 28000)}


@pytest.mark.parametrize("cut", [7800, 8000, 9000, 27000])
def test_steps_that_are_cut_have_the_heights_of_whole_ones(cut):
    """By --t_start shortly before they begin, as they do, or within; and by --t_stop."""
    heights = np.arange(-0.1, 0.5, 0.1)
    whole = measured([0.05 + step for step in steps(heights)], 0.002)
    for part, window in ((slice(cut, None), (max(8000 - cut, 0), 28000 - cut)), (slice(0, cut), (8000, cut))):
        found = stimuli.family_among([step[part] for step in whole])
        if window[1] <= window[0]:
            assert not found
            continue
        np.testing.assert_allclose([step.height for step in found.values()], heights, atol=1e-3)
        assert {(step.first, step.last) for step in found.values()} == {window}


def test_what_is_behind_the_end_of_a_sweep_is_no_step():
    """Of sweeps of two lengths that a current holds, the shorter ones have zeros there."""
    heights = [-0.1, 0.1, 0.2, 0.3]
    current = np.stack([0.05 + step for step in steps(heights)], axis=1)
    observed = np.ones_like(current)
    current[35000:, ::2], observed[35000:, ::2] = 0, 0
    found = recordings.steps_of(recordings.Recording(current, observed=observed, dt=DT))
    assert [(step.first, step.last) for step in found.values()] == 4 * [(8000, 28000)]
    np.testing.assert_allclose([step.height for step in found.values()], heights, atol=1e-12)


def test_what_is_no_family():
    two, noises, ramps = steps([0.1, 0.2]), [frozen(i) for i in range(3)], [t / T * height for height in (1, 2, 3)]
    twice = [step - gap for step, gap in zip(steps((1, 2, 3)), steps((1, 2, 3), 15000, 20000), strict=True)]
    for others in ([], two, [*two, *two], noises, 3 * [np.zeros(T)], ramps, twice):
        assert stimuli.family_among(others) == {}


def test_every_third_height_is_held_out_with_its_repeats():
    """A family of six that was run three times, and a noise current, of which the last third is."""
    currents = measured([*3 * steps(np.arange(0.1, 0.7, 0.1)), frozen()])
    sweeps = reading.Sweeps(currents, None, None, DT, [str(i) for i in range(19)], [])
    pieces = recordings.pieces_of(sweeps, recordings.Part())
    fit, validation, (said,) = recordings.held_out(sweeps, pieces)
    assert [piece.sweep for piece in validation] == [2, 5, 8, 11, 14, 17, 18]
    assert [piece.sweep for piece in fit] == [i for i in range(19) if i % 6 not in (2, 5) or i == 18]
    assert {piece.last - piece.first for piece in fit if piece.sweep < 18} == {T}
    assert "the last third of the time of sweep 18" in said
