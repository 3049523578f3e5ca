"""Divergences: each against a formula written out in float64, in value and gradient, and the laws that they keep."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from redistill.trainers.divergences import divergence, likeliest, universal


def logps(seed: int, vocabulary: int = 7, rows: int = 3) -> Tensor:
    """Return log-probs of made-up distributions."""
    made = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(rows, vocabulary, generator=made)).log_softmax(-1)


def by_hand(student: list[float], teacher: list[float], beta: float, skew: float) -> float:
    """Write the divergence of two lists of probabilities out."""

    def kl(one: list[float], other: list[float]) -> float:
        return sum(a * math.log(a / b) for a, b in zip(one, other, strict=True))

    def mix(one: list[float], other: list[float], share: float) -> list[float]:
        return [share * a + (1 - share) * b for a, b in zip(one, other, strict=True)]

    if beta == 0:
        return kl(teacher, mix(teacher, student, skew))
    if beta == 1:
        return kl(student, mix(student, teacher, skew))
    middle = mix(teacher, student, beta)
    return beta * kl(teacher, middle) + (1 - beta) * kl(student, middle)


ENDS = [(0.0, 0.0), (1.0, 0.0), (0.5, 0.0), (0.1, 0.0), (0.0, 0.3), (1.0, 0.3)]


def gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """Return the gradient of a mean by logits."""
    own = logits.detach().clone().requires_grad_()
    loss(own.log_softmax(-1)).mean().backward()
    assert own.grad is not None
    return own.grad


@pytest.mark.parametrize(("beta", "skew"), ENDS)
def test_a_divergence_by_hand(beta: float, skew: float) -> None:
    """Value and gradient in fp32 are those of the written-out formula in float64, within 1e-5."""
    student, teacher = logps(1), logps(2)
    found = divergence(student, teacher, beta, skew)
    for place in range(len(found)):
        one, other = (p[place].double().exp().tolist() for p in (student, teacher))
        assert float(found[place]) == pytest.approx(by_hand(one, other, beta, skew), rel=1e-5)
    ours = gradient(lambda q: divergence(q, teacher, beta, skew), student)

    def exact(q: Tensor) -> Tensor:
        p = teacher.double().exp()
        q = q.exp()
        if beta == 0:
            return (p * torch.log(p / (skew * p + (1 - skew) * q))).sum(-1)
        if beta == 1:
            return (q * torch.log(q / (skew * q + (1 - skew) * p))).sum(-1)
        m = beta * p + (1 - beta) * q
        return beta * (p * torch.log(p / m)).sum(-1) + (1 - beta) * (q * torch.log(q / m)).sum(-1)

    wanted = gradient(exact, student.double())
    assert float((ours - wanted).norm() / wanted.norm()) < 1e-5


def test_its_ends_are_the_two_directions_of_kl() -> None:
    """0 is KL(teacher || student), 1 is KL(student || teacher), and near the ends it vanishes instead."""
    student, teacher = logps(3), logps(4)
    forward = (teacher.exp() * (teacher - student)).sum(-1)
    reverse = (student.exp() * (student - teacher)).sum(-1)
    assert torch.allclose(divergence(student, teacher, 0.0), forward)
    assert torch.allclose(divergence(student, teacher, 1.0), reverse)
    assert float(divergence(student, teacher, 0.999).max()) < 0.01 * float(reverse.min())


@given(st.integers(0, 500), st.integers(0, 500), st.sampled_from(ENDS))
def test_it_is_a_divergence(one: int, other: int, end: tuple[float, float]) -> None:
    """It is never negative, and 0 where student and teacher agree; the likeliest tokens alone never tell of more."""
    student, teacher = logps(one).double(), logps(other).double()
    whole = divergence(student, teacher, *end)
    assert float(whole.min()) >= -1e-12
    assert float(divergence(teacher, teacher, *end).abs().max()) < 1e-12
    top = teacher.topk(3, -1)
    some = divergence(*likeliest(student, top.indices, top.values), *end)
    assert bool((some <= whole + 1e-6).all())


def test_the_likeliest_tokens_and_the_tail_by_hand() -> None:
    """Two tokens of four and all others as one: forward KL of three numbers, value and gradient."""
    student, teacher = logps(5, 4, 1), logps(6, 4, 1)
    top = teacher.topk(2, -1)
    found = divergence(*likeliest(student, top.indices, top.values), 0.0)
    p, q = (x[0].double().exp() for x in (teacher, student))
    best = top.indices[0].tolist()
    rest = [n for n in range(4) if n not in best]
    parts = [(float(p[n]), float(q[n])) for n in best]
    parts.append((float(p[rest].sum()), float(q[rest].sum())))
    assert float(found) == pytest.approx(sum(a * math.log(a / b) for a, b in parts), rel=1e-5)

    def exact(logq: Tensor) -> Tensor:
        mine = torch.cat([logq.exp()[:, best], logq.exp()[:, rest].sum(-1, keepdim=True)], -1)
        told = torch.tensor([[a for a, _ in parts]], dtype=torch.float64)
        return (told * torch.log(told / mine)).sum(-1)

    ours = gradient(lambda x: divergence(*likeliest(x, top.indices, top.values), 0.0), student)
    wanted = gradient(exact, student.double())
    assert float((ours - wanted).norm() / wanted.norm()) < 1e-5


def test_whole_vocabulary_is_all_the_likeliest() -> None:
    """With as many tokens as there are the tail is empty, and what is told is the divergence itself."""
    student, teacher = logps(7).double(), logps(8).double()
    top = teacher.topk(7, -1)
    some = divergence(*likeliest(student, top.indices, top.values), 1.0)
    assert torch.allclose(some, divergence(student, teacher, 1.0), atol=1e-5)


def test_universal_distance_by_hand() -> None:
    """Two vocabularies of three and four tokens: sorted, filled with zeros, and what is apart added up."""
    student = torch.tensor([[0.2, 0.5, 0.3]]).log()
    teacher = torch.tensor([[0.1, 0.6, 0.1, 0.2]]).log()
    wanted = abs(0.5 - 0.6) + abs(0.3 - 0.2) + abs(0.2 - 0.1) + 0.1
    assert float(universal(student, teacher)) == pytest.approx(wanted, rel=1e-5)
    shuffled = teacher[:, [3, 1, 0, 2]]
    assert torch.equal(universal(student, shuffled), universal(student, teacher))
    own = student.clone().double().requires_grad_()
    universal(own, teacher.double()).sum().backward()
    # d|q - p| by log q is q where q is the larger, and -q where it is the smaller; in the student's own order.
    signs = torch.tensor([[1.0, -1.0, 1.0]], dtype=torch.float64)
    assert own.grad is not None
    assert torch.allclose(own.grad, signs * student.double().exp())
