"""The keys and values that a block keeps in memory."""

import pytest
import torch

from ledom.lm.engine.block import Block, Job, Prefilled, attend_to
from ledom.model.native.attention import LANES

LAYERS, HEADS = 3, 2
HALVES = slice(2), slice(2, 4)


@pytest.fixture(params=[264, 16])
def width(request: pytest.FixtureRequest) -> int:
    """The head width: 16 uses the compiled kernels, 264 uses plain matmuls."""
    return int(request.param)


def made_block(num_texts: int, width: int) -> Block:
    """A block of texts that share one prompt of two tokens."""
    read = torch.arange(2.0 * LAYERS * HEADS * width).view(LAYERS, HEADS, 2, width)
    prompts: list[Prefilled] = [(None, read, -read)]
    jobs = [Job([5, 6], 0, sample, (sample,)) for sample in range(num_texts)]
    return Block(jobs, prompts, [0] * num_texts)


def write(block: Block, token: int, width: int) -> None:
    """One step, where text `i` gets the keys 100 * token + 10 * i + l in layer `l`."""
    block.reserve()
    texts = torch.arange(len(block.jobs)).view(-1, 1, 1)
    for layer in range(LAYERS):
        k = (100 * token + 10 * texts + layer).expand(-1, HEADS, width).float()
        attend_to([block])(layer, torch.zeros_like(k), k, -k)
    block.age += 1


def test_keys_survive_growth_and_the_end_of_other_texts(width: int) -> None:
    block = made_block(3, width)
    for token in range(40):  # more than the cache's initial room
        write(block, token, width)
    block.drop([0])  # text 2 moves to place 0
    for place, text in ((0, 2), (1, 1)):
        keys, values = block.copy(place)
        assert keys.shape == (LAYERS, HEADS, 2 + 40, width)
        for layer in range(LAYERS):
            wanted = [100.0 * token + 10 * text + layer for token in range(40)]
            assert keys[layer, 1, 2:, 3].tolist() == wanted
        assert torch.equal(values, -keys)


def test_keys_can_be_read_in_whole_vectors_from_any_token_on() -> None:
    """After a step, room is left for the rest of a vector that begins at its token."""
    block = made_block(1, 16)
    for token in range(70):
        write(block, token, 16)
        assert block.own[0][0].shape[-1] >= token + LANES


def test_one_layer_grows_at_a_time(width: int) -> None:
    """A single tensor for all layers would be in memory twice while it grows."""
    block = made_block(2, width)
    write(block, 0, width)
    sizes = [held.untyped_storage().nbytes() for pair in block.own for held in pair]
    assert sizes == [block.own[0][0].nbytes] * (2 * LAYERS)


def test_blocks_of_several_ages_are_computed_together(width: int) -> None:
    """The results are bit-identical to each block alone; a finished text leaves no trace."""
    torch.manual_seed(0)
    blocks = [made_block(num, width) for num in (3, 2)]
    for token in range(40):
        write(blocks[0], token, width)
    write(blocks[1], 7, width)
    blocks[0].drop([1])
    for block in blocks:
        block.reserve()
    q, k, v = torch.randn(3, 4, HEADS, width).unbind(0)
    for layer in range(LAYERS):
        together = attend_to(blocks)(layer, q, k, v)
        apart = [
            attend_to([b])(layer, q[s], k[s], v[s]) for b, s in zip(blocks, HALVES, strict=True)
        ]
        assert torch.equal(together, torch.cat(apart))
