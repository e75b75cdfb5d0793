"""Proof: accept a network for surgery, compare two networks on images, and decide whether they compute the same."""
