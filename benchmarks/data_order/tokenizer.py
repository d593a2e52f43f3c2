"""Which tokens do the models read?

The words that the mix and the chosen tasks use, and every printable lower-case character beside
them, so that any text of such characters has an encoding.
"""

import string
from collections.abc import Iterable
from random import Random

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from benchmarks.data_order.items import Draw
from benchmarks.data_order.mix import MIX
from benchmarks.data_order.tasks import TASKS

PAD, BOS, EOS, UNK = SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
_CHARACTERS = string.digits + string.ascii_lowercase + string.punctuation
_DRAWS = 5_000
"""Items drawn of each kind to find its words; every word of a kind is far more frequent."""


def vocabulary(tasks: Iterable[str]) -> list[str]:
    """The words of the mix and of ``tasks``, sorted."""
    draws: list[Draw] = [*MIX.values(), *(TASKS[task] for task in tasks)]
    rng = Random("vocabulary")
    found: set[str] = set()
    for draw in draws:
        for _ in range(_DRAWS):
            item = draw(rng)
            found.update(item.prompt.split(), item.answer.split())
    return sorted(found)


def make_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A fast tokenizer of ``words`` and of single characters for all else.

    It puts ``<bos>`` before a text; who trains on an answer adds ``<eos>`` behind it.
    """
    pieces = [*SPECIAL, *_CHARACTERS, *(f"##{c}" for c in _CHARACTERS)]
    pieces += [word for word in words if word not in pieces]
    ids = {piece: i for i, piece in enumerate(pieces)}
    core = Tokenizer(models.WordPiece(ids, unk_token=UNK, max_input_chars_per_word=100))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )
