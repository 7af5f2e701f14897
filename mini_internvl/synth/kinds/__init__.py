"""One module for each kind of picture: ``draw(rng, split) -> (PIL image, list[QA])``; found by its file name."""
