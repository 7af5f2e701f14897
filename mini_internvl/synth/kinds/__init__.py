"""One module for each kind of image: ``draw(rng, split) -> (PIL image, list[QA])``; found by its file name."""
