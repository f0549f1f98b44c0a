"""Text from strangers, made safe to read: on pages, in terminals, in error messages."""

import unicodedata


def visible_text(text: str) -> str:
    """Replace control characters, bidirectional overrides and other invisible tricks by U+FFFD.

    Letters of every script, joiners within words and emoji, tabs and line breaks stay.
    """
    return "".join("\N{REPLACEMENT CHARACTER}" if _is_trick(character) else character for character in text)


def _is_trick(character: str) -> bool:
    category = unicodedata.category(character)
    if category == "Cc":
        return character not in "\t\n\r"
    # Cs: lone surrogates, which no file can hold. Zl, Zp: line breaks outside of markup. Cf: bidirectional controls,
    # byte-order marks, tag characters, ...; the two joiners are part of ordinary writing.
    return category in ("Cs", "Zl", "Zp") or (category == "Cf" and character not in "\u200c\u200d\u00ad")
