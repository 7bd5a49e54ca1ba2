"""Weights onto the Hugging Face Hub, with all that is known of them.

published       the published numbers
known_model     a model and what is known of it, whatever it comes in
train_script    what train.py's options make of a network
train_data      what they say of its images
class_names     names of classes, and where they come from
config_json     the config.json of others
readme          the README.md of others
folder          a model as a repo's folder
fingerprints    hashes of files, logits of models
card            the model card
check           whether a folder is fit to be published
publish         build, show, push
client          talking to the Hub
verify          what is on the Hub, compared
convert         the authors' formats into a folder, and back
download        the authors' files
"""
