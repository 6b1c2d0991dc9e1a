"""What a merge says about itself.

records: the report, its layers and notes
figures: how the figures of a layer follow from its sums
"""
