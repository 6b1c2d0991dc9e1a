"""From what users connect to LoRAs that can be merged."""
