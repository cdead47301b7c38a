"""The same meta-gradient by everything a user would pick, each as its own documentation writes it.

A peer is ``peer(work) -> run``, and ``run() -> gradients`` in the order of the module's parameters.
A peer that cannot do the work raises `Unable` with the reason.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

import metaopt as mo
from benchmarks.problems import Work

Run = Callable[[], list[Any]]


class Unable(Exception):
    """Why a peer is not in the table."""


def ours(compile: Any = False, **how: Any) -> Callable[[Work], Run]:
    """``map_tasks(maml(...))`` and backward."""

    def peer(work: Work) -> Run:
        apply, params, _ = mo.functional(copy.deepcopy(work.net))
        loss_fn = lambda p, batch: work.loss(apply(p, batch[0]), batch[1])
        task_loss = mo.maml(loss_fn, mo.optim.sgd(lr=work.lr), num_steps=work.steps)
        meta_loss = mo.map_tasks(task_loss, compile=compile, **how)
        leaves = list(params.values())
        return lambda: list(torch.autograd.grad(meta_loss(params, work.episodes).mean(), leaves))

    return peer


def by_hand(work: Work) -> Run:
    """torch.func's own MAML: vmap over tasks, grad inside, autograd outside; a loop for convolutions."""
    net = copy.deepcopy(work.net)
    params = {k: v.detach().requires_grad_() for k, v in net.named_parameters()}
    loss_fn = lambda p, x, y: work.loss(functional_call(net, p, (x,)), y)

    def task_loss(p: Any, episode: Any) -> Tensor:
        (x, y), query = episode
        for _ in range(work.steps):
            g = grad(loss_fn)(p, x, y)
            p = {k: p[k] - work.lr * g[k] for k in p}
        return loss_fn(p, *query)

    def run() -> list[Tensor]:
        if work.conv:
            pairs = [tuple((x[i], y[i]) for x, y in work.episodes) for i in range(work.tasks)]
            meta_loss = torch.stack([task_loss(params, pair) for pair in pairs]).mean()
        else:
            meta_loss = vmap(task_loss, in_dims=(None, 0))(params, tuple(work.episodes)).mean()
        return list(torch.autograd.grad(meta_loss, list(params.values())))

    return run


def by_hand_compiled(work: Work) -> Run:
    """As `by_hand`, with torch.compile around value and gradient of the meta-loss."""
    if work.conv or work.steps > 16:
        raise Unable("torch.compile unrolls the steps: minutes for 50, and for convolutions")
    net = copy.deepcopy(work.net)
    params = {k: v.detach() for k, v in net.named_parameters()}

    def task_loss(p: Any, support: Any, query: Any) -> Tensor:
        loss_fn = lambda p, x, y: work.loss(functional_call(net, p, (x,)), y)
        for _ in range(work.steps):
            g = grad(loss_fn)(p, *support)
            p = {k: p[k] - work.lr * g[k] for k in p}
        return loss_fn(p, *query)

    def meta_loss(p: Any, support: Any, query: Any) -> Tensor:
        return vmap(task_loss, in_dims=(None, 0, 0))(p, support, query).mean()

    compiled = torch.compile(grad(meta_loss), fullgraph=True, dynamic=False)
    return lambda: list(compiled(params, *work.episodes).values())


def autograd_loop(work: Work) -> Run:
    """The loop of the textbook: torch.autograd.grad(create_graph=True), one task after another."""
    net = copy.deepcopy(work.net)
    params = {k: v.detach().requires_grad_() for k, v in net.named_parameters()}

    def run() -> list[Tensor]:
        total: Any = 0.0
        for i in range(work.tasks):
            (x, y), (xq, yq) = ((a[i], b[i]) for a, b in work.episodes)
            p = params
            for _ in range(work.steps):
                loss = work.loss(functional_call(net, p, (x,)), y)
                g = torch.autograd.grad(loss, list(p.values()), create_graph=True)
                p = {k: v - work.lr * d for (k, v), d in zip(p.items(), g)}
            total = total + work.loss(functional_call(net, p, (xq,)), yq)
        return list(torch.autograd.grad(total / work.tasks, list(params.values())))

    return run


def with_higher(work: Work) -> Run:
    """higher's README: innerloop_ctx over each task, gradients accumulated in the model."""
    import higher

    net = copy.deepcopy(work.net)
    opt = torch.optim.SGD(net.parameters(), lr=work.lr)

    def run() -> list[Tensor]:
        net.zero_grad()
        for i in range(work.tasks):
            (x, y), (xq, yq) = ((a[i], b[i]) for a, b in work.episodes)
            with higher.innerloop_ctx(net, opt, copy_initial_weights=False) as (fmodel, diffopt):
                for _ in range(work.steps):
                    diffopt.step(work.loss(fmodel(x), y))
                (work.loss(fmodel(xq), yq) / work.tasks).backward()
        return [p.grad.clone() for p in net.parameters()]

    return run


def with_torchopt(work: Work) -> Run:
    """TorchOpt's MAML example: MetaSGD over the module, its state taken and given back."""
    import torchopt

    net = copy.deepcopy(work.net)

    def run() -> list[Tensor]:
        net.zero_grad()
        inner = torchopt.MetaSGD(net, lr=work.lr)
        net_state = torchopt.extract_state_dict(net, by="reference", detach_buffers=True)
        opt_state = torchopt.extract_state_dict(inner, by="reference")
        for i in range(work.tasks):
            (x, y), (xq, yq) = ((a[i], b[i]) for a, b in work.episodes)
            for _ in range(work.steps):
                inner.step(work.loss(net(x), y))
            (work.loss(net(xq), yq) / work.tasks).backward()
            torchopt.recover_state_dict(net, net_state)
            torchopt.recover_state_dict(inner, opt_state)
        return [p.grad.clone() for p in net.parameters()]

    return run


def with_learn2learn(work: Work) -> Run:
    """learn2learn's MAML: clone and adapt."""
    import learn2learn

    net = copy.deepcopy(work.net)
    maml = learn2learn.algorithms.MAML(net, lr=work.lr)

    def run() -> list[Tensor]:
        net.zero_grad()
        for i in range(work.tasks):
            (x, y), (xq, yq) = ((a[i], b[i]) for a, b in work.episodes)
            learner = maml.clone()
            for _ in range(work.steps):
                learner.adapt(work.loss(learner(x), y))
            (work.loss(learner(xq), yq) / work.tasks).backward()
        return [p.grad.clone() for p in net.parameters()]

    return run
