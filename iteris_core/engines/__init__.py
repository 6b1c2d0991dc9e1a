"""The two engines that measure and solve layers: the single sweep and the paper's iteration."""
