"""The operations of ``layers`` and ``optim`` made fast: one function for each operation, which chooses what runs.

choose         which implementation a tensor may take
standardize/   weight standardization
clip/          adaptive gradient clipping of many tensors
gelu           GELU in its tanh form
check          the first use of a Triton kernel compares it with torch's operations
open_sizes     convolution in a graph that torch.compile makes for several image sizes
"""
