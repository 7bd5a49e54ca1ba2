"""Files into state dicts and back, without any model.

authors             weights in any format of the authors
haiku_reader        the authors' pickles, without running them
pickle_cursor       bytes, numbers and strings of a pickle
haiku_writer        a pickle that their code reads
orbax_reader        an Orbax checkpoint of jax_privacy's
haiku_names         the authors' names and layouts, and ours
train_checkpoint    what timm's train.py saves
safetensors_writer  model.safetensors
typed               types of values that others wrote
progress            a bar for what takes long
"""
