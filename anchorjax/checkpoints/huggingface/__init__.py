"""Model directories as Hugging Face lays them out: weights in safetensors, beside config.json and the tokenizer.

    directory.py   which files a directory may have; atomic creation of a new one
    weights.py     tensors by name: all checked first, read one at a time, written in shards
    config.py      config.json to our configuration and back
    checkpoint.py  tensors to the decoder's leaves and back
    tokenizer.py   a tokenizer's files, for tools that load an export

The model defines what the tensors mean; the trainer places them on devices.
"""
