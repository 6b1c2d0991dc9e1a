"""What a merge tells about itself."""
