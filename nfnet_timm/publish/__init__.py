"""Publishes weights on the Hugging Face Hub. The modules, in the order in which they work:

sources       reads a model from a file or a folder, and the facts about it
in_memory     reads a model from a network in memory
  train_run     the network, the accuracy and the options of a run of timm's train.py
  train_data    the images of such a run
  class_names   the names of its classes
  read_folder   the folder of a model: config.json, weights and model card
card          writes README.md from the facts
  checkpoints   reads the published numbers, hub/checkpoints.toml
folder        writes model and card to a folder and checks it
  staging       writes files and folders completely or not at all
  locks         allows one run at a time
  fingerprints  hashes of files, logits of models
push          pushes the folder to the Hub in one commit
verify        compares the repo with what was pushed
  hub_errors    errors of the Hub's client in one line
download      downloads the authors' files
convert       converts the authors' formats to a folder and back
"""
