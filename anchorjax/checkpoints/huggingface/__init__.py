"""Model directories as Hugging Face lays them out: weights in safetensors, beside config.json and the tokenizer.

    directory.py   which files a directory may be made of; how a new one appears whole
    weights.py     tensors by name: vetted at once, read one at a time, written in shards
    config.py      config.json to our configuration and back
    checkpoint.py  tensors to the decoder's leaves and back
    tokenizer.py   a tokenizer's files, for tools that load an export

What the tensors mean is the model's affair, where they lie on devices the trainer's.
"""
