"""Rows of a batch that wear adapters, and chunks of rows that wait for each other, in host memory
or in a file.
"""
