"""A tree with None in it, as a Meta of which parts are not learned, is mapped like any other."""

import torch

import metaopt as mo


def test_none_in_a_shared_and_in_a_mapped_tree() -> None:
    meta = mo.Meta(None, None, (torch.tensor(2.0),))
    episodes = {"a": None, "b": torch.arange(3.0)}
    for how in ("vmap", "loop"):
        mapped = mo.map_tasks(lambda meta, e: meta.phi[0] * e["b"], how=how)
        assert mapped(meta, episodes).tolist() == [0.0, 2.0, 4.0]
    dims = (mo.Meta(None, None, (None,)), 0)
    assert mo.map_tasks(lambda m, e: m.phi[0] * e["b"], in_dims=dims)(meta, episodes).tolist() == [
        0.0,
        2.0,
        4.0,
    ]
