import pytest
import torch

from muomni.nn import masks


def test_nothing_hidden_gives_no_mask():
    keep, documents = torch.ones(2, 4, dtype=torch.bool), torch.zeros(2, 4, dtype=torch.long)
    assert masks.build(4, causal=True) is None
    assert masks.build(4, keep_BT=keep, documents_BT=documents, causal=True) is None


@pytest.mark.parametrize("causal", [True, False])
def test_every_pair_by_the_definition(causal):
    torch.manual_seed(0)
    keep = torch.rand(3, 7) > 0.4
    documents = torch.randint(0, 2, (3, 7)).cumsum(1)
    mask = masks.build(7, keep_BT=keep, documents_BT=documents, causal=causal)
    assert mask.shape == (3, 1, 7, 7)
    for b in range(3):
        for t in range(7):
            may = [
                bool(keep[b, s] and documents[b, s] == documents[b, t] and (s <= t or not causal))
                for s in range(7)
            ]
            if not any(may):
                may[t] = True
            assert mask[b, 0, t].tolist() == may


def test_prefix_is_seen_by_all_and_sees_no_further():
    mask = masks.build(4, causal=True, prefix_B=torch.tensor([0, 2]))[:, 0]
    assert mask[0].equal(torch.ones(4, 4, dtype=torch.bool).tril())
    assert mask[1].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_positions_skip_padding_and_restart():
    keep = torch.tensor([[False, True, True, True], [True, True, False, True]])
    assert masks.positions(4, keep_BT=keep).tolist() == [[0, 0, 1, 2], [0, 1, 2, 2]]
    documents = torch.tensor([[5, 5, 7, 7], [1, 2, 2, 2]])
    assert masks.positions(4, documents_BT=documents).tolist() == [[0, 1, 0, 1], [0, 0, 1, 2]]
    assert masks.positions(4, keep_BT=keep, documents_BT=documents)[0].tolist() == [0, 0, 0, 1]
    assert masks.positions(3).tolist() == [0, 1, 2]


def test_shared_positions_are_gone_on_from_by_every_document():
    shared = masks.SHARED
    documents = torch.tensor([[shared, shared, 1, 1, 2, 2, 2], [0, 0, 0, 0, 0, 0, 0]])
    mask = masks.build(7, documents_BT=documents, causal=True)[:, 0]
    assert mask[0].int().tolist()[3] == [1, 1, 1, 1, 0, 0, 0]
    assert mask[0].int().tolist()[6] == [1, 1, 0, 0, 1, 1, 1]
    assert mask[1].equal(torch.ones(7, 7, dtype=torch.bool).tril())
    assert masks.positions(7, documents_BT=documents).tolist() == [
        [0, 1, 2, 3, 2, 3, 4],
        [0, 1, 2, 3, 4, 5, 6],
    ]
    keep = torch.ones(2, 7, dtype=torch.bool)
    keep[0, 0] = False
    assert masks.positions(7, keep_BT=keep, documents_BT=documents)[0].tolist() == [0, 0, 1, 2, 1, 2, 3]
