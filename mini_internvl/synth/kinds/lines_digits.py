"""Lines of up to six digits at free places, black on white: the first lesson of the loss over patches."""

from functools import partial

from .. import lexicon, pages

draw_annotated = partial(pages.draw, sizes=((18, 24),), text=pages.of_characters(lexicon.DIGITS))
