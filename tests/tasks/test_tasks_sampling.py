"""Laws of sampling: stateless, the same whatever the chunking, honest about its shapes."""

import math

import pytest
import torch

import metaopt as mo
from metaopt.errors import ArgumentError, DataError
from metaopt.tasks._random import distinct, key_of, normal, uniform

TASKS = {
    "sinusoid": mo.tasks.sinusoid(shot=5, query=7),
    "sinusoid f64 noise": mo.tasks.sinusoid(noise=0.3, dtype=torch.float64),
    "glyphs": mo.tasks.glyphs(way=5, shot=2, query=3, num_classes=12),
    "glyphs all classes": mo.tasks.glyphs(way=4, num_classes=4, dtype=torch.float64),
}
GLYPHS_INK = 2_746_252  # Σ of the uint8 pixels of the first six training classes
every = pytest.mark.parametrize("tasks", TASKS.values(), ids=TASKS.keys())


def same(a: mo.Episode, b: mo.Episode) -> bool:
    return all(torch.equal(x, y) for x, y in zip(mo.tree.leaves(a), mo.tree.leaves(b), strict=True))


@every
def test_the_first_tasks_do_not_depend_on_how_many_follow(tasks: mo.tasks.Tasks) -> None:
    whole = tasks.sample(37, seed=3, step=5)
    for n in (1, 2, 7, 16, 36):
        assert same(mo.tree.index(whole, slice(n)), tasks.sample(n, seed=3, step=5))


@every
def test_sampling_has_no_state_and_leaves_torchs_generator_alone(tasks: mo.tasks.Tasks) -> None:
    before = torch.get_rng_state()
    first = tasks.sample(4, seed=1, step=2)
    tasks.sample(4, seed=9)
    assert same(first, tasks.sample(4, seed=1, step=2))
    assert torch.equal(before, torch.get_rng_state())


@every
def test_seed_and_step_and_task_each_change_the_episode(tasks: mo.tasks.Tasks) -> None:
    draws = [tasks.sample(6, seed, step) for seed, step in ((0, 0), (0, 1), (1, 0), (2**32, 0))]
    rows = [mo.tree.leaves(e)[0][i].flatten() for e in draws for i in range(6)]
    assert len({tuple(row.tolist()) for row in rows}) == 24


@every
def test_an_episode_is_a_support_and_a_query_of_pairs(tasks: mo.tasks.Tasks) -> None:
    way = getattr(tasks, "way", 1)
    episode = tasks.sample(3, seed=0)
    assert isinstance(episode, mo.Episode)
    for (x, y), k in ((episode.support, tasks.shot), (episode.query, tasks.query)):
        assert x.shape[:2] == y.shape[:2] == (3, way * k)
        assert x.dtype == tasks.dtype
        assert x.device == y.device == torch.device("cpu")
        assert y.dtype == (torch.int64 if way > 1 else tasks.dtype)
        assert not x.requires_grad


@every
def test_episodes_go_into_map_tasks_as_they_are(tasks: mo.tasks.Tasks) -> None:
    def loss(w: torch.Tensor, episode: mo.Episode) -> torch.Tensor:
        return sum(((w * x.flatten(1).mean(1) - y.flatten()) ** 2).mean() for x, y in episode)

    w, episodes = torch.tensor(0.5), tasks.sample(3, seed=0)
    losses = mo.map_tasks(loss)(w, episodes)
    torch.testing.assert_close(losses, torch.stack([loss(w, e) for e in mo.tree.unstack(episodes)]))


@every
def test_repr_is_one_readable_line(tasks: mo.tasks.Tasks) -> None:
    text = repr(tasks)
    assert "\n" not in text
    assert "-shot" in text
    assert len(text) < 160


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("num_tasks", dict(num_tasks=0, seed=0)),
        ("num_tasks", dict(num_tasks=True, seed=0)),
        ("seed", dict(num_tasks=1, seed=-1)),
        ("seed", dict(num_tasks=1, seed=0.5)),
        ("step", dict(num_tasks=1, seed=0, step=-1)),
    ],
)
def test_sample_names_the_argument_that_is_wrong(argument: str, call: dict) -> None:
    for tasks in TASKS.values():
        with pytest.raises(ArgumentError, match=rf"tasks.sample\({argument}\): expected an integer >= \d"):
            tasks.sample(**call)


def test_sinusoid_is_the_equation() -> None:
    tasks = mo.tasks.sinusoid(shot=50, query=50, dtype=torch.float64)
    support, query = tasks.sample(40, seed=0)
    x, y = (torch.cat(z, 1).squeeze(-1) for z in zip(support, query, strict=True))
    assert x.min() >= -5
    assert x.max() <= 5
    # a sin(x − φ) = (a cos φ) sin x − (a sin φ) cos x: least squares finds a and φ exactly
    basis = torch.stack([x.sin(), -x.cos()], -1)
    solution = torch.linalg.lstsq(basis, y.unsqueeze(-1)).solution
    assert (basis @ solution - y.unsqueeze(-1)).abs().max() < 1e-10
    cosine, sine = solution.squeeze(-1).unbind(-1)
    a, phi = torch.hypot(cosine, sine), torch.atan2(sine, cosine)
    assert a.min() >= 0.1
    assert a.max() <= 5
    assert a.std() > 1
    assert phi.min() >= 0
    assert phi.max() <= math.pi
    assert phi.std() > 0.5


