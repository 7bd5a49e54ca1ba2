"""Weights to the Hugging Face Hub, in the order of the work.

sources       what the user has: a model, and the facts about it
  train_run     the network and the accuracy of a run of timm's train.py
  train_data    the images of such a run
  class_names   the names of its classes
  config_json   the folder of a model
  readme        the model card of a folder
card          facts to README.md
  checkpoints   the published numbers, hub/checkpoints.toml
folder        model and card to a checked folder on disk
  staging       files and folders written all or nothing
  locks         one run at a time
  fingerprints  hashes of files, logits of models
push          folder to Hub, in one commit
verify        the repo compared afterwards
  hub_errors    errors of the Hub's client as one line

download      the authors' files
convert       the authors' formats to a folder, and back
"""
