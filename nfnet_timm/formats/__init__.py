"""Converts files to state dicts and back. Nothing here builds a model.

authors             reads weights in any of the authors' formats
haiku_reader        reads the authors' pickles and runs no code in them
haiku_writer        writes a pickle that the authors' code reads
orbax_reader        reads an Orbax checkpoint of jax_privacy
haiku_names         converts the authors' names and layouts to ours and back
train_checkpoint    reads a checkpoint of timm's train.py
safetensors_file    writes model.safetensors, and reads its header and shapes
typed               checks the types of values from config.json or a checkpoint
progress            shows a progress bar
"""
