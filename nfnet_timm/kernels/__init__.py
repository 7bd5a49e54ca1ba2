"""Fast implementations of the operations of ``layers`` and ``optim``.

Each operation has one function, which chooses the implementation.

eager          whether a tensor may use a fast implementation
standardize/   weight standardization
clip/          adaptive gradient clipping of many tensors
gelu           GELU in its tanh form
check          comparison of a Triton kernel with torch's operations, at its first use
dynamic_sizes  convolution for torch.compile with dynamic image sizes
"""
