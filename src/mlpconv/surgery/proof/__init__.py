"""Accept or reject a network for surgery, compare two networks on images, and verify that they are equivalent."""
