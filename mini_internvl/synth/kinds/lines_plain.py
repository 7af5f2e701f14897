"""Lines of up to six letters and digits, black on white: the second lesson of the loss over patches."""

from functools import partial

from .. import lexicon, pages

CHARACTERS = lexicon.DIGITS + lexicon.UPPER + lexicon.LOWER
draw_annotated = partial(pages.draw, sizes=((16, 28),), text=pages.of_characters(CHARACTERS))
