"""The formulas of ``layers`` and ``optim`` made fast, behind one function each, which chooses what runs.

dispatch            whether anything looks into operations, which takes the formula
formula             weight standardization as it stands in the paper
standardize         weight standardization; on a CPU
standardize_op      the same as one operation; by torch's own
standardize_triton  the same on a GPU
clip                adaptive clipping of many tensors, as one operation; by torch's own
clip_triton         the same on a GPU
check               the first use of a kernel compares it with torch's operations
gelu                GELU in its tanh form
torch_private       what is used of torch's private functions
"""
