"""Transfer learning: features of a pretrained network, a head fitted on them, and the choice of the network."""
