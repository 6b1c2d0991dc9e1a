"""The two engines that measure and solve layers: the single sweep, and the iteration of the
paper.
"""
