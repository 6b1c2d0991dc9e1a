"""What a merge says about itself.

figures, layers: the figures of each layer, and warnings where something simpler does better
fidelity, runs: the errors of the network's output, and what was kept in each sampling run
verdict, sentences: what was kept of each LoRA, a word for it, and the verdict in sentences
records: the whole report, with its notes
"""
