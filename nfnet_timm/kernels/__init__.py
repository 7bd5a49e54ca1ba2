"""The formulas of ``layers`` made fast, behind one function each: which implementation runs is chosen here alone.

dispatch        where the paths that are made for a CPU may be taken
standardize     weight standardization
gelu            GELU in its tanh form
torch_private   what is used of torch's private functions
"""
