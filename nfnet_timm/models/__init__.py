"""The networks.

variants            the configuration of every network
block               the residual block and the stems
nfnet               the network, with timm's interface, and its registration
state_dict          identify the network of a checkpoint
build               build a network from its name, with weights
reparameterize      remove standardization for inference, also from timm's own networks
batch_norm          the same network with batch norm
signal_propagation  measure the variance through a network
"""
