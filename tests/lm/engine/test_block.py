"""What a block keeps in memory."""

import torch

from ledom.lm.engine.block import Block, Job, Prefilled

LAYERS, HEADS, WIDTH = 3, 2, 4


def made_block(num_texts: int) -> Block:
    """A block of texts with one prompt of two tokens."""
    read = torch.arange(2.0 * LAYERS * HEADS * WIDTH).view(LAYERS, HEADS, 2, WIDTH)
    prompts: list[Prefilled] = [(None, read, -read)]
    jobs = [Job([5, 6], 0, sample, (sample,)) for sample in range(num_texts)]
    return Block(jobs, prompts, [0] * num_texts)


def write(block: Block, token: int) -> None:
    """One step, in which text `i` of layer `l` gets keys of 100 * token + 10 * i + l."""
    block.reserve()
    texts = torch.arange(len(block.jobs)).view(-1, 1, 1)
    for layer in range(LAYERS):
        k = (100 * token + 10 * texts + layer).expand(-1, HEADS, WIDTH).float()
        block.attend(layer, torch.zeros_like(k), k, -k)
    block.age += 1


def test_keys_survive_growth_and_the_end_of_other_texts() -> None:
    block = made_block(3)
    for token in range(40):  # more than the cache has room for at first
        write(block, token)
    block.drop([0])  # text 2 moves to place 0
    for place, text in ((0, 2), (1, 1)):
        keys, values = block.copy(place)
        assert keys.shape == (LAYERS, HEADS, 2 + 40, WIDTH)
        for layer in range(LAYERS):
            wanted = [100.0 * token + 10 * text + layer for token in range(40)]
            assert keys[layer, 1, 2:, 3].tolist() == wanted
        assert torch.equal(values, -keys)


def test_one_layer_grows_at_a_time() -> None:
    """A tensor of all layers would be held twice while it grows."""
    block = made_block(2)
    write(block, 0)
    sizes = [held.untyped_storage().nbytes() for held in (*block._keys, *block._values)]
    assert sizes == [block._keys[0].nbytes] * (2 * LAYERS)
