"""LoRAs that can be merged, read from the inputs that users connect."""
