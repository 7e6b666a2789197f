"""Tokenizer of the tiny readers: one token per character, plus whole words for instructions.

Instructions are cut into words so that a question occupies few positions: what identifies it (the key)
then lies inside the small observation windows that fit prompts of a few hundred tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

_PRINTABLE = "\n" + "".join(chr(code) for code in range(32, 127))
_WORDS = """
a all an and answer Answer any are as assistant be by caption color do does How how image in Image is it
its letter letters Look many name not number observe of on one or page phrase picture please Please
provide Provide provided question Question Read read response sentence short shown single system text
that the The there this to user using value Value was what What where Where which Which Who who with word
words write Write written you You helpful direct option from given choices directly
"""


@dataclass(frozen=True)
class SpecialTokens:
    """Special tokens of a reader; every one is a single token.

    `bos` comes before every text when given; `others` are image placeholders and chat roles.
    """

    pad: str
    unk: str
    eos: str
    bos: str | None
    others: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """All special tokens in vocabulary order."""
        return tuple(token for token in (self.pad, self.unk, self.eos, self.bos, *self.others) if token)


def build_tokenizer(special: SpecialTokens) -> PreTrainedTokenizerFast:
    """Build a reader's tokenizer; it pads on the left.

    Any text can be encoded: characters outside printable ASCII become `special.unk`. `decode(encode(text))`
    returns the text when it holds known characters only.
    """
    words = _WORDS.split()
    pieces = [*special.all, *_PRINTABLE, *(word for word in words if len(word) > 1)]
    pieces += [f" {word}" for word in words]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special.unk))
    # A word only counts between word boundaries, so keys and values stay single characters.
    pattern = Regex(rf" ?\b(?:{'|'.join(words)})\b|[\s\S]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="isolated")
    # Without Fuse, decoding would put a blank between tokens.
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special.all])
    if special.bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{special.bos} $A",
            pair=f"{special.bos} $A $B",
            special_tokens=[(special.bos, vocabulary[special.bos])],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=special.pad,
        unk_token=special.unk,
        eos_token=special.eos,
        bos_token=special.bos,
        padding_side="left",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
