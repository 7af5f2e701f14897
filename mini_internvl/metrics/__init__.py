"""Pure scoring functions that benchmarks share: captions (PTB tokens, BLEU, ROUGE-L, CIDEr) and control signals."""
