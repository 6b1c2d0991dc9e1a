"""Interrupts, of which there are none here, and memory, which no test without a ComfyUI asks for."""


def throw_exception_if_processing_interrupted() -> None:
    pass
