import torch

from sparsemm_eval.pruning.fastv import attention_of_last
from tests import reference


def test_the_last_querys_attention_over_the_valid_keys():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 6, 4, generator=generator), torch.randn(2, 3, 9, 4, generator=generator)
    valid = torch.tensor([[True] * 9, [False] * 3 + [True] * 6])
    found = attention_of_last(query, key, valid, None)
    for row in range(2):
        seen = valid[row].nonzero().flatten()
        expected = torch.zeros(9)
        for head in range(6):
            values = torch.eye(len(seen))
            expected[seen] += reference.attend(query[row, head], key[row, head // 2, seen], values, 0.5) / 6
        torch.testing.assert_close(found[row], expected)
    whole = attention_of_last(query[:1], key[:1], None, 0.5)
    torch.testing.assert_close(whole, found[:1])
    torch.testing.assert_close(
        attention_of_last(query.half(), key.half(), valid, 0.5), found, atol=2e-3, rtol=0
    )
