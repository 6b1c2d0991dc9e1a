"""What a merge says about itself.

figures, layers: the figures of each layer
records: the whole report, with its notes
"""
