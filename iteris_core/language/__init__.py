"""Language models: T5, FLAN-T5, BART and BLIP."""