def test_sinusoid_noise_has_the_standard_deviation_asked_for() -> None:
    clean, noisy = (mo.tasks.sinusoid(noise=s, dtype=torch.float64).sample(500, 0) for s in (0.0, 0.3))
    assert torch.equal(clean.query[0], noisy.query[0])
    difference = noisy.query[1] - clean.query[1]
    assert abs(difference.std() - 0.3) < 0.01
    assert abs(difference.mean()) < 0.02


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("shot", dict(shot=0)),
        ("query", dict(query=0)),
        ("amplitude", dict(amplitude=(2.0, 1.0))),
        ("phase", dict(phase=(0.0, math.inf))),
        ("x_range", dict(x_range=(0.0, math.nan))),
        ("noise", dict(noise=-0.1)),
        ("dtype", dict(dtype=torch.int64)),
    ],
)
def test_sinusoid_refuses(argument: str, options: dict) -> None:
    with pytest.raises(ArgumentError, match=rf"sinusoid\({argument}\): expected"):
        mo.tasks.sinusoid(**options)


def test_labels_are_sorted_and_drawings_of_a_class_belong_to_it() -> None:
    tasks = TASKS["glyphs"]
    (x, y), (qx, qy) = tasks.sample(20, seed=0)
    assert torch.equal(y, torch.arange(5).repeat_interleave(2).expand(20, -1))
    assert torch.equal(qy, torch.arange(5).repeat_interleave(3).expand(20, -1))
    where = {image.numpy().tobytes(): divmod(i, 20) for i, image in enumerate(tasks.images.flatten(0, 1))}
    for task in range(20):
        seen = {}
        for images, labels in ((x[task], y[task]), (qx[task], qy[task])):
            for image, label in zip((images * 255).round().to(torch.uint8), labels.tolist(), strict=True):
                seen.setdefault(label, []).append(where[image[0].numpy().tobytes()])
        classes = [{c for c, _ in drawings} for drawings in seen.values()]
        assert all(len(c) == 1 for c in classes), "one class a label"
        assert len(set.union(*classes)) == 5, "different classes"
        assert all(len(set(d)) == 5 for d in seen.values()), "no drawing twice"


def test_glyphs_are_characters_that_can_be_told_apart() -> None:
    tasks = mo.tasks.glyphs(num_classes=30)
    (x, _), (qx, qy) = tasks.sample(200, seed=0)
    assert x.min() == 0
    assert x.max() == 1
    assert 0.05 < x.mean() < 0.3
    nearest = torch.cdist(qx.flatten(2), x.flatten(2)).argmin(-1)
    assert 0.4 < (nearest == qy).float().mean() < 0.95, "neither noise nor copies"


def test_glyphs_are_the_same_pixels_for_ever() -> None:
    images = mo.tasks.glyphs(num_classes=6).images
    assert torch.equal(images, mo.tasks.glyphs(num_classes=9).images[:6])
    assert not torch.equal(images, mo.tasks.glyphs(num_classes=6, part="test").images)
    assert int(images.long().sum()) == GLYPHS_INK


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (
            ArgumentError,
            r"glyphs\(part\): expected 'train', 'validation' or 'test', got 'val'",
            dict(part="val"),
        ),
        (ArgumentError, r"glyphs\(way\): expected an integer >= 2, got 1", dict(way=1)),
        (ArgumentError, r"glyphs\(shot\): expected an integer >= 1, got 0", dict(shot=0)),
        (ArgumentError, r"glyphs\(num_classes\)", dict(num_classes=0)),
        (ArgumentError, r"glyphs\(dtype\)", dict(dtype=torch.uint8)),
        (
            ArgumentError,
            r"glyphs\(query\): expected shot \+ query <= 20.*got 15 \+ 6",
            dict(shot=15, query=6),
        ),
        (DataError, r"glyphs\(way\): expected at least 7 classes, got 6", dict(way=7, num_classes=6)),
    ],
)
def test_glyphs_refuses(error: type[Exception], message: str, options: dict) -> None:
    with pytest.raises(error, match=message):
        mo.tasks.glyphs(**{"num_classes": 5, **options})


def test_splitmix64_is_the_published_generator() -> None:
    """The first outputs of the reference implementation for the state 1234567, by Vigna."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    expected = torch.tensor([(z >> 11) * 2.0**-53 for z in published], dtype=torch.float64)
    assert torch.equal(uniform(1234567, 3), expected)


def test_uniform_and_normal_have_their_moments() -> None:
    u, z = uniform(key_of(0, "u"), 100_000), normal(key_of(0, "z"), 100_000)
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 1 / 2) < 0.004
    assert abs(u.var() - 1 / 12) < 0.002
    assert abs(z.mean()) < 0.015
    assert abs(z.var() - 1) < 0.02
    assert abs((z**4).mean() - 3) < 0.15
    assert z.isfinite().all()


def test_distinct_is_uniform_over_ordered_choices() -> None:
    rows = distinct(7, 60_000, 3, 5)
    assert rows.min() == 0
    assert rows.max() == 4
    codes = (rows * torch.tensor([25, 5, 1])).sum(1)
    found, counts = codes.unique(return_counts=True)
    assert len(found) == 60, "5 · 4 · 3 ordered choices, none with a repetition"
    chi_square = ((counts - 1000.0) ** 2 / 1000).sum()
    assert chi_square < 110, "59 degrees of freedom; 110 is beyond the 99.99th percentile"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_device_gets_the_same_episodes() -> None:
    for make in (mo.tasks.sinusoid, lambda device: mo.tasks.glyphs(num_classes=6, device=device)):
        here, there = (make(device=device).sample(8, seed=1) for device in ("cpu", "cuda"))
        assert same(here, mo.tree.map(torch.Tensor.cpu, there))
