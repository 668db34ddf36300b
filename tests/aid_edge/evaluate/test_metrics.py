"""Task metrics: scikit-learn's figures, and intervals that hold what they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as reference

from aid_edge.errors import DataError, UsageError
from aid_edge.evaluate import scoring
from aid_edge.evaluate.metrics import check, compare, metric
from aid_edge.evaluate.statistics import PairedCounts, paired_drop_interval


def classes(n: int = 300, width: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores that are right more often than not, rounded so that there are ties."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, width, n)
    scores = generator.normal(size=(n, width)) + 1.5 * np.eye(width)[labels]
    return np.round(scores, 1).astype(np.float32), labels


def weights(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4, n).astype(np.float64)


@pytest.mark.parametrize("weighted", [False, True])
def test_class_metrics_are_scikit_learns(weighted: bool) -> None:
    scores, labels = classes()
    w = weights(len(labels)) if weighted else np.ones(len(labels))
    answers = scores.argmax(axis=1)
    truth = np.eye(6, dtype=int)[labels]
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    distinct = scores + np.arange(6) * -1e-4  # scikit-learn breaks ties by the higher class
    for name, outputs, wanted in (
        ("accuracy", scores, reference.accuracy_score(labels, answers, sample_weight=w)),
        (
            "top-3",
            distinct,
            reference.top_k_accuracy_score(labels, distinct, k=3, sample_weight=w),
        ),
        ("f1", scores, reference.f1_score(labels, answers, average="macro", sample_weight=w)),
        (
            "map",
            scores,
            reference.average_precision_score(truth, scores, average="macro", sample_weight=w),
        ),
        (
            "auc",
            shares,
            np.mean(
                [
                    reference.roc_auc_score(truth[:, c], shares[:, c], sample_weight=w)
                    for c in range(6)
                ]
            ),
        ),
    ):
        assert metric(name).bind([outputs], labels)(w) == pytest.approx(wanted), name


def test_two_classes_of_one_score_and_several_labels_at_once() -> None:
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 2, 80)
    logits = (generator.normal(size=80) + labels).astype(np.float32)
    shares = 1 / (1 + np.exp(-logits))
    for scores in (logits, shares):
        assert metric("auc").value([scores[:, None]], labels) == pytest.approx(
            reference.roc_auc_score(labels, logits)
        )
        assert metric("f1").value([scores[:, None]], labels) == pytest.approx(
            reference.f1_score(labels, logits > 0, average="macro")
        )
        assert metric("top-1").value([scores[:, None]], labels) == pytest.approx(
            np.mean((logits > 0) == labels)
        )
    several = generator.integers(0, 2, (80, 4))
    scores = generator.normal(size=(80, 4)) + several
    assert metric("map").value([scores], several) == pytest.approx(
        reference.average_precision_score(several, scores)
    )
    assert metric("f1").value([scores], several) == pytest.approx(
        reference.f1_score(several, scores > 0, average="macro")
    )


@pytest.mark.parametrize("shape", [(50,), (50, 3)])
def test_value_metrics_are_scikit_learns(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(4)
    truth = generator.normal(size=shape)
    values = truth + 0.3 * generator.normal(size=shape)
    w = weights(50)
    for name, wanted in (
        ("rmse", np.sqrt(reference.mean_squared_error(truth, values, sample_weight=w))),
        ("mae", reference.mean_absolute_error(truth, values, sample_weight=w)),
        ("r2", reference.r2_score(truth, values, sample_weight=w)),
    ):
        assert metric(name).bind([values], truth)(w) == pytest.approx(wanted), name
    with pytest.raises(DataError, match="has 2 values, what is right for it has"):
        metric("rmse").value([np.zeros((50, 2))], truth)


def test_error_rates_count_edits() -> None:
    symbols = {c: i for i, c in enumerate("-abcd ")}

    def ids(text: str) -> np.ndarray:
        return np.array([symbols[c] for c in text], np.int64)

    def scores(path: str) -> np.ndarray:
        return np.eye(6, dtype=np.float32)[ids(path)]

    outputs = [np.stack([scores("aa-ab "), scores("--cd--"), scores("a b cd")])]
    targets = (ids("aab "), ids("bcd"), ids("a c cd"))
    assert scoring.decode(outputs[0], 0) == [[1, 1, 2, 5], [3, 4], [1, 5, 2, 5, 3, 4]]
    assert metric("cer").value(outputs, targets) == pytest.approx(2 / 13)
    # Words: "aab" | "bcd" against "cd" | "a c cd" against "a b cd".
    assert metric("wer(space=5)").value(outputs, targets) == pytest.approx(2 / 5)
    assert metric("cer(blank=-1)").value(outputs, targets) > 2 / 13
    padded = [np.array([[1, 1, 2, 5], [3, 4, -1, -1]])]
    assert metric("cer").value(padded, (ids("aab "), ids("cd"))) == 0
    with pytest.raises(DataError, match="take ids"):
        metric("cer").value([np.zeros((2, 3), np.float32)], targets[:2])


def test_unknown_metrics_are_named() -> None:
    for spec in ("speed", "top-0", "f1(k=2)", "cer(blank)", "Top 1!"):
        with pytest.raises(UsageError, match="metric"):
            metric(spec)
    assert metric("top5").value([np.eye(9)[[3, 4]]], np.array([3, 8])) == 0.5


def test_hits_get_tangos_interval() -> None:
    labels = np.zeros(100, np.int64)
    source, candidate = np.eye(3)[[0] * 100], np.eye(3)[[1] * 7 + [0] * 93]
    found = compare(metric("top-1"), [source], [candidate], labels)
    assert (found.source, found.candidate, found.drop) == pytest.approx((1.0, 0.93, 0.07))
    assert found.drop_interval == paired_drop_interval(PairedCounts(93, 7, 0, 0))
    assert "Tango" in found.how


def test_errors_drop_when_they_grow() -> None:
    generator = np.random.default_rng(5)
    truth = generator.normal(size=200)
    worse = [truth + 0.5 * generator.normal(size=200)]
    found = compare(
        metric("rmse"), [truth + 0.1 * generator.normal(size=200)], worse, truth, kind="values"
    )
    assert found.drop == pytest.approx(found.candidate - found.source)
    assert 0 < found.drop_interval.low < found.drop < found.drop_interval.high
    assert found.detectable_drop is not None
    assert not found.higher_is_better


def test_the_source_stands_in_for_targets() -> None:
    embeddings = np.random.default_rng(6).normal(size=(40, 8)).astype(np.float32)
    near = embeddings + 0.1
    found = compare(metric("cosine"), [embeddings], [near], None)
    assert (found.source, found.n) == (1.0, 40)
    assert 0.9 < found.candidate < 1
    assert compare(metric("relative-error"), [embeddings], [near], None).source == 0
    with pytest.raises(DataError, match="rmse: needs targets that are values; there are none"):
        compare(metric("rmse"), [embeddings], [near], None)
    with pytest.raises(DataError, match="needs targets that are sequences; these are classes"):
        compare(metric("cer"), [embeddings], [near], np.zeros(40, int))


def test_too_few_samples_give_no_interval() -> None:
    values = np.arange(4.0)
    with pytest.raises(DataError, match="4 independent samples are too few"):
        compare(metric("mae"), [values], [values + 1], values, kind="values")
    many = np.arange(40.0)
    with pytest.raises(DataError, match="2 independent samples are too few"):
        compare(metric("mae"), [many], [many + 1], many, kind="values", groups=["a", "b"] * 20)


def test_no_difference_is_no_certainty_about_shares() -> None:
    scores, labels = classes(60)
    found = compare(metric("f1"), [scores], [scores], labels)
    assert found.drop == 0
    assert found.drop_interval.high == pytest.approx(
        paired_drop_interval(PairedCounts(60, 0, 0, 0)).high
    )
    assert found.detectable_drop is not None


def test_the_interval_holds_the_true_drop_as_often_as_it_says() -> None:
    """Samples come in groups of three that are alike; 95 % of intervals must hold the truth."""
    generator = np.random.default_rng(7)
    held, rounds = 0, 120
    rmse = replace(metric("rmse"), draws=400)
    for seed in range(rounds):
        truth = np.repeat(generator.normal(size=40), 3)
        shared = np.repeat(generator.normal(size=40), 3)
        source = truth + 1.0 * shared
        candidate = truth + 1.5 * np.repeat(generator.normal(size=40), 3)
        groups = [f"g{i // 3}" for i in range(120)]
        found = compare(rmse, [source], [candidate], truth, kind="values", groups=groups, seed=seed)
        held += found.drop_interval.low <= 0.5 <= found.drop_interval.high
    assert 0.86 <= held / rounds <= 1


def test_the_same_seed_gives_the_same_interval() -> None:
    scores, labels = classes(80, width=3)
    other, _ = classes(80, width=3, seed=9)
    first, again, third = (
        compare(metric("auc"), [scores], [other], labels, seed=seed).drop_interval
        for seed in (1, 1, 2)
    )
    assert first == again != third


def test_metrics_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_tiny_metric.py").write_text(
        "import numpy as np\n"
        "def each(outputs, targets): return np.abs(outputs[0] - targets)\n"
        "each.higher_is_better, each.unit = False, 'm'\n"
        "def whole(outputs, targets): return np.sqrt(np.mean((outputs[0] - targets) ** 2))\n"
        "whole.higher_is_better = False\n"
        "def bad(outputs, targets): raise RuntimeError('no')\n"
        "def short(outputs, targets): return [1, 2]\n"
        "def square(outputs, targets): return [[1]]\n"
        "constant = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    truth = np.random.default_rng(8).normal(size=30)
    source, candidate = [truth + 0.1], [truth + 0.1 + 0.2 * (truth > 0)]
    each = compare(metric("my_tiny_metric:each"), source, candidate, truth, kind="values")
    assert (each.unit, each.source) == ("m", pytest.approx(0.1))
    assert each.drop_interval.low > 0
    whole = compare(metric("my_tiny_metric:whole"), source, candidate, truth, kind="values")
    known = compare(metric("rmse"), source, candidate, truth, kind="values")
    assert whole.drop == pytest.approx(known.drop)
    assert whole.drop_interval.low == pytest.approx(known.drop_interval.low, abs=0.02)
    for name, words in (
        ("bad", "failed: RuntimeError: no"),
        ("short", "2 figures for 30 samples"),
        ("square", "returned shape"),
    ):
        with pytest.raises(DataError, match=words):
            compare(metric(f"my_tiny_metric:{name}"), source, candidate, truth, kind="values")
    for name, words in (("none", "cannot be imported"), ("constant", "is no function")):
        with pytest.raises(DataError, match=words):
            metric(f"my_tiny_metric:{name}")


def test_what_can_never_be_judged_is_said_of_the_source_alone() -> None:
    scores = [np.random.default_rng(3).normal(size=(20, 4))]
    labels = np.arange(20) % 4
    check(metric("top-3"), scores, labels)
    with pytest.raises(DataError, match="needs targets that are values; these are classes"):
        check(metric("rmse"), scores, labels)
    for name in ("top-4", "top-99"):
        with pytest.raises(DataError, match=f"metric {name}: every class is among the first"):
            check(metric(name), scores, labels)
    values = np.zeros((20, 4))
    with pytest.raises(DataError, match="not a finite number"):
        check(metric("mae"), [scores[0] * np.inf], values, kind="values")
