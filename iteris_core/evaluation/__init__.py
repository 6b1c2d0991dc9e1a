"""The evaluation of models on the tasks and pictures of the paper, beside its figures."""
