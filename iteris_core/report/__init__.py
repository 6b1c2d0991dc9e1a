"""What a merge says about itself.

figures, layers: the figures of each layer, and warnings where something simpler does better
fidelity: the errors of the network's output
verdict: what was kept of each LoRA, and a word for it
records: the whole report, with its notes
"""
