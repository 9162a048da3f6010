"""Runs code for clients that speak the protocol of E2B's code interpreter.

A request to port 49999 runs in a Jupyter kernel that was started before the snapshot was
taken, so a clone answers without starting an interpreter.
"""
